"""The events on the wire: one class per event, in the past tense, JSON in Kafka.

Pages are numbered from 1 and ranges include both ends. Shards and parts are numbered from 0: a document is cut
into shards of pages, the text of a shard into parts of chunks. A part is what travels from stage to stage,
sized to stay well below the broker's record limit.
"""

import base64
from enum import StrEnum
from typing import Annotated, Any, Literal, Self
from uuid import UUID, uuid5

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter

PAGE_WEIGHT = 1000
"""Weight of one page in a task's progress; a part weighs its share of its shard's pages, in thousandths of a page."""

MOST = 2**31 - 1
"""The largest number in an event, so that PostgreSQL takes what was decoded: its integers have 32 bits."""

_DOCUMENTS = UUID("6f0b3d7e-6d55-4f0e-9f53-1a3c1c8a5b11")


class Stage(StrEnum):
    """The stages that a task passes, in order."""

    PARSE = "parse"
    EMBED = "embed"
    INDEX = "index"


class Step(StrEnum):
    """What a unit of work does: the stages, and before them the plan of a document, which is the parser's too."""

    PLAN = "plan"
    PARSE = "parse"
    EMBED = "embed"
    INDEX = "index"

    @property
    def stage(self) -> Stage:
        """The stage that the step belongs to."""
        return Stage.PARSE if self is Step.PLAN else Stage(self.value)


class Event(BaseModel):
    """Base of all events. Unknown fields are ignored, so that old consumers read newer producers."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1] = 1
    task_id: UUID


class DocumentEvent(Event):
    """An event about the content of one document.

    Attributes
    ----------
    document_id
        Identity of the content for its owner: the same bytes uploaded twice are the same document.
    submitted_at
        When the task was accepted; of two tasks for one document, the later one is its newer version.
    """

    document_id: UUID
    owner: str
    filename: str
    submitted_at: AwareDatetime


class DocumentSubmitted(DocumentEvent):
    """A PDF lies in the blob store, ready to be parsed."""

    blob_url: str
    size: int = Field(ge=0, description="bytes")
    sha256: str


class PagesRequested(DocumentEvent):
    """A shard of a planned document is to be extracted."""

    blob_url: str
    engine: str
    shard: int = Field(ge=0, le=MOST)
    first_page: int = Field(ge=1)
    last_page: int = Field(ge=1)
    parts: tuple[int, ...] | None = Field(None, description="the parts that are wanted; all where this is null")


class Chunk(BaseModel):
    """A piece of text small enough to embed, with the pages it stands on."""

    model_config = ConfigDict(frozen=True)

    n: int = Field(ge=0, description="number within its part")
    text: str
    first_page: int = Field(ge=1)
    last_page: int = Field(ge=1)


class PartEvent(DocumentEvent):
    """An event that carries one part of a shard.

    Attributes
    ----------
    weight
        The part's share of its shard's pages, in thousandths of a page (see `PAGE_WEIGHT`).
    parts
        How many parts its shard has; None from a parser that did not tell yet.
    """

    shard: int = Field(ge=0, le=MOST)
    part: int = Field(ge=0, le=MOST)
    parts: int | None = Field(None, ge=1, le=MOST)
    weight: int = Field(ge=0, le=MOST)
    chunks: tuple[Chunk, ...]


class ChunksExtracted(PartEvent):
    """A part's text is ready to be embedded."""


class ChunksEmbedded(PartEvent):
    """A part's vectors are ready to be indexed.

    Attributes
    ----------
    vectors
        All vectors of the part, chunk by chunk, as base64 of little-endian float32 (len(chunks) x dimension).
    """

    model: str
    dimension: int = Field(ge=1, le=MOST)
    vectors: str

    @classmethod
    def of(cls, source: ChunksExtracted, *, model: str, vectors: NDArray[np.float32]) -> Self:
        """Join a part with its vectors, shape (len(chunks), dimension)."""
        packed = base64.b64encode(np.ascontiguousarray(vectors, dtype="<f4").tobytes()).decode()
        fields = {name: getattr(source, name) for name in ChunksExtracted.model_fields}
        return cls(**fields, model=model, dimension=vectors.shape[1], vectors=packed)

    def matrix(self) -> NDArray[np.float32]:
        """Return the vectors, shape (len(chunks), dimension)."""
        flat = np.frombuffer(base64.b64decode(self.vectors), dtype="<f4")
        return flat.reshape(len(self.chunks), self.dimension)


class DocumentCompleted(Event):
    """A newer version of a document is complete, so the chunks of its older ones may go."""

    document_id: UUID
    owner: str
    submitted_at: AwareDatetime


class TaskCanceled(Event):
    """A task is over at its owner's wish: what waits of it is dropped, and what was indexed of it is removed."""

    document_id: UUID
    owner: str


