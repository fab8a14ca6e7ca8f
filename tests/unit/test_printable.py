import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.printable import MAX_BYTES, MAX_LINES, excerpt, printable, readable


@given(st.text())
def test_nothing_but_visible_characters_reaches_the_terminal(text: str) -> None:
    assert printable(text).isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Grüße, 日本", "Grüße, 日本"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("a\r\nb", "a\\r\\nb"),
    ],
)
def test_what_would_steer_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_bytes_are_shown_as_text_where_they_are_text() -> None:
    assert readable("Grüße".encode()) == "Grüße"
    assert readable(b"\xff\x00a") == "\\xff\\x00a"
    assert readable(b"") == ""
    assert readable(None) == "null"


@given(st.binary(max_size=300))
def test_any_bytes_can_be_shown(data: bytes) -> None:
    assert readable(data).isprintable()
    assert all(line.isprintable() for line in excerpt(data))


def test_a_long_event_is_shortened_but_keeps_every_field() -> None:
    event = {"task_id": "1", "chunks": [{"n": n, "text": "word " * 100} for n in range(64)], "vectors": "A" * 90_000}
    lines = excerpt(json.dumps(event | {"model": "tiny"}).encode())
    shown = "\n".join(lines)
    assert len(shown) < 2_000
    assert '"task_id": "1"' in shown
    assert "… 61 more" in shown
    assert "… 89,800 characters more" in shown
    assert '"model": "tiny"' in shown


def test_an_object_with_very_many_fields_is_cut() -> None:
    lines = excerpt(json.dumps(dict.fromkeys(map(str, range(1_000)), 1)).encode())
    assert len(lines) == MAX_LINES + 1
    assert lines[-1] == "… 802 lines more"


def test_what_is_no_json_is_shown_by_its_beginning() -> None:
    text = string.ascii_letters * 100
    assert excerpt(text.encode()) == [text[:MAX_BYTES], "… 4,200 bytes more"]
    assert excerpt(b"") == [""]


@pytest.mark.parametrize("bracket", ["[", '{"a":'])
def test_json_nested_without_end_is_no_trap(bracket: str) -> None:
    assert excerpt((bracket * 100_000).encode())[0].startswith(bracket)
    deep = "[" * 800 + "]" * 800
    assert excerpt(deep.encode())
