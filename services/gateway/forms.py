"""Reads one file out of a multipart form as it arrives, never holding more than a piece of it."""

import re
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from services.gateway.problems import FileMissingError, MalformedUploadError

FIELD = "file"

MAX_FILENAME = 255
"""Characters kept of a file's name: as many as file systems allow."""

# RFC 7578 wants `filename`, and where it is there it counts; some clients send a name beyond ASCII only like this.
_EXTENDED_FILENAME = re.compile(r";\s*filename\*\s*=\s*utf-8'[^']*'([^;\s]+)", re.IGNORECASE)


@dataclass
class _Part:
    headers: dict[str, str] = field(default_factory=dict)
    name: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)


class FormFile:
    """The file in the field `file` of a form; other fields are read past.

    Parameters
    ----------
    content_type
        The request's header, with the boundary.
    body
        The request's body as it arrives.
    """

    def __init__(self, content_type: str | None, body: AsyncIterator[bytes]) -> None:
        kind, options = parse_options_header(content_type or "")
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise MalformedUploadError(
                f"send the PDF as multipart/form-data in the field '{FIELD}', such as: curl -F {FIELD}=@x.pdf"
            )
        self._body = body
        self._part = _Part()
        self._filename: str | None = None
        self._wanted = False
        self._complete = False
        self._pieces: deque[bytes] = deque()
        self._parser = self._parser_for(options[b"boundary"])

    def _parser_for(self, boundary: bytes) -> MultipartParser:
        try:
            return MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": lambda data, start, end: self._part.name.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._part.value.extend(data[start:end]),
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                },
            )
        except FormParserError as error:
            raise MalformedUploadError(f"the boundary of the multipart form is not valid: {error}") from error

    async def filename(self) -> str:
        """Read up to the start of the file and return its name, cleaned of control characters.

        Raises
        ------
        FileMissingError
            The form has no such file.
        MalformedUploadError
            The body is no multipart form.
        """
        while self._filename is None:
            if not await self._read():
                raise FileMissingError(f"the form has no file in its field '{FIELD}'")
        return self._filename

    async def content(self) -> AsyncIterator[bytes]:
        """Yield the file's bytes.

        Raises
        ------
        MalformedUploadError
            The body ended before the file did.
        """
        more = True
        while more:
            while self._pieces:
                yield self._pieces.popleft()
            more = await self._read()
        if not self._complete:
            raise MalformedUploadError("the upload broke off before the end of the file; send it again")

    async def _read(self) -> bool:
        """Feed one piece of the body to the parser; False at its end."""
        async for data in self._body:
            if data:
                try:
                    self._parser.write(data)
                except FormParserError as error:
                    raise MalformedUploadError(f"the body is no valid multipart form: {error}") from error
                return True
        return False

    def _on_part_begin(self) -> None:
        self._part = _Part()

    def _on_header_end(self) -> None:
        self._part.headers[self._part.name.decode("latin-1").lower()] = self._part.value.decode("latin-1")
        self._part.name.clear()
        self._part.value.clear()

    def _on_headers_finished(self) -> None:
        disposition = self._part.headers.get("content-disposition", "")
        _, options = parse_options_header(disposition)
        filename = options.get(b"filename", _extended_filename(disposition))
        self._wanted = self._filename is None and options.get(b"name") == FIELD.encode() and filename is not None
        if self._wanted and filename is not None:
            self._filename = clean_filename(filename.decode("utf-8", "replace"))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._wanted:
            self._pieces.append(data[start:end])

    def _on_part_end(self) -> None:
        self._complete = self._complete or self._wanted
        self._wanted = False


def _extended_filename(disposition: str) -> bytes | None:
    found = _EXTENDED_FILENAME.search(disposition)
    return unquote_to_bytes(found[1]) if found else None


def clean_filename(name: str) -> str:
    """Return a file's name as data to show: without control characters, of bounded length, never empty."""
    shown = "".join(character for character in name if character.isprintable()).strip()
    return shown[:MAX_FILENAME] or "unnamed.pdf"