class Timed(Event):
    """A unit of work that a stage finished."""

    started_at: AwareDatetime
    finished_at: AwareDatetime


class DocumentPlanned(Timed):
    """The parser knows what the document is made of."""

    kind: Literal["document_planned"] = "document_planned"
    pages: int = Field(ge=1, le=MOST)
    shards: int = Field(ge=1, le=MOST)
    engine: str
    metadata: dict[str, str]


class ShardExtracted(Timed):
    """The text of a shard has left the parser, in `parts` parts (none if its pages have no text)."""

    kind: Literal["shard_extracted"] = "shard_extracted"
    shard: int = Field(ge=0, le=MOST)
    pages: int = Field(ge=1, le=MOST)
    pages_without_text: int = Field(ge=0, le=MOST)
    characters: int = Field(ge=0, le=MOST)
    chunks: int = Field(ge=0, le=MOST)
    parts: int = Field(ge=0, le=MOST)


class PartEmbedded(Timed):
    """A part has its vectors."""

    kind: Literal["part_embedded"] = "part_embedded"
    shard: int = Field(ge=0, le=MOST)
    part: int = Field(ge=0, le=MOST)
    weight: int = Field(ge=0, le=MOST)
    tokens: int = Field(ge=0, le=MOST, description="tokens billed by the provider, 0 where it does not count")
    model: str
    dimension: int = Field(ge=1, le=MOST)


class PartIndexed(Timed):
    """A part can be searched."""

    kind: Literal["part_indexed"] = "part_indexed"
    shard: int = Field(ge=0, le=MOST)
    part: int = Field(ge=0, le=MOST)
    weight: int = Field(ge=0, le=MOST)


class Failure(Event):
    """A unit of work did not succeed.

    Attributes
    ----------
    step, shard, part
        Which unit; shard and part are 0 where there is none yet. Without a step it is that of the stage.
    run
        How often the unit has been replayed, so that what an earlier run did is known from what this one does.
    code, message
        Why: stable for programs, and for people.
    """

    stage: Stage
    step: Step | None = None
    shard: int = Field(ge=0, le=MOST)
    part: int = Field(ge=0, le=MOST)
    run: int = Field(0, ge=0, le=MOST)
    code: str
    message: str
    failed_at: AwareDatetime


class UnitRetryScheduled(Failure):
    """A unit of work has failed for a passing reason, and will be tried again.

    Attributes
    ----------
    parts
        How many parts its shard has, where that is known.
    attempt, attempts
        The attempt that failed, counted from 1, and how many there are in all.
    retry_at
        When it will be tried again; never before.
    """

    kind: Literal["unit_retry_scheduled"] = "unit_retry_scheduled"
    parts: int | None = Field(None, ge=1, le=MOST)
    attempt: int = Field(ge=1, le=MOST)
    attempts: int = Field(ge=1, le=MOST)
    retry_at: AwareDatetime


class DeadLetter(BaseModel):
    """Where a dead letter lies in Kafka."""

    model_config = ConfigDict(frozen=True)

    topic: str
    partition: int = Field(ge=0, le=MOST)
    offset: int = Field(ge=0)


class UnitFailed(Failure):
    """A unit of work has ended for good without success.

    Attributes
    ----------
    dead_letter
        The record, kept for people and for a replay.
    """

    kind: Literal["unit_failed"] = "unit_failed"
    dead_letter: DeadLetter | None = None


TaskEvent = Annotated[
    DocumentPlanned | ShardExtracted | PartEmbedded | PartIndexed | UnitRetryScheduled | UnitFailed,
    Field(discriminator="kind"),
]
TASK_EVENT: TypeAdapter[TaskEvent] = TypeAdapter(TaskEvent)
"""Decodes what travels on `task.events`."""


class TaskUpdated(Event):
    """A task's new state, whole, for whoever watches it.

    Attributes
    ----------
    version
        Grows with every change of the task.
    stages
        By stage: started, finished, done, total.
    """

    version: int = Field(ge=1)
    status: str
    progress: int = Field(ge=0, le=100)
    message: str
    retry_count: int = Field(0, ge=0)
    next_retry_at: AwareDatetime | None = None
    stages: dict[str, dict[str, Any]]
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


def document_id(owner: str, sha256: str) -> UUID:
    """Return the identity of a document: the same content of the same owner is the same document."""
    return uuid5(_DOCUMENTS, f"{owner}/{sha256}")


def chunk_id(task: UUID, model: str, shard: int, part: int, n: int) -> UUID:
    """Return the identity of a task's chunk, so that indexing it twice leaves it there once."""
    return uuid5(task, f"{model}/{shard}/{part}/{n}")


def part_weight(pages: int, parts: int, part: int) -> int:
    """Return a part's share of its shard's pages; the shares of all parts sum up exactly to the shard."""
    whole = pages * PAGE_WEIGHT
    return whole * (part + 1) // parts - whole * part // parts
