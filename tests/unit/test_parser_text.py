import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.parser.text import normalise


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("one\r\ntwo\rthree\x0cfour", "one\ntwo\nthree\nfour"),
        ("con\x02sectetuer con\ufffesectetuer con\xad\nsectetuer", "consectetuer consectetuer consectetuer"),
        ("X\x02Ray and 1990\ufffe1995", "X-Ray and 1990-1995"),
        ("\x02 alone at the end\ufffe", " alone at the end"),
        ("e\ufb03cient \ufb01nding of \ufb02oors", "efficient finding of floors"),
        ("a\x00b\x1bc\x7fd\x9fe\ufefff", "abcdef"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("half \ud83d pair, whole \ud83d\ude00 pair", "half  pair, whole 😀 pair"),
        ("日本語, мир, مرحبا, e\u0301", "日本語, мир, مرحبا, e\u0301"),
    ],
)
def test_text_is_cleaned_and_otherwise_left_alone(raw: str, expected: str) -> None:
    assert normalise(raw) == expected


@given(st.text(st.characters() | st.characters(categories=["Cs", "Cc"]) | st.sampled_from("\x02\ufffe\xad\r\n-aB1")))
def test_any_text_becomes_valid_and_free_of_control_characters(raw: str) -> None:
    text = normalise(raw)
    assert text.encode().decode() == text
    assert not [c for c in text if unicodedata.category(c) == "Cc" and c not in "\n\t"]
    assert not set(text) & {"\ufffe", "\uffff", "\xad"}
    assert normalise(text) == text
