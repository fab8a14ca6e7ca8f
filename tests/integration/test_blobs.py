import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.blobs import BlobMissingError, BlobStore
from shared.errors import DependencyUnavailableError, PermanentError
from shared.settings import BlobSettings
from tests.support.eventually import before_long

ODD_NAMES = ["plain", "with space", "ünï-日本", "50% off", "a%20b", "#frag?query", "plus+and&"]


def store_in(folder: Path) -> BlobStore:
    return BlobStore(BlobSettings(blob_url=folder.as_uri()))


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_what_is_written_is_read_back_and_deleted(tmp_path: Path, name: str) -> None:
    base = tmp_path / name
    store = store_in(base)
    url = store.url("owner/1.pdf")
    await store.write(url, pieces(b"one ", b"", b"two"))
    assert (base / "owner" / "1.pdf").read_bytes() == b"one two"
    async with store.local_path(url) as path:
        assert path.read_bytes() == b"one two"
    await store.delete([url])
    assert files(tmp_path) == []
    with pytest.raises(BlobMissingError, match="no longer"):
        async with store.local_path(url):
            pass


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_an_owner_of_any_name_gets_back_what_was_written(tmp_path: Path, name: str) -> None:
    store = store_in(tmp_path)
    url = store.url(f"{name}/1.pdf")
    await store.write(url, pieces(b"content"))
    async with store.local_path(url) as path:
        assert path.read_bytes() == b"content"
    await store.delete([url])
    assert files(tmp_path) == []


async def test_a_slash_at_the_end_of_the_base_makes_no_difference(tmp_path: Path) -> None:
    with_slash, without = BlobStore(BlobSettings(blob_url=f"{tmp_path.as_uri()}/")), store_in(tmp_path)
    assert with_slash.url("a/b.pdf") == without.url("a/b.pdf")


async def test_a_large_blob_arrives_whole(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    url = store.url("owner/large.pdf")
    await store.write(url, pieces(*(bytes([n]) * (1 << 20) for n in range(24))))
    async with store.local_path(url) as path:
        data = path.read_bytes()
    assert data == b"".join(bytes([n]) * (1 << 20) for n in range(24))


async def test_content_that_fails_leaves_nothing_and_its_error_comes_through(tmp_path: Path) -> None:
    class TooMuchError(PermanentError):
        pass

    async def failing() -> AsyncIterator[bytes]:
        yield b"x" * (6 << 20)  # more than one part of an upload
        raise TooMuchError("too much")

    store = store_in(tmp_path)
    with pytest.raises(TooMuchError, match="too much"):
        await store.write(store.url("owner/1.pdf"), failing())
    assert files(tmp_path) == []


async def test_a_write_that_is_canceled_leaves_nothing(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield b"x" * (6 << 20)
        begun.set()
        await asyncio.Event().wait()

    store = store_in(tmp_path)
    writing = asyncio.create_task(store.write(store.url("owner/1.pdf"), endless()))
    await before_long(begun.wait())
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert not (tmp_path / "owner" / "1.pdf").exists()


async def test_a_second_write_replaces_the_first_whole(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    url = store.url("owner/1.pdf")
    await store.write(url, pieces(b"a longer first one"))
    await store.write(url, pieces(b"second"))
    async with store.local_path(url) as path:
        assert path.read_bytes() == b"second"


async def test_deleting_what_is_gone_is_fine(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    there, gone = store.url("owner/there.pdf"), store.url("owner/gone.pdf")
    await store.write(there, pieces(b"x"))
    await store.delete([gone, there, gone])
    assert files(tmp_path) == []


@pytest.mark.parametrize("url", ["s3://bucket/owner/1.pdf", "file:///elsewhere/1.pdf", "{base}-other/1.pdf"])
async def test_a_url_outside_the_base_is_refused(tmp_path: Path, url: str) -> None:
    store = store_in(tmp_path / "base")
    url = url.format(base=(tmp_path / "base").as_uri())
    with pytest.raises(PermanentError, match="outside this service's BLOB_URL"):
        await store.write(url, pieces(b"x"))
    with pytest.raises(PermanentError, match="outside this service's BLOB_URL"):
        async with store.local_path(url):
            pass


@pytest.mark.parametrize("key", ["../secret.pdf", "owner/../../secret.pdf"])
async def test_a_url_cannot_climb_out_of_the_base(tmp_path: Path, key: str) -> None:
    secret = tmp_path / "secret.pdf"
    secret.write_bytes(b"secret")
    store = store_in(tmp_path / "base")
    with pytest.raises(PermanentError, match="outside"):
        async with store.local_path(store.url(key)):
            pass
    with pytest.raises(PermanentError, match="outside"):
        await store.write(store.url(key), pieces(b"x"))
    own = store.url("own.pdf")
    await store.write(own, pieces(b"x"))
    await store.delete([store.url(key), own])
    assert files(tmp_path / "base") == []
    assert secret.read_bytes() == b"secret"


async def test_an_escaped_dot_in_a_key_is_no_way_out_either(tmp_path: Path) -> None:
    (tmp_path / "secret.pdf").write_bytes(b"secret")
    store = store_in(tmp_path / "base")
    with pytest.raises(BlobMissingError):
        async with store.local_path(store.url("%2e%2e/secret.pdf")):
            pass


async def test_a_store_that_cannot_write_says_so(tmp_path: Path) -> None:
    (tmp_path / "owner").write_text("a file where a folder should be")
    store = store_in(tmp_path)
    with pytest.raises(DependencyUnavailableError, match="cannot take the upload"):
        await store.write(store.url("owner/1.pdf"), pieces(b"x"))


async def test_ping_tells_whether_the_store_answers(tmp_path: Path) -> None:
    assert await store_in(tmp_path / "new").ping()
