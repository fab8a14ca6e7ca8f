"""Embeddings from a model in this process, computed beside the event loop.

The static model is a table of one vector per token: a text's vector is the mean of its tokens' rows.
"""

import asyncio
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from shared.embedding.catalog import MINILM, WORDLLAMA, embedding_dimension, local_spec
from shared.embedding.port import Embeddings, normalised
from shared.settings import EmbeddingSettings

_BLOCK = 1024
"""Tokens summed up at once: their rows are 1 MB, which stays in the cache; a whole book's would be gigabytes."""


class LocalModel(Protocol):
    """A loaded model; it blocks, and one thread at a time calls it."""

    name: str
    dimension: int
    slice_characters: int

    def encode(self, texts: Sequence[str]) -> Embeddings:
        """Return the texts' vectors, not yet at length 1."""
        ...


class LocalEmbedder:
    """Runs a model in one thread of its own.

    Work goes there in slices of a few milliseconds: callers take turns, the interpreter's lock is never held for
    long, and a cancelled caller's remaining slices are not computed.

    Parameters
    ----------
    model
        The loaded model.
    """

    def __init__(self, model: LocalModel) -> None:
        self.model = model.name
        self.dimension = model.dimension
        self._model = model
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embedder")

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Embed texts, in their order; see `Embedder`."""
        loop = asyncio.get_running_loop()
        parts = [
            await loop.run_in_executor(self._thread, self._model.encode, part)
            for part in _slices(texts, self._model.slice_characters)
        ]
        if not parts:
            return Embeddings(np.zeros((0, self.dimension), dtype=np.float32), tokens=0)
        vectors = np.concatenate([part.vectors for part in parts])
        return Embeddings(normalised(vectors), sum(part.tokens for part in parts))

    async def aclose(self) -> None:
        """Let the slice in work end, drop what waits behind it."""
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)


class StaticModel:
    """The static vectors of wordllama, read where pip put them: half floats, mapped, so that replicas share them.

    The package itself is not imported: it pulls in what it needs for training and wants to download its files.
    """

    name = WORDLLAMA.name
    dimension = WORDLLAMA.dimension
    slice_characters = 50_000  # 8 ms of work

    def __init__(self) -> None:
        folder = package_folder("wordllama")
        self._tokenizer = load_tokenizer(folder / "tokenizers" / "l2_supercat_tokenizer_config.json")
        self._table = _map_table(folder / "weights" / "l2_supercat_256.safetensors", self.dimension)

    def encode(self, texts: Sequence[str]) -> Embeddings:
        """Sum up the rows of each text's tokens; every token counts, however long the text is.

        No matrix product, though one would do: BLAS takes all cores for it and lets them spin for a while after,
        and rounds a text's sum by its neighbours, so that handling a record twice would not give the same vectors.
        """
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        stops = np.cumsum([len(tokens) for tokens in ids])
        tokens = np.fromiter(chain.from_iterable(ids), dtype=np.int64, count=int(stops[-1]))
        used, columns = np.unique(tokens, return_inverse=True)
        rows = self._table[used].astype(np.float32)  # each half float is widened once a slice
        sums = np.zeros((len(ids), self.dimension), dtype=np.float32)
        for n, of_text in enumerate(np.split(columns, stops[:-1])):
            for start in range(0, len(of_text), _BLOCK):
                sums[n] += rows[of_text[start : start + _BLOCK]].sum(axis=0)
        return Embeddings(sums, len(tokens))


def load_model(settings: EmbeddingSettings) -> LocalModel:
    """Load the configured local model.

    Raises
    ------
    EmbedderConfigError
        The settings do not suit any model that is installed.
    """
    embedding_dimension(settings)  # refuses a wrong EMBEDDING_DIM
    if local_spec(settings) == MINILM:
        from shared.embedding.minilm import MiniLM  # noqa: PLC0415 - its runtime is not installed everywhere

        return MiniLM()
    return StaticModel()


def package_folder(package: str) -> Path:
    """Return where a package lies, without importing it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"The package {package} is not installed")
    return Path(spec.origin).parent


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer that neither pads nor cuts, and takes a special token's name in a text for plain text."""
    # One thread a process: replicas are how this scales, and a second one would take a core from its neighbours.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _map_table(path: Path, dimension: int) -> NDArray[np.float16]:
    """Map the one tensor of a safetensors file: 8 bytes of header length, a JSON header, the numbers."""
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        tensor = json.loads(file.read(header_bytes))["embedding.weight"]
    rows, columns = tensor["shape"]
    if tensor["dtype"] != "F16" or columns != dimension:
        raise ValueError(f"{path} holds {tensor['dtype']} x {columns}, expected F16 x {dimension}")
    offset = 8 + header_bytes + tensor["data_offsets"][0]
    return np.memmap(path, dtype="<f2", mode="r", offset=offset, shape=(rows, columns))


def _slices(texts: Sequence[str], characters: int) -> Iterator[list[str]]:
    """Cut texts into runs that end once they hold so many characters; no text is cut itself."""
    part: list[str] = []
    size = 0
    for text in texts:
        part.append(text)
        size += len(text)
        if size >= characters:
            yield part
            part, size = [], 0
    if part:
        yield part
