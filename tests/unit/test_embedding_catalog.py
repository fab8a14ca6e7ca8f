import subprocess
import sys

import pytest
from pydantic import SecretStr

from shared.embedding import EmbedderConfigError, catalog, create_embedder, embedding_dimension, model_name
from shared.embedding.catalog import LocalSpec
from shared.settings import EmbeddingSettings


def openai(model: str | None = None, dim: int | None = None) -> EmbeddingSettings:
    return EmbeddingSettings(
        embedder="openai", embedding_model=model, embedding_dim=dim, openai_api_key=SecretStr("sk-x")
    )


def local(model: str | None = None, dim: int | None = None) -> EmbeddingSettings:
    return EmbeddingSettings(embedder="local", embedding_model=model, embedding_dim=dim)


@pytest.mark.parametrize(
    ("settings", "name", "dimension"),
    [
        (openai(), "text-embedding-3-small", 1536),
        (openai(dim=512), "text-embedding-3-small", 512),
        (openai("text-embedding-3-large"), "text-embedding-3-large", 3072),
        (openai("text-embedding-ada-002"), "text-embedding-ada-002", 1536),
        (openai("text-embedding-ada-002", 1536), "text-embedding-ada-002", 1536),
        (openai("nomic-embed-text", 768), "nomic-embed-text", 768),
    ],
)
def test_openai_models_are_known_by_name(settings: EmbeddingSettings, name: str, dimension: int) -> None:
    assert model_name(settings) == name
    assert embedding_dimension(settings) == dimension


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (openai("nomic-embed-text"), "dimension of nomic-embed-text is not known: set EMBEDDING_DIM"),
        (openai(dim=2000), "EMBEDDING_DIM=2000, but text-embedding-3-small has at most 1536"),
        (openai("text-embedding-ada-002", 512), "text-embedding-ada-002 has exactly 1536"),
        (local("bge-small"), "EMBEDDING_MODEL=bge-small is no local model: use wordllama-l2-supercat-256 or minilm"),
    ],
)
def test_settings_that_cannot_work_say_what_would(settings: EmbeddingSettings, message: str) -> None:
    with pytest.raises(EmbedderConfigError, match=message):
        embedding_dimension(settings)
    with pytest.raises(EmbedderConfigError, match=message):
        create_embedder(settings)


HERE = LocalSpec("wordllama-l2-supercat-256", 256, ("json",))
ABSENT = LocalSpec("minilm-l6-v2-int8", 384, ("no_such_package", "nor_this"))


@pytest.mark.parametrize("models", [(HERE, ABSENT), (ABSENT, HERE)])
def test_the_first_local_model_that_is_installed_is_the_default(
    models: tuple[LocalSpec, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "LOCAL_MODELS", models)
    assert model_name(local()) == HERE.name
    assert embedding_dimension(local(dim=256)) == 256
    with pytest.raises(EmbedderConfigError, match="EMBEDDING_DIM=384, but wordllama-l2-supercat-256 has 256"):
        embedding_dimension(local(dim=384))


def test_without_any_local_model_the_ways_out_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "LOCAL_MODELS", (ABSENT,))
    for settings in (local(), local(ABSENT.name)):
        with pytest.raises(EmbedderConfigError, match=r"needs the packages no_such_package, nor_this.*EMBEDDER=openai"):
            model_name(settings)


def test_what_is_not_configured_is_not_imported() -> None:
    code = (
        "import sys; from shared.embedding import *; from shared.settings import EmbeddingSettings as S;"
        "embedding_dimension(S(embedder='local')); create_embedder(S(embedder='local'));"
        "print([m for m in ('openai', 'wordllama', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
