"""The blob store: where PDFs lie while they are worked on, on a disk or at an object store, through obstore."""

import asyncio
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
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

logger = structlog.stdlib.get_logger()


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
            if not await asyncio.to_thread(path.exists):
                raise BlobMissingError("the uploaded file is no longer in the blob store")
            yield path
            return
        with tempfile.NamedTemporaryFile(prefix="paperlane-", suffix=".pdf") as file:
            async for data in self._read(url):
                await asyncio.to_thread(file.write, data)
            file.flush()
            yield Path(file.name)

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
                await obstore.delete_async(self._store, self._key(url))
            except FileNotFoundError:
                continue
            except BlobForeignError as error:
                logger.warning("blob not deleted", reason=str(error))
            except (BaseError, OSError) as error:
                raise DependencyUnavailableError(f"the blob store cannot delete: {error}") from error

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
