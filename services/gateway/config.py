"""The gateway's settings."""

from datetime import timedelta

from pydantic import Field

from shared.settings import BlobSettings, EmbeddingSettings, KafkaSettings, LogSettings, VectorSettings


class GatewaySettings(KafkaSettings, LogSettings, BlobSettings, VectorSettings, EmbeddingSettings):
    """What the gateway needs to know; of the embedding everything, for it embeds what is searched for."""

    max_upload_bytes: int = Field(
        256 * 1024 * 1024, ge=1, title="Upload limit", description="Most bytes of one uploaded file."
    )
    sse_heartbeat: timedelta = Field(
        timedelta(seconds=15),
        title="SSE heartbeat",
        description="Between two signs of life on a silent stream; below the idle timeout of usual proxies, 30-60 s.",
    )
    sse_send_timeout: timedelta = Field(
        timedelta(seconds=30),
        title="SSE send timeout",
        description="After this long without taking a byte a client counts as frozen and is dropped.",
    )
