"""What makes a file a PDF at first sight, the same for the gateway that takes it and the parser that reads it."""

from shared.errors import NotAPdfError

HEADER = b"%PDF-"

HEADER_WINDOW = 1024
"""Bytes at the start of a file in which readers look for the header."""

_OTHER_KINDS = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"PK\x03\x04", "a ZIP archive or an Office document"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"),
    (b"%!PS", "a PostScript file"),
    (b"{\\rtf", "an RTF document"),
    (b"<", "an HTML or XML page"),
)


def check_header(start: bytes) -> None:
    """Refuse a file that no engine needs to look at.

    Parameters
    ----------
    start
        The first `HEADER_WINDOW` bytes of the file, or all of it where it is shorter.

    Raises
    ------
    NotAPdfError
        The file is empty or has no PDF header in that window.
    """
    if not start:
        raise NotAPdfError("The file is empty (0 bytes).")
    if HEADER in start[:HEADER_WINDOW]:
        return
    kind = next((kind for magic, kind in _OTHER_KINDS if start.lstrip().startswith(magic)), None)
    found = f"it looks like {kind}" if kind else "its first 1,024 bytes have no %PDF- header"
    raise NotAPdfError(f"The file is not a PDF: {found}.")
