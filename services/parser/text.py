"""Text as the rest of the pipeline may rely on it: valid UTF-8, one kind of line end, nothing invisible that breaks."""

import re

_LINE_ENDS = re.compile("[\x0b\x0c\x85\u2028\u2029]")
_HYPHENS = re.compile("[\x02\xad\ufffe]")
# pdfium writes one marker where a word was hyphenated at the end of a line, in place of both the hyphen and the
# line end: U+0002 or U+FFFE, depending on which of its functions is asked. A soft hyphen says the same.
_SPLIT_WORD = re.compile("(?<=[^\\W\\d_])(?:[\x02\ufffe]|\xad\n?)(?=[^\\W\\d_])")
_OTHER_HYPHEN = re.compile("[\x02\ufffe](?=\\w)")
_UNWANTED = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\ufeff\ufffe\uffff]")
_SURROGATES = re.compile("[\ud800-\udfff]")
# A search for "find" is to find it in a document that was typeset with ligatures.
_LIGATURE = re.compile("[\ufb00-\ufb06]")
_LETTERS = str.maketrans(
    {"\ufb00": "ff", "\ufb01": "fi", "\ufb02": "fl", "\ufb03": "ffi", "\ufb04": "ffl", "\ufb05": "st", "\ufb06": "st"}
)


def normalise(raw: str) -> str:
    r"""Return text that is valid UTF-8, has ``\n`` line ends and no control character but ``\n`` and ``\t``.

    Words that were hyphenated at a line's end are whole again, ligatures are letters, and halves of a surrogate
    pair are joined where both are there and dropped where one is missing. Idempotent. What is rare is looked for
    before it is replaced, which is several times as fast.
    """
    text = _join_surrogates(raw).replace("\r\n", "\n").replace("\r", "\n")
    text = _LINE_ENDS.sub("\n", text)
    if _HYPHENS.search(text):
        text = _OTHER_HYPHEN.sub("-", _SPLIT_WORD.sub(_joint, text))
    text = _UNWANTED.sub("", text)
    return text.translate(_LETTERS) if _LIGATURE.search(text) else text


def _joint(marker: re.Match[str]) -> str:
    """Drop the hyphen of "exam-ple", keep the one of "X-Ray"."""
    return "-" if marker.string[marker.end()].isupper() else ""


def _join_surrogates(text: str) -> str:
    if not _SURROGATES.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
