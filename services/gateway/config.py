"""The gateway's settings."""

from datetime import timedelta

from pydantic import Field

from shared.settings import BlobSettings, EmbeddingSettings, KafkaSettings, LogSettings, Seconds, VectorSettings


class GatewaySettings(KafkaSettings, LogSettings, BlobSettings, VectorSettings, EmbeddingSettings):
    """What the gateway needs to know; of the embedding everything, for it embeds what is searched for."""

    max_upload_bytes: int = Field(
        256 * 1024 * 1024, ge=1, title="Upload limit", description="Most bytes of one uploaded file."
    )
    sse_heartbeat: Seconds = Field(
        timedelta(seconds=15),
        title="SSE heartbeat",
        gt=timedelta(0),
        description="Seconds between two signs of life on a silent stream; proxies drop idle ones after 30 to 60.",
    )
    sse_send_timeout: Seconds = Field(
        timedelta(seconds=30),
        title="SSE send timeout",
        gt=timedelta(0),
        description="Seconds after which a client that takes no byte counts as frozen and is dropped.",
    )
