"""The blob store: where PDFs lie while they are worked on, on a disk or at an object store, through obstore."""

import asyncio
import os
import re
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from urllib.parse import unquote, urlsplit

import obstore
import structlog
from obstore.exceptions import BaseError
from obstore.store import from_url

from shared.errors import DependencyUnavailableError, PermanentError
from shared.settings import BlobSettings

PING_TIMEOUT = timedelta(seconds=2)
"""A store that does not answer within it counts as away; stays below the timeout of a readiness probe."""

LISTED = 1_000
"""Blobs of one batch of a listing: a page of an object store, and some hundred kilobytes."""

_HALF_WRITTEN = re.compile(r"#[0-9]+$")
"""How obstore ends the name of a file on a disk that it has not finished; it neither lists nor deletes such files."""

logger = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob as a listing shows it.

    Attributes
    ----------
    modified
        When it was last written, by the store's own clock; where it came in several pieces, S3 tells when it began.
    """

    url: str
    modified: datetime


class BlobMissingError(PermanentError):
    """A blob that should be there is gone."""

    code = "blob_missing"


class BlobForeignError(PermanentError):
    """A blob lies outside BLOB_URL, which has been changed since, or is not of this service's making."""

    code = "blob_foreign"


class BlobStore:
    """Writes, reads and deletes blobs below one base URL. Blobs are named by their full URL."""

    def __init__(self, settings: BlobSettings) -> None:
        self._base = settings.blob_url.rstrip("/")
        local = self._base.startswith("file:")
        self._folder = Path(unquote(urlsplit(self._base).path)) if local else None
        self._store = from_url(self._base, mkdir=True) if local else from_url(self._base)

    def url(self, key: str) -> str:
        """Return the URL of the blob with this key."""
        return f"{self._base}/{key}"

    async def write(self, url: str, content: AsyncIterable[bytes]) -> None:
        """Write a blob as a stream; it appears whole or, when `content` raises, not at all.

        Raises
        ------
        DependencyUnavailableError
            The store cannot take it. What `content` raises passes through unchanged, but for an OSError, which
            counts as the store's.
        """
        try:
            await obstore.put_async(self._store, self._key(url), content)
        except (BaseError, OSError) as error:
            raise DependencyUnavailableError(f"the blob store cannot take the upload: {error}") from error

    @asynccontextmanager
    async def local_path(self, url: str) -> AsyncIterator[Path]:
        """Lend a blob as a local file: itself where it lies on this disk, a temporary copy otherwise.

        The copy has no name in any folder, so it is gone with this process, however that ends. Until then, other
        processes of the same user can open it, too.

        Raises
        ------
        BlobMissingError
            There is no such blob.
        DependencyUnavailableError
            The store does not answer.
        """
        key = self._key(url)
        if self._folder is not None:
            path = self._folder / key  # the key is taken literally, as obstore does
            await asyncio.to_thread(_require, path, self._folder)
            yield path
            return
        with tempfile.TemporaryFile() as file:
            async for data in self._read(url):
                await asyncio.to_thread(file.write, data)
            file.flush()
            yield Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")

    async def _read(self, url: str) -> AsyncIterator[bytes]:
        try:
            async for data in await obstore.get_async(self._store, self._key(url)):
                yield bytes(data)
        except FileNotFoundError as error:
            raise BlobMissingError("the uploaded file is no longer in the blob store") from error
        except (BaseError, OSError) as error:
            raise DependencyUnavailableError(f"the blob store cannot be read: {error}") from error

    async def delete(self, urls: Iterable[str]) -> None:
        """Delete blobs. One that is gone already is fine, and one outside BLOB_URL is no longer ours and stays.

        Raises
        ------
        DependencyUnavailableError
            The store does not answer.
        """
        for url in urls:
            try:
                await self._delete(self._key(url))
            except FileNotFoundError:
                continue
            except BlobForeignError as error:
                logger.warning("blob not deleted", reason=str(error))
            except (BaseError, OSError) as error:
                raise DependencyUnavailableError(f"the blob store cannot delete: {error}") from error

    async def _delete(self, key: str) -> None:
        if self._folder is not None and _HALF_WRITTEN.search(key):
            await asyncio.to_thread((self._folder / key).unlink)
        else:
            await obstore.delete_async(self._store, key)

    async def listing(self) -> AsyncIterator[Sequence[StoredBlob]]:
        """Yield all that there is, in batches of at most `LISTED` and in no order.

        On a disk this includes files that are half-written, by an upload under way or by one whose process was killed.
        An object store hides these, and removes them by a rule for its bucket.

        Raises
        ------
        DependencyUnavailableError
            The store does not answer.
        """
        try:
            if self._folder is not None:
                files = _files(self._folder)
                while some := await asyncio.to_thread(list, islice(files, LISTED)):
                    yield [StoredBlob(self.url(key), modified) for key, modified in some]
            else:
                async for batch in obstore.list(self._store, chunk_size=LISTED):
                    yield [StoredBlob(self.url(blob["path"]), blob["last_modified"]) for blob in batch]
        except (BaseError, OSError) as error:
            raise DependencyUnavailableError(f"the blob store cannot be listed: {error}") from error

    async def ping(self) -> bool:
        """Tell whether the store answers now."""
        try:
            await asyncio.wait_for(obstore.head_async(self._store, "ping"), PING_TIMEOUT.total_seconds())
        except FileNotFoundError:
            return True
        except (BaseError, OSError):
            return False
        return True

    def _key(self, url: str) -> str:
        key = url.removeprefix(f"{self._base}/")
        if key == url or ".." in key.split("/"):
            raise BlobForeignError(f"the blob lies outside this service's BLOB_URL: {url}")
        return key


def _files(folder: Path, inside: str = "") -> Iterator[tuple[str, datetime]]:
    """Yield the key of each file in a folder, and when it was last written. Links are not followed.

    obstore's own listing of a disk hides what is half-written, and fails for one file whose name is no text.
    """
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, PermissionError):  # gone since, or foreign, such as lost+found
        return
    with entries:
        for entry in entries:
            key = inside + entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from _files(folder / entry.name, f"{key}/")
            elif entry.is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):  # finished or deleted since
                    yield key, datetime.fromtimestamp(entry.stat().st_mtime, UTC)


def _require(path: Path, folder: Path) -> None:
    """Raise where a file of the store is not there, or where all of the store is not."""
    if not folder.is_dir():  # a volume that is not mounted, for instance
        raise DependencyUnavailableError("the blob store's folder is not there")
    if not path.exists():
        raise BlobMissingError("the uploaded file is no longer in the blob store")
