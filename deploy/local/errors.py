"""The one error of the embedded stack."""

from shared.errors import PaperlaneError


class LocalStackError(PaperlaneError):
    """The stack cannot start or go on; the message says what is wrong and what to do, for people."""

    code = "local_stack_failed"
