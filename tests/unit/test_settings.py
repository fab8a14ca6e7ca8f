from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_settings import BaseSettings

from services.embedder.config import EmbedderSettings
from services.gateway.config import GatewaySettings
from services.indexer.config import IndexerSettings
from services.parser.config import ParserSettings
from services.parser.handlers import BATCH
from services.tracker.config import TrackerSettings
from shared.broker import MAX_POLL_INTERVAL
from shared.deadline import CLEANUP_TIMEOUT
from shared.settings import DatabaseSettings, EmbeddingSettings, KafkaSettings, LogSettings

SERVICES: list[type[BaseSettings]] = [
    GatewaySettings,
    ParserSettings,
    EmbedderSettings,
    IndexerSettings,
    TrackerSettings,
]
NEEDED = {"DATABASE_URL": "postgresql://user:secret@db:5432/paperlane", "BLOB_URL": "file:///blobs"}


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Take away what the environment of the tests sets, and any .env file."""
    monkeypatch.chdir(tmp_path)
    for service in SERVICES:
        for name in service.model_fields:
            monkeypatch.delenv(name.upper(), raising=False)
            monkeypatch.delenv(name, raising=False)
    return monkeypatch


def given(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.__module__.split(".")[1])
def test_a_service_runs_on_the_database_and_the_blobs_alone(
    bare: pytest.MonkeyPatch, service: type[BaseSettings]
) -> None:
    given(bare, **NEEDED)
    settings = service()
    assert settings.model_dump()["kafka_bootstrap_servers"] == "127.0.0.1:9092"


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.__module__.split(".")[1])
def test_every_setting_has_a_title_and_a_description_for_the_reference(service: type[BaseSettings]) -> None:
    for name, field in service.model_fields.items():
        assert field.title, name
        assert field.description, name
        assert field.description.endswith("."), name


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValidationError, match="database_url\n  Field required"):
        DatabaseSettings()


def test_the_environment_wins_over_the_env_file(bare: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("TOPIC_PARTITIONS=3\nLOG_LEVEL=DEBUG\nOTHER_TOOL=1\n")
    given(bare, TOPIC_PARTITIONS="5")
    assert KafkaSettings().topic_partitions == 5
    assert LogSettings().log_level == "DEBUG"


def test_an_empty_variable_is_not_set(bare: pytest.MonkeyPatch) -> None:
    given(bare, TOPIC_PARTITIONS="", EMBEDDING_MODEL="", OPENAI_API_KEY="")
    assert KafkaSettings().topic_partitions == 8
    assert EmbeddingSettings().embedding_model is None


def test_passwords_are_not_shown(bare: pytest.MonkeyPatch) -> None:
    given(bare, **NEEDED, OPENAI_API_KEY="sk-secret")
    settings = GatewaySettings()
    assert "secret" not in f"{settings!r} {settings} {settings.model_dump()}"
    assert settings.database_url.get_secret_value() == NEEDED["DATABASE_URL"]


def test_settings_do_not_change_while_a_service_runs() -> None:
    settings = KafkaSettings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.topic_partitions = 9  # type: ignore[misc]  # what must not work


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("TOPIC_PARTITIONS", "0", "greater than or equal to 1"),
        ("TOPIC_PARTITIONS", "many", "valid integer"),
        ("DATABASE_POOL_SIZE", "1", "greater than or equal to 2"),
        ("LOG_LEVEL", "LOUD", "'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
        ("LOG_FORMAT", "xml", "'auto', 'json' or 'text'"),
        ("EMBEDDER", "magic", "'local' or 'openai'"),
        ("EMBEDDING_DIM", "4001", "less than or equal to 4000"),
        ("EMBEDDING_TIMEOUT", "5m", "a number of seconds, such as 15 or 0.5"),
        ("EMBEDDING_TIMEOUT", "0", "greater than"),
        ("VECTOR_STORE", "faiss", "pgvector"),
        ("MAX_UPLOAD_BYTES", "0", "greater than or equal to 1"),
        ("SSE_HEARTBEAT", "soon", "a number of seconds"),
        ("SSE_HEARTBEAT", "-1", "greater than"),
        ("SSE_HEARTBEAT", "inf", "a number of seconds"),
        ("SSE_HEARTBEAT", "nan", "a number of seconds"),
        ("RETRY_DELAYS", "60;120", "'60;120' is wrong: give whole seconds above 0, separated by commas"),
        ("RETRY_DELAYS", "60,0", "'0' is wrong: give whole seconds above 0"),
        ("RETRY_DELAYS", "²", "'²' is wrong"),
        ("RETRY_DELAYS", "-60", "'-60' is wrong"),
        ("RETRY_DELAYS", "60,86401", "86401 s is too long: give 86400, a day, at most"),
        ("RETRY_DELAYS", ",".join(["60"] * 21), "more than 20 delays are too many"),
        ("RETRY_DELAYS", "base=60,factor=2", "must name base, factor and count, each once: give .* base=60,factor=2"),
        ("RETRY_DELAYS", "base=60,factor=2,count=3,count=4", "each once"),
        ("RETRY_DELAYS", "base=60,factor=2,times=3", "base=60, factor=2, times=3 must name base, factor and count"),
        ("RETRY_DELAYS", "60,factor=2,count=3", "each once"),
        ("RETRY_DELAYS", "base=60,factor=1.5,count=3", "'1.5' is wrong: give whole seconds above 0"),
        ("RETRY_DELAYS", "base=60,factor=2,count=1000000000", "more than 20 delays are too many"),
        ("RETRY_DELAYS", "base=60,factor=2,count=12", "122880 s is too long"),
        ("RETRY_JITTER", "1.1", "less than or equal to 1"),
        ("RETRY_JITTER", "-0.1", "greater than or equal to 0"),
    ],
)
def test_a_wrong_value_is_refused_with_what_would_be_right(
    bare: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    given(bare, **NEEDED | {name: value})
    with pytest.raises(ValidationError, match=reason) as caught:
        GatewaySettings()
    assert [error["loc"] for error in caught.value.errors()] == [(name.lower(),)]


@pytest.mark.parametrize(
    ("text", "wait"),
    [
        ("20", timedelta(seconds=20)),
        ("0.25", timedelta(milliseconds=250)),
    ],
)
def test_times_are_written_in_seconds(bare: pytest.MonkeyPatch, text: str, wait: timedelta) -> None:
    given(bare, **NEEDED, SSE_HEARTBEAT=text, PARSER_TIMEOUT=text, UNIT_TIMEOUT="0.1")
    assert GatewaySettings().sse_heartbeat == wait
    assert ParserSettings().options.timeout == wait


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5", [5]),
        ("1, 2,3", [1, 2, 3]),
        ("60,60", [60, 60]),
        ("", [60, 120, 240]),
        (",", list[int]()),
        ("base=60,factor=2,count=3", [60, 120, 240]),
        (" count = 2, base = 5 , factor = 1 ", [5, 5]),
    ],
)
def test_retry_delays_are_seconds_one_by_one_or_a_series(
    bare: pytest.MonkeyPatch, text: str, seconds: list[int]
) -> None:
    given(bare, RETRY_DELAYS=text)
    assert KafkaSettings().retry_delays == tuple(timedelta(seconds=each) for each in seconds)


@pytest.mark.parametrize("unit", ["300", "270.5"])
def test_a_child_is_killed_only_after_its_unit_could_stop_by_itself(bare: pytest.MonkeyPatch, unit: str) -> None:
    given(bare, **NEEDED, PARSER_TIMEOUT="270.5", UNIT_TIMEOUT=unit)
    with pytest.raises(ValidationError, match=rf"PARSER_TIMEOUT=270\.5 must be longer than UNIT_TIMEOUT={unit}"):
        ParserSettings()


def test_the_longest_batch_stays_within_the_time_that_a_consumer_may_take(bare: pytest.MonkeyPatch) -> None:
    given(bare, **NEEDED, PARSER_TIMEOUT="3601")
    with pytest.raises(ValidationError, match="less than or equal to 1 hour"):
        ParserSettings()
    steps = 2  # of the parser, each with a batch of its own, which may have to go through one child
    assert steps * BATCH * (timedelta(hours=1) + CLEANUP_TIMEOUT) < MAX_POLL_INTERVAL


def test_a_wrong_setting_shows_no_password_of_another(bare: pytest.MonkeyPatch) -> None:
    given(bare, **NEEDED, EMBEDDER="openai")
    with pytest.raises(ValidationError, match="OPENAI_API_KEY") as caught:
        GatewaySettings()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("GRACE_PERIOD", "0", "greater than"),
        ("DEAD_LETTER_CAP", "0", "greater than 0"),
        ("DEAD_LETTER_CAP", "1.5", "less than or equal to 1"),
        ("STALL_LIMIT", "270", "STALL_LIMIT=270 must be longer than UNIT_TIMEOUT=270, the time of one unit"),
    ],
)
def test_what_a_worker_cannot_work_with_is_refused(
    bare: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    given(bare, **{name: value})
    with pytest.raises(ValidationError, match=reason):
        EmbedderSettings()


def test_a_worker_waits_longer_for_a_stall_than_for_a_unit_by_default(bare: pytest.MonkeyPatch) -> None:
    settings = EmbedderSettings()
    assert settings.stall_limit > settings.unit_timeout + CLEANUP_TIMEOUT
    assert 2 * settings.stall_limit < MAX_POLL_INTERVAL


def test_openai_needs_a_key(bare: pytest.MonkeyPatch) -> None:
    given(bare, EMBEDDER="openai")
    with pytest.raises(ValidationError, match="EMBEDDER=openai needs OPENAI_API_KEY"):
        EmbeddingSettings()
    given(bare, OPENAI_API_KEY="none", OPENAI_BASE_URL="http://localhost:11434/v1")
    assert EmbeddingSettings().openai_base_url == "http://localhost:11434/v1"


def test_the_parsers_settings_become_the_options_of_its_children(bare: pytest.MonkeyPatch) -> None:
    given(bare, **NEEDED, PARSER_ENGINE="pypdf", PARSER_WORKERS="3", PARSER_MEMORY_LIMIT_MB="512")
    given(bare, CHUNK_SIZE="500", CHUNK_OVERLAP="50")
    options = ParserSettings().options
    assert (options.engine, options.workers, options.memory_limit) == ("pypdf", 3, 512 * 1024 * 1024)
    assert (options.chunk_size, options.chunk_overlap) == (500, 50)


def test_chunks_must_be_longer_than_their_overlap(bare: pytest.MonkeyPatch) -> None:
    given(bare, **NEEDED, CHUNK_SIZE="100", CHUNK_OVERLAP="100")
    with pytest.raises(ValidationError, match="CHUNK_OVERLAP=100 must be less than CHUNK_SIZE=100"):
        ParserSettings()
