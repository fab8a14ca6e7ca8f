import pytest
from prometheus_client import REGISTRY

from shared.breaker import MIN_RECORDS, PAUSE, WINDOW, Breaker, StagePausedError
from shared.errors import EncryptedPdfError, PermanentError, UndecodableRecordError
from shared.topics import CHUNKS_EXTRACTED

DEAD = PermanentError("no such model")
PAUSED = pytest.raises(StagePausedError, match="records became dead letters; the next batch is tried in")


class Seconds:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture
def breaker(seconds: Seconds) -> Breaker:
    return Breaker(CHUNKS_EXTRACTED, 0.5, seconds)


def batch(breaker: Breaker, *, dead: int = 0, good: int = 0, error: Exception = DEAD) -> None:
    with breaker.batch():
        for _ in range(dead):
            breaker.ended(error)
        for _ in range(good):
            breaker.ended()


def break_down(breaker: Breaker, *, dead: int = 0) -> None:
    with breaker.batch():
        for _ in range(dead):
            breaker.ended(DEAD)
        raise OSError("the broker is away")


def gauge() -> float | None:
    return REGISTRY.get_sample_value("paperlane_stage_paused", {"stage": "embed", "topic": "chunks.extracted"})


def test_a_stage_whose_records_die_takes_no_further_batch_and_says_why(breaker: Breaker) -> None:
    batch(breaker, dead=MIN_RECORDS)
    assert breaker.problem() == "paused: 20 of 20 records became dead letters; the next batch is tried in 60 s"
    with PAUSED:
        batch(breaker, good=1)


def test_the_share_must_be_above_the_cap(breaker: Breaker) -> None:
    batch(breaker, dead=10, good=10)
    assert breaker.problem() is None
    batch(breaker, dead=1)
    assert breaker.problem() is not None


def test_a_few_records_are_no_verdict(breaker: Breaker) -> None:
    batch(breaker, dead=MIN_RECORDS - 1)
    batch(breaker, good=0)
    assert breaker.problem() is None


def test_documents_that_are_at_fault_themselves_do_not_count_as_dead(breaker: Breaker) -> None:
    batch(breaker, dead=100, error=EncryptedPdfError("a password"))
    assert breaker.problem() is None


def test_records_that_nobody_can_read_count(breaker: Breaker) -> None:
    batch(breaker, dead=MIN_RECORDS, error=UndecodableRecordError("no event"))
    assert breaker.problem() is not None


def test_only_the_last_minute_counts(breaker: Breaker, seconds: Seconds) -> None:
    batch(breaker, dead=MIN_RECORDS - 1)
    seconds.now += WINDOW.total_seconds() + 1
    batch(breaker, dead=MIN_RECORDS - 1)
    assert breaker.problem() is None
    seconds.now += 1
    batch(breaker, dead=1)
    assert breaker.problem() is not None


def test_after_the_pause_one_batch_is_tried_and_pauses_the_stage_again_at_once_if_it_dies_too(
    breaker: Breaker, seconds: Seconds
) -> None:
    batch(breaker, dead=MIN_RECORDS)
    seconds.now += PAUSE.total_seconds() - 1
    with PAUSED:
        batch(breaker)
    seconds.now += 1
    batch(breaker, dead=1)
    with PAUSED:
        batch(breaker)
    seconds.now += PAUSE.total_seconds()
    batch(breaker, dead=3, good=2)
    with PAUSED:
        batch(breaker)


def test_a_trial_that_goes_well_ends_the_pause_and_what_was_before_is_forgotten(
    breaker: Breaker, seconds: Seconds
) -> None:
    batch(breaker, dead=MIN_RECORDS)
    seconds.now += PAUSE.total_seconds()
    batch(breaker, good=1)
    assert breaker.problem() is None
    batch(breaker, dead=MIN_RECORDS - 2)
    assert breaker.problem() is None


def test_a_stage_for_which_no_batch_comes_is_well_again_in_time_but_still_on_trial(
    breaker: Breaker, seconds: Seconds
) -> None:
    batch(breaker, dead=MIN_RECORDS)
    seconds.now += 2 * PAUSE.total_seconds()
    assert breaker.problem() is not None
    seconds.now += 1
    assert (breaker.problem(), gauge()) == (None, 0)
    batch(breaker, dead=1)
    with PAUSED:
        batch(breaker)


def test_a_trial_that_fails_before_any_record_has_ended_is_no_verdict(breaker: Breaker, seconds: Seconds) -> None:
    batch(breaker, dead=MIN_RECORDS)
    seconds.now += PAUSE.total_seconds()
    with pytest.raises(OSError, match="the broker is away"):
        break_down(breaker)
    assert breaker.problem() is not None
    batch(breaker, good=1)
    assert breaker.problem() is None


def test_dead_letters_of_a_batch_that_fails_count_too(breaker: Breaker) -> None:
    with pytest.raises(OSError, match="the broker is away"):
        break_down(breaker, dead=MIN_RECORDS)
    assert breaker.problem() is not None


def test_a_cap_of_one_never_pauses(seconds: Seconds) -> None:
    breaker = Breaker(CHUNKS_EXTRACTED, 1.0, seconds)
    batch(breaker, dead=1000)
    assert breaker.problem() is None


def test_the_pause_can_be_seen_in_the_metrics(breaker: Breaker, seconds: Seconds) -> None:
    assert gauge() == 0
    batch(breaker, dead=MIN_RECORDS)
    assert gauge() == 1
    seconds.now += PAUSE.total_seconds()
    batch(breaker, good=1)
    assert gauge() == 0


def test_the_last_end_of_a_record_is_known(breaker: Breaker, seconds: Seconds) -> None:
    assert breaker.ended_at < seconds.now
    batch(breaker, good=1)
    assert breaker.ended_at == seconds.now
