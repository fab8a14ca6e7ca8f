from itertools import pairwise
from uuid import UUID, uuid4

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.search import without_doubles
from shared.vectors import Hit

HITS = st.lists(
    st.builds(
        Hit,
        score=st.floats(-1, 1),
        text=st.sampled_from(["one", "two"]),
        filename=st.just("x.pdf"),
        first_page=st.integers(1, 2),
        last_page=st.integers(2, 3),
        document_id=st.sampled_from([UUID(int=1), UUID(int=2)]),
        chunk_id=st.builds(uuid4),
        version=st.integers(1, 3),
    ),
    max_size=30,
)


@given(HITS)
def test_of_each_text_on_the_same_pages_the_newest_stays_and_the_best_comes_first(hits: list[Hit]) -> None:
    def place(hit: Hit) -> tuple[object, ...]:
        return hit.document_id, hit.first_page, hit.last_page, hit.text

    kept = without_doubles(hits)
    assert len({place(hit) for hit in kept}) == len(kept)
    assert {place(hit) for hit in kept} == {place(hit) for hit in hits}
    assert all(one.version == max(hit.version for hit in hits if place(hit) == place(one)) for one in kept)
    assert all(better.score >= worse.score for better, worse in pairwise(kept))
