"""What can go wrong, and what follows from it.

The class of an error carries the policy. `TransientError`, and anything unknown, is worth another try later;
`PermanentError` is not, however often it is tried. Every class has a stable `code`, which the API, the dead
letters and the metrics show; messages are for people and may change.
"""

from datetime import timedelta
from typing import ClassVar


class PaperlaneError(Exception):
    """Base of the errors that this project raises on purpose."""

    code: ClassVar[str] = "internal_error"


class TransientError(PaperlaneError):
    """Trying again later may help.

    Parameters
    ----------
    message
        What happened, for people.
    retry_after
        The earliest time from now at which a provider wants to be asked again, where it said so.
    """

    code = "temporarily_unavailable"

    def __init__(self, message: str, *, retry_after: timedelta | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DependencyUnavailableError(TransientError):
    """A server that this service needs does not answer."""

    code = "dependency_unavailable"


class RateLimitedError(TransientError):
    """A provider asked for fewer requests."""

    code = "rate_limited"


class DeadlineExceededError(TransientError):
    """A unit of work took longer than it may."""

    code = "deadline_exceeded"


class WorkerLostError(TransientError):
    """A child process died for a reason that does not lie in the document."""

    code = "worker_lost"


class PermanentError(PaperlaneError):
    """Trying again cannot help."""

    code = "permanent_failure"


class DocumentError(PermanentError):
    """The document itself is at fault, so that no other document is in danger."""

    code = "document_refused"


class NotAPdfError(DocumentError):
    """The content is no PDF, whatever its name says."""

    code = "not_a_pdf"


class CorruptPdfError(DocumentError):
    """A PDF that no engine can open or read."""

    code = "pdf_corrupt"


class EncryptedPdfError(DocumentError):
    """A PDF that opens only with a password."""

    code = "pdf_encrypted"


class EmptyPdfError(DocumentError):
    """A PDF without a single page."""

    code = "pdf_without_pages"


class PdfLimitError(DocumentError):
    """A PDF that needs more memory or time than a document may take, such as a decompression bomb."""

    code = "pdf_limit_exceeded"


class EmbeddingRejectedError(PermanentError):
    """The provider refuses the request itself: a bad key, an unknown model, an invalid input."""

    code = "embedding_rejected"


class EmbeddingMismatchError(PermanentError):
    """The provider answered with another count or dimension than was asked for."""

    code = "embedding_mismatch"


class UndecodableRecordError(PermanentError):
    """A Kafka record that is not an event of a known schema version."""

    code = "record_undecodable"


class RecordTooLargeError(PermanentError):
    """A Kafka record that is larger than its topic takes."""

    code = "record_too_large"


MAX_MESSAGE_CHARACTERS = 2_000
"""Enough for any message meant for people. A provider may echo a whole request, and a Kafka record has a limit."""


def error_message(error: BaseException) -> str:
    """Return the text of any error so that JSON, Kafka and PostgreSQL take it: bounded, valid UTF-8, without NUL."""
    text = str(error)[:MAX_MESSAGE_CHARACTERS] or type(error).__name__
    return text.encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def error_code(error: BaseException) -> str:
    """Return the stable code of any error; one that is not ours is an `internal_error`."""
    return error.code if isinstance(error, PaperlaneError) else PaperlaneError.code
