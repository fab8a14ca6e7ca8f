"""A sample PDF to try the pipeline with: a made-up handbook in plain English, the same for the same seed.

Written by hand, so that trying Paperlane needs no PDF library: PDF 1.4, standard Helvetica, compressed pages.
"""

import random
import zlib
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

_PARAGRAPHS = 5
_SENTENCES = 5
_LINE_WIDTH = 92  # characters of 10 point Helvetica that fit between the margins of an A4 page


class _Subject(NamedTuple):
    """The words of one subject area; nouns are plural, actions and effects take such a noun before them."""

    title: str
    nouns: tuple[str, ...]
    actions: tuple[str, ...]
    objects: tuple[str, ...]
    effects: tuple[str, ...]


_SUBJECTS = (
    _Subject(
        "Beekeeping",
        ("worker bees", "queen bees", "bee colonies", "wooden hives", "swarms", "beekeepers"),
        ("gather", "protect", "inspect", "share", "store"),
        ("nectar from clover", "the brood comb", "pollen and honey", "the wax frames", "sugar syrup in autumn"),
        ("the honey ripens before the harvest", "mites spread less", "the cluster survives the winter"),
    ),
    _Subject(
        "Sailing",
        ("sloops", "sailors", "helmsmen", "spinnakers", "anchors", "keels"),
        ("trim", "steer by", "reef", "hold against", "follow"),
        ("the mainsail", "the steady trade wind", "the compass bearing", "a rising tide", "the lee shore"),
        ("the boat heels less in gusts", "the crossing takes fewer days", "the crew can rest at night"),
    ),
    _Subject(
        "Astronomy",
        ("telescopes", "comets", "red giants", "radio arrays", "exoplanets", "astronomers"),
        ("reveal", "orbit", "measure", "outshine", "record"),
        ("distant galaxies", "the light of dying stars", "a faint nebula", "the rings of Saturn", "cosmic dust"),
        ("the spectrum shows its hydrogen", "the orbit can be predicted", "the night sky looks deeper"),
    ),
    _Subject(
        "Bread baking",
        ("sourdough starters", "bakers", "rye loaves", "stone ovens", "wheat doughs", "baguettes"),
        ("need", "absorb", "ferment with", "improve with", "hold"),
        ("strong flour", "wild yeast", "steam and high heat", "a long cold proof", "a pinch of salt"),
        ("the crust turns crisp", "the crumb stays open", "the loaf keeps for a week"),
    ),
    _Subject(
        "Railways",
        ("locomotives", "signal boxes", "freight trains", "switches", "dispatchers", "sleeper cars"),
        ("wait for", "control", "share", "leave", "cross"),
        ("the main line", "the junction", "a timetable slot", "the mountain tunnel", "electric overhead wires"),
        ("delays do not spread", "passengers reach their connection", "the brakes wear evenly"),
    ),
    _Subject(
        "Medicine",
        ("nurses", "vaccines", "surgeons", "antibiotics", "clinics", "patients"),
        ("treat", "prevent", "report", "monitor", "respond to"),
        ("bacterial infections", "a high fever", "the blood pressure", "early symptoms", "the healing wound"),
        ("recovery takes less time", "side effects stay rare", "the diagnosis is confirmed"),
    ),
    _Subject(
        "Finance",
        ("investors", "central banks", "bond markets", "auditors", "pension funds", "loans"),
        ("price", "hedge", "depend on", "publish", "lower"),
        ("the interest rate", "the risk of default", "quarterly earnings", "the annual budget", "foreign currencies"),
        ("inflation slows down", "shareholders receive a dividend", "the balance sheet stays sound"),
    ),
    _Subject(
        "Gardening",
        ("tomato plants", "gardeners", "fruit trees", "raised beds", "roses", "compost heaps"),
        ("thrive on", "benefit from", "tolerate", "prefer", "recover with"),
        ("morning sun", "rich loose soil", "a late pruning", "regular watering", "mulch around the roots"),
        ("the blossoms set fruit", "weeds find no room", "the harvest lasts until October"),
    ),
)

_PATTERNS = (
    "In {season}, {nouns} {action} {object}, so that {effect}.",
    "Most {nouns} {action} {object} only when {more} do the same.",
    "If {nouns} {action} {object} for {count} days, {effect}.",
    "It took {count} trials to show that {nouns} {action} {object}.",
    "Experienced teams know why {nouns} rarely {action} {object} without {more}.",
    "Compared with {more}, {nouns} {action} {object} far more often, and {effect}.",
)
_SEASONS = ("spring", "early summer", "autumn", "winter", "a dry year", "a wet year")


def write_sample(path: Path, pages: int = 500, seed: int = 0) -> None:
    """Write a PDF of readable English text, about 2,000 characters a page, a chapter of ten pages per subject.

    Parameters
    ----------
    path
        Where to write; an existing file is replaced.
    pages
        Number of pages, at least 1.
    seed
        Another seed gives another text.
    """
    if pages < 1:
        raise ValueError(f"a PDF needs at least 1 page, not {pages}")
    words = random.Random(seed)  # noqa: S311 - sample text, nothing secret
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Count %d /Kids [%s] >>" % (pages, b" ".join(b"%d 0 R" % (5 + 2 * n) for n in range(pages))),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        b"<< /Title (The Paperlane sample handbook) /Author (Paperlane) /Producer (Paperlane) >>",
    ]
    for number in range(1, pages + 1):
        objects += _page(number, 4 + 2 * number, words)
    path.write_bytes(_file(objects))


def _page(number: int, content: int, words: random.Random) -> tuple[bytes, bytes]:
    """Return a page and its content stream, which will be object number `content`."""
    subject = _SUBJECTS[(number - 1) // 10 % len(_SUBJECTS)]
    lines = [f"{subject.title}, page {number}", ""]
    for _ in range(_PARAGRAPHS):
        lines += [*_wrap(" ".join(_sentence(subject, words) for _ in range(_SENTENCES))), ""]
    shown = "\n".join(f"({line}) '" for line in lines)
    stream = zlib.compress(f"BT /F1 10 Tf 13 TL 60 790 Td\n{shown}\nET".encode("ascii"))
    return (
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents %d 0 R "
        b"/Resources << /Font << /F1 3 0 R >> >> >>" % content,
        b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(stream), stream),
    )


def _sentence(subject: _Subject, words: random.Random) -> str:
    nouns, more = words.sample(subject.nouns, 2)
    sentence = words.choice(_PATTERNS).format(
        season=words.choice(_SEASONS),
        nouns=nouns,
        more=more,
        action=words.choice(subject.actions),
        object=words.choice(subject.objects),
        effect=words.choice(subject.effects),
        count=words.randint(2, 90),
    )
    return sentence[0].upper() + sentence[1:]


def _wrap(text: str) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= _LINE_WIDTH:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


def _file(objects: list[bytes]) -> bytes:
    """Join numbered objects, the catalog first and the metadata fourth, with a cross-reference table."""
    header = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n"
    blocks = [b"%d 0 obj\n%s\nendobj\n" % (n, body) for n, body in enumerate(objects, 1)]
    *offsets, xref = accumulate((len(block) for block in blocks), initial=len(header))
    table = b"0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    trailer = b"trailer\n<< /Size %d /Root 1 0 R /Info 4 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, xref)
    return header + b"".join(blocks) + b"xref\n0 %d\n" % size + table + trailer
