"""What an embedder is: texts in, unit vectors out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.errors import PermanentError


class EmbedderConfigError(PermanentError):
    """The embedding settings contradict each other or this installation."""

    code: ClassVar[str] = "embedder_misconfigured"


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The vectors of some texts.

    Attributes
    ----------
    vectors
        Shape (len(texts), dimension), float32. Each row has length 1, or 0 where the text has no content at all.
    tokens
        How many tokens the texts came to, as the model or the provider counts them; 0 where it does not.
    """

    vectors: NDArray[np.float32]
    tokens: int


class Embedder(Protocol):
    """Turns texts into vectors. Safe to call from any number of tasks of one event loop at once."""

    model: str
    dimension: int

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Embed texts, in their order.

        Raises
        ------
        TransientError
            The provider is away, slow or wants fewer requests.
        PermanentError
            The provider refuses these texts or answers nonsense.
        """
        ...

    async def aclose(self) -> None:
        """Release threads and connections."""
        ...


def normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the rows at length 1; a row of zeros stays as it is."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units: NDArray[np.float32] = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return units
