"""Prometheus metrics of the worker processes; of bounded cardinality, no task is ever a label."""

from prometheus_client import Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds of duration buckets: from one hop of an idle pipeline to a unit's hard deadline."""

RECORDS = Counter("paperlane_records_total", "Records a stage has worked through.", ("stage", "topic", "outcome"))
RECORD_SECONDS = Histogram(
    "paperlane_record_seconds",
    "From taking a record up to the acknowledgement of its outputs.",
    ("stage", "topic"),
    buckets=SECONDS,
)
STAGE_PAUSED = Gauge(
    "paperlane_stage_paused", "1 while a stage takes no batch because too many of its records died.", ("stage", "topic")
)
