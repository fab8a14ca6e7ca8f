"""Takes an upload in: blob first, then the task's row, which is also the outbox of its event."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import suppress
from uuid import uuid4

from services.gateway.forms import FormFile
from services.gateway.outbox import Outbox
from services.gateway.problems import UploadTooLargeError
from services.gateway.tasks import Tasks
from shared.blobs import BlobStore
from shared.clock import Clock, now
from shared.database.pool import NoConnectionError
from shared.errors import DependencyUnavailableError
from shared.events import document_id
from shared.kafka import Outgoing
from shared.pdf import HEADER_WINDOW, check_header
from shared.tasks import TaskRow, submitted
from shared.topics import DOCUMENTS_SUBMITTED

PIECE = 1024 * 1024
"""Bytes handed to the blob store at once; each hand-over costs a switch between Python and the store's threads."""


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

    An upload is accepted once its row is committed; its event is published after the answer, from the row.
    """

    def __init__(self, blobs: BlobStore, tasks: Tasks, outbox: Outbox, *, max_bytes: int, clock: Clock = now) -> None:
        self._blobs = blobs
        self._tasks = tasks
        self._outbox = outbox
        self._max_bytes = max_bytes
        self._clock = clock

    async def accept(self, file: FormFile, owner: str) -> TaskRow:
        """Store a file and its task.

        Raises
        ------
        NotAPdfError, UploadTooLargeError, MalformedUploadError
            The file is refused; nothing of it remains.
        DependencyUnavailableError
            The blob store or the database is away; nothing of it remains. Only where the database broke off is it
            unknown whether there is a task now.
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
        self._outbox.publish_soon(task, [Outgoing.of(DOCUMENTS_SUBMITTED.name, str(task_id), submitted(task))])
        return task

    async def _insert(self, task: TaskRow) -> None:
        """Insert a task; where that is out of the question, its blob goes, too.

        Of a commit that broke off nobody knows whether there is a row, so the blob stays. The tracker's sweep finds
        out later.
        """
        try:
            await self._tasks.insert(task)
        except NoConnectionError:
            with suppress(DependencyUnavailableError):  # the client is told the first error
                await self._blobs.delete([task.blob_url])
            raise
