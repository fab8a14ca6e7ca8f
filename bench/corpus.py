"""The documents that are measured with."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

from cli.sample import write_sample
from services.parser.engines import ParserOptions
from services.parser.workers import Workers
from shared.errors import PermanentError
from shared.shards import SHARD_PAGES

SAMPLES = Path(__file__).parents[1] / "tests" / "data" / "samples"

SMALL_DOCUMENTS = 100
SMALL_PAGES = 3
LARGE_PAGES = 500


class Corpus:
    """Makes documents, in a folder.

    Every round gets copies of its own, for a document that was indexed before is handled as a new version of it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = count()

    def one_page(self) -> Path:
        """Return a sample of a single page."""
        return SAMPLES / "01-one-page.pdf"

    def small(self) -> list[Path]:
        """Write short documents, each with another text."""
        paths = [self._folder / f"small-{n}.pdf" for n in range(SMALL_DOCUMENTS)]
        for seed, path in enumerate(paths):
            write_sample(path, SMALL_PAGES, seed)
        return paths

    def handbook(self) -> Path:
        """Write a long document."""
        path = self._folder / f"generated-{LARGE_PAGES}-pages.pdf"
        write_sample(path, LARGE_PAGES)
        return path

    async def large(self, further: Path | None) -> list[Path]:
        """Return the generated long document and every PDF, ours and in a `further` folder, of more than one shard."""
        return [self.handbook(), *await _long_ones(_candidates(further))]

    def fresh(self, sources: Iterable[Path]) -> list[Path]:
        """Return copies with the same pages that no one has seen before: each ends in another comment."""
        return [self._copy(source, next(self._numbers)) for source in sources]

    def _copy(self, source: Path, number: int) -> Path:
        path = self._folder / f"{number}-{source.name}"
        path.write_bytes(source.read_bytes() + b"\n%% copy %d\n" % number)
        return path


def _candidates(further: Path | None) -> list[Path]:
    ours, theirs = sorted(SAMPLES.glob("*.pdf")), sorted(further.glob("*.pdf")) if further else []
    return list(_distinct([*ours, *theirs]))


def _distinct(paths: Iterable[Path]) -> Iterator[Path]:
    """Leave out what was there before under any name."""
    seen: set[bytes] = set()
    for path in paths:
        digest = hashlib.sha256(path.read_bytes()).digest()
        if digest not in seen:
            seen.add(digest)
            yield path


async def _long_ones(paths: Iterable[Path]) -> list[Path]:
    """Return those with more pages than a shard; in child processes, for a folder may hold anything."""
    workers = Workers(ParserOptions())
    found: list[Path] = []
    try:
        for path in paths:
            try:
                plan, _ = await workers.begin(path)
            except PermanentError:  # no PDF that anyone can read
                continue
            if plan.pages > SHARD_PAGES:
                found.append(path)
    finally:
        await workers.aclose()
    return found
