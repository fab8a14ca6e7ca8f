"""Takes an upload in: blob first, then the task's row, which is also the outbox of its event."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from uuid import uuid4

import structlog
from aiokafka.errors import KafkaError

from services.gateway.forms import FormFile
from services.gateway.problems import UploadTooLargeError
from services.gateway.tasks import Tasks
from shared.blobs import BlobStore
from shared.clock import Clock, now
from shared.errors import DependencyUnavailableError
from shared.events import document_id
from shared.kafka import Outgoing, Publisher
from shared.pdf import HEADER_WINDOW, check_header
from shared.tasks import TaskRow, submitted
from shared.topics import DOCUMENTS_SUBMITTED

PUBLISH_DEADLINE = timedelta(seconds=3)
"""How long a gateway tries to publish an upload itself; shorter than the time after which the dispatcher does it."""

PIECE = 1024 * 1024
"""Bytes handed to the blob store at once; each hand-over costs a switch between Python and the store's threads."""

logger = structlog.stdlib.get_logger()


class Intake:
    """What is learnt of a file while it streams by: its size, its hash, and whether it is a PDF at all."""

    def __init__(self, limit: int) -> None:
        self.size = 0
        self._limit = limit
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """The hash of what has passed so far, in hex."""
        return self._hash.hexdigest()

    async def passing(self, content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Pass the content on in larger pieces, the first one only when it looks like a PDF.

        Raises
        ------
        NotAPdfError
            It does not.
        UploadTooLargeError
            There is more of it than allowed.
        """
        piece = bytearray()
        checked = False
        async for data in content:
            self.size += len(data)
            if self.size > self._limit:
                raise UploadTooLargeError(f"the file is larger than {self._limit:,} bytes, the limit of this service")
            self._hash.update(data)
            piece += data
            if not checked and len(piece) >= HEADER_WINDOW:
                check_header(bytes(piece[:HEADER_WINDOW]))
                checked = True
            if checked and len(piece) >= PIECE:
                yield bytes(piece)
                piece.clear()
        if not checked:
            check_header(bytes(piece))
        if piece:
            yield bytes(piece)


class Uploads:
    """Accepts uploads and sends them on their way.

    An upload is accepted once its row is committed. Publishing its event comes after the answer, so that the client
    never waits for Kafka; what cannot be published in time stays in the outbox, from which the tracker's dispatcher
    takes it.
    """

    def __init__(
        self, blobs: BlobStore, tasks: Tasks, publisher: Publisher, *, max_bytes: int, clock: Clock = now
    ) -> None:
        self._blobs = blobs
        self._tasks = tasks
        self._publisher = publisher
        self._max_bytes = max_bytes
        self._clock = clock
        self._publishing: set[asyncio.Task[None]] = set()

    async def accept(self, file: FormFile, owner: str) -> TaskRow:
        """Store a file and its task.

        Raises
        ------
        NotAPdfError, UploadTooLargeError, MalformedUploadError
            The file is refused; nothing of it remains.
        DependencyUnavailableError
            The blob store or the database is away; nothing of it remains.
        """
        filename = await file.filename()
        task_id = uuid4()
        url = self._blobs.url(f"{owner}/{task_id}.pdf")
        intake = Intake(self._max_bytes)
        await self._blobs.write(url, intake.passing(file.content()))
        at = self._clock()
        task = TaskRow(
            task_id=task_id,
            owner=owner,
            filename=filename,
            size=intake.size,
            sha256=intake.sha256,
            document_id=document_id(owner, intake.sha256),
            blob_url=url,
            created_at=at,
            updated_at=at,
        )
        await self._insert(task)
        self._publish_soon(task)
        return task

    async def _insert(self, task: TaskRow) -> None:
        try:
            await self._tasks.insert(task)
        except BaseException:
            with suppress(DependencyUnavailableError):  # the client is told the first error
                await self._blobs.delete([task.blob_url])
            raise

    def _publish_soon(self, task: TaskRow) -> None:
        publishing = asyncio.create_task(self._publish(task))
        self._publishing.add(publishing)
        publishing.add_done_callback(self._publishing.discard)

    async def _publish(self, task: TaskRow) -> None:
        record = Outgoing.of(DOCUMENTS_SUBMITTED.name, str(task.task_id), submitted(task))
        try:
            await asyncio.wait_for(self._publisher.publish([record]), PUBLISH_DEADLINE.total_seconds())
            await self._tasks.mark_dispatched(task.task_id, self._clock())
        except (DependencyUnavailableError, KafkaError, TimeoutError) as error:
            logger.warning("upload left to the dispatcher", task_id=str(task.task_id), error=repr(error))

    async def aclose(self) -> None:
        """Wait for what is being published; its deadline bounds the wait."""
        await asyncio.gather(*self._publishing, return_exceptions=True)
