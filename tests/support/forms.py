"""Multipart forms, byte by byte."""

from collections.abc import AsyncIterator, Iterable

BOUNDARY = "----pl-7d9f"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"
END = f"--{BOUNDARY}--\r\n".encode()


def part(content: bytes, disposition: bytes, *more_headers: bytes) -> bytes:
    """Return one part of a form."""
    headers = b"\r\n".join([b"Content-Disposition: form-data; " + disposition, *more_headers])
    return b"--" + BOUNDARY.encode() + b"\r\n" + headers + b"\r\n\r\n" + content + b"\r\n"


def file_part(content: bytes, filename: bytes = b"x.pdf") -> bytes:
    """Return the part of the file that is uploaded."""
    return part(content, b'name="file"; filename="' + filename + b'"', b"Content-Type: application/pdf")


async def arriving(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    """Yield the pieces of a body as they arrive."""
    for piece in pieces:
        yield piece
