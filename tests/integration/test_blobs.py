import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.parser.engines import ParserOptions
from services.parser.workers import Workers
from shared import blobs as blobs_module
from shared.blobs import BlobMissingError, BlobStore, StoredBlob
from shared.errors import DependencyUnavailableError, PermanentError
from shared.settings import BlobSettings
from tests.support.eventually import before_long

ODD_NAMES = ["plain", "with space", "ünï-日本", "50% off", "a%20b", "#frag?query", "plus+and&"]
ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "tests" / "data" / "samples"

BEGIN_AN_UPLOAD = """
async def content():
    yield b"x" * (12 << 20)
    print("half-written", flush=True)
    await asyncio.Event().wait()

async def work(url):
    store = BlobStore(BlobSettings(blob_url=url))
    await store.write(store.url("owner/1.pdf"), content())
"""

BORROW_A_COPY = """
async def content():
    yield b"content"

async def work(url):
    store = BlobStore(BlobSettings(blob_url=url))
    await store.write(store.url("owner/1.pdf"), content())
    async with store.local_path(store.url("owner/1.pdf")) as path:
        print(path, flush=True)
        await asyncio.Event().wait()
"""


def store_in(folder: Path) -> BlobStore:
    return BlobStore(BlobSettings(blob_url=folder.as_uri()))


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


@asynccontextmanager
async def another_process(work: str, url: str, **environment: str) -> AsyncIterator[str]:
    """Have a process work until it has said a line, and kill it at the end."""
    script = (
        f"import asyncio, sys\nfrom shared.blobs import BlobStore\nfrom shared.settings import BlobSettings\n{work}"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", f"{script}\nasyncio.run(work(sys.argv[1]))", url),
        cwd=ROOT,
        env=os.environ | environment,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout
        yield (await before_long(process.stdout.readline())).decode().strip()
    finally:
        process.kill()
        await process.wait()


async def listed(store: BlobStore) -> list[StoredBlob]:
    return [blob async for batch in store.listing() for blob in batch]


def content_of(path: str) -> bytes:
    return Path(path).read_bytes()


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


@pytest.mark.parametrize("base", ["{folder}", "{folder}/", "memory:///blobs"])
async def test_a_listing_names_everything_as_it_was_written(tmp_path: Path, base: str) -> None:
    store = BlobStore(BlobSettings(blob_url=base.format(folder=tmp_path.as_uri())))
    urls = {store.url(f"{name}/1.pdf") for name in ODD_NAMES}
    before = datetime.now(UTC)
    for url in urls:
        await store.write(url, pieces(b"x"))
    found = await listed(store)
    assert {blob.url for blob in found} == urls
    assert all(abs((blob.modified - before).total_seconds()) < 60 for blob in found)
    await store.delete(blob.url for blob in found)
    assert await listed(store) == []


@pytest.mark.parametrize("base", ["{folder}", "memory:///blobs"])
async def test_a_long_listing_comes_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str) -> None:
    monkeypatch.setattr(blobs_module, "LISTED", 2)
    store = BlobStore(BlobSettings(blob_url=base.format(folder=tmp_path.as_uri())))
    for n in range(5):
        await store.write(store.url(f"owner/{n}.pdf"), pieces(b"x"))
    assert sorted([len(batch) async for batch in store.listing()]) == [1, 2, 2]


async def test_a_blob_that_is_written_to_is_listed_with_a_new_time(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    await store.write(store.url("owner/1.pdf"), pieces(b"x"))
    [before] = await listed(store)
    os.utime(tmp_path / "owner" / "1.pdf", (1, 1))
    [after] = await listed(store)
    assert (after.url, after.modified) == (before.url, datetime.fromtimestamp(1, UTC))
    assert after != before


async def test_what_a_killed_process_has_half_written_is_listed_and_can_be_deleted(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    async with another_process(BEGIN_AN_UPLOAD, tmp_path.as_uri()) as line:
        assert line == "half-written"
    [left] = await listed(store)
    assert left.url == store.url("owner/1.pdf#1")
    await store.delete([left.url, left.url])
    assert files(tmp_path) == []


async def test_foreign_files_do_not_keep_a_folder_from_being_listed(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    await store.write(store.url("owner/1.pdf"), pieces(b"x"))
    (tmp_path / os.fsdecode(b"no text \xff\x01.pdf")).touch()
    (tmp_path / "link").symlink_to(tmp_path / "owner")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    assert store.url("owner/1.pdf") in {blob.url for blob in await listed(store)}
    assert len(await listed(store)) == 2


async def test_a_store_that_cannot_be_listed_says_so(tmp_path: Path) -> None:
    store = store_in(tmp_path / "store")
    (tmp_path / "store").rmdir()
    (tmp_path / "store").touch()
    with pytest.raises(DependencyUnavailableError, match="cannot be listed"):
        await listed(store)


async def test_the_copy_of_a_remote_blob_is_gone_with_the_process_that_made_it(tmp_path: Path) -> None:
    async with another_process(BORROW_A_COPY, "memory:///blobs", TMPDIR=str(tmp_path)) as path:
        assert content_of(path) == b"content"
    assert files(tmp_path) == []


async def test_the_parsers_children_read_the_copy_of_a_remote_blob() -> None:
    store = BlobStore(BlobSettings(blob_url="memory:///blobs"))
    sample = await asyncio.to_thread((SAMPLES / "05-13-pages.pdf").read_bytes)
    await store.write(store.url("owner/1.pdf"), pieces(sample))
    workers = Workers(ParserOptions(workers=1))
    try:
        async with store.local_path(store.url("owner/1.pdf")) as path:
            plan, extraction = await workers.begin(path)
    finally:
        await workers.aclose()
    assert plan.pages == 13
    assert extraction
    assert extraction.pages_without_text == 0


async def test_a_remote_blob_that_is_gone_is_missing() -> None:
    store = BlobStore(BlobSettings(blob_url="memory:///blobs"))
    with pytest.raises(BlobMissingError, match="no longer"):
        async with store.local_path(store.url("owner/1.pdf")):
            pass
