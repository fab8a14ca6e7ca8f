import asyncio
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.embedding import Embedder, create_embedder
from shared.embedding.catalog import LOCAL_MODELS, WORDLLAMA, LocalSpec
from shared.embedding.local import StaticModel
from shared.settings import EmbeddingSettings


@pytest.fixture(params=LOCAL_MODELS, ids=lambda spec: spec.name)
async def embedder(request: pytest.FixtureRequest) -> AsyncIterator[Embedder]:
    spec: LocalSpec = request.param
    if not spec.installed():
        pytest.skip(f"{spec.name} needs the packages {', '.join(spec.packages)}")
    made = create_embedder(EmbeddingSettings(embedder="local", embedding_model=spec.name))
    yield made
    await made.aclose()


PAIRS = (
    ("How do I reset my password?", "To choose a new password, open your account's security page."),
    ("symptoms of influenza", "The flu brings fever, a cough and aching muscles."),
    ("when does the train leave", "Departures: the railway runs every hour from platform two."),
    ("invoice payment terms", "The bill is due within thirty days of its date."),
)


async def test_a_query_is_most_like_the_passage_that_answers_it(embedder: Embedder) -> None:
    queries = (await embedder.embed([query for query, _ in PAIRS])).vectors
    passages = (await embedder.embed([passage for _, passage in PAIRS])).vectors
    similarity = queries @ passages.T
    assert similarity.argmax(axis=1).tolist() == [0, 1, 2, 3]
    others = similarity[~np.eye(4, dtype=bool)]
    assert similarity.diagonal().min() > 0.25 > others.mean()


async def test_vectors_have_length_one_and_count_their_tokens(embedder: Embedder) -> None:
    result = await embedder.embed(["one", "two words", "three short words"])
    assert result.vectors.shape == (3, embedder.dimension)
    assert result.vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(result.vectors, axis=1), 1, atol=1e-6)
    assert result.tokens >= 6


async def test_a_text_without_content_is_a_row_of_zeros(embedder: Embedder) -> None:
    result = await embedder.embed(["", "text", ""])
    assert np.linalg.norm(result.vectors, axis=1).round(6).tolist() == [0, 1, 0]
    assert (await embedder.embed([])).vectors.shape == (0, embedder.dimension)
    assert (await embedder.embed([""])).vectors.tolist() == [[0] * embedder.dimension]


async def test_the_end_of_a_long_text_counts(embedder: Embedder) -> None:
    start = "The committee met on Tuesday to talk about the budget. " * 60
    whole = start + "Elephants live in the savannah and eat grass. " * 60
    vectors = (await embedder.embed([start, whole, "Elephants eat grass in the savannah."])).vectors
    assert vectors[1] @ vectors[2] > vectors[0] @ vectors[2] + 0.2


async def test_a_vector_does_not_depend_on_its_neighbours(embedder: Embedder) -> None:
    texts = [passage * n for n, (_, passage) in enumerate(PAIRS, 1)]
    together = (await embedder.embed(texts)).vectors
    alone = [(await embedder.embed([text])).vectors[0] for text in texts]
    assert together.tobytes() == np.stack(alone).tobytes()


async def test_callers_at_the_same_time_each_get_their_own(embedder: Embedder) -> None:
    texts = [text for pair in PAIRS for text in pair]
    results = await asyncio.gather(*(embedder.embed([text]) for text in texts))
    expected = (await embedder.embed(texts)).vectors
    assert np.concatenate([result.vectors for result in results]).tobytes() == expected.tobytes()


needs_wordllama = pytest.mark.skipif(not WORDLLAMA.installed(), reason="wordllama has no wheel for this platform")


@needs_wordllama
async def test_the_event_loop_stays_responsive_at_work() -> None:
    embedder = create_embedder(EmbeddingSettings(embedder="local", embedding_model=WORDLLAMA.name))
    work = asyncio.create_task(embedder.embed(["a sentence of some words, " * 30] * 1500))
    turns = 0
    longest = 0.0
    while not work.done():
        before = time.perf_counter()
        await asyncio.sleep(0)
        longest = max(longest, time.perf_counter() - before)
        turns += 1
    await embedder.aclose()
    assert turns > 100
    assert longest < 0.5  # 2 ms where nothing else runs; a Kafka session lasts 10 s


@pytest.fixture(scope="module")
def static_model() -> StaticModel:
    return StaticModel()


@needs_wordllama
@settings(deadline=None)  # a busy machine is no failure
@given(texts=st.lists(st.text(max_size=60), min_size=1, max_size=6))
def test_the_static_model_averages_the_rows_of_all_tokens(static_model: StaticModel, texts: list[str]) -> None:
    result = static_model.encode(texts)
    for text, row in zip(texts, result.vectors, strict=True):
        ids = static_model._tokenizer.encode(text, add_special_tokens=False).ids
        np.testing.assert_allclose(row, static_model._table[ids].astype(np.float64).sum(axis=0), atol=1e-3)


@needs_wordllama
def test_the_names_of_special_tokens_in_a_text_are_plain_text(static_model: StaticModel) -> None:
    assert static_model.encode(["</s>"]).tokens > 1
