"""The results as a page for people."""

from collections.abc import Iterable, Iterator, Mapping
from statistics import median

from bench.freshness import Freshness
from bench.latency import Latency
from bench.results import Conditions, Results
from bench.stats import Spread
from bench.throughput import Run, Throughput, Workload

AIM = 0.7
"""Share of the bare loop's pages per second and core that the whole pipeline is to reach."""

INTRODUCTION = """\
# Performance

Written by `make bench`, on the stack of `paperlane up`: Apache Kafka, PostgreSQL with pgvector and one process of each
service, all on one machine, together with the client that measures. The raw figures are in `bench/results.json`.
"""

CONDITIONS = """
`{command}`, {date:%Y-%m-%d %H:%M} UTC; {cores} cores of {processor}, {memory_gib} GiB, {system}, Python {python};
load average before the start {load}.
"""

LATENCY = """
## Latency

{uploads} one-page PDFs, one after another with random pauses, on a stack that does nothing else: from just before the
upload's request until the client has the event `complete`, when the page can be searched. Each stage stamps the start
and the end of its work, so what lies between two stages is transport: encoding, publishing, Kafka, consuming, decoding.
The tracker stamps its fold before it writes; the commit, publishing and the event stream are in the last hop.
Percentiles of a round, medians of {rounds} rounds.

| ms | p50 | p95 | p99 |
|---|---|---|---|
{rows}
"""

FRESHNESS = """
## Freshness

How far a watching client lags behind the work: from the moment at which a stage has finished a unit (a shard of pages,
a part of chunks), as the database has it afterwards, to the arrival of the first event that counts it. Publishing, the
tracker's commit and the event stream are all in it. Percentiles of a round, medians of {rounds} rounds.

| ms | units | events | p50 | p95 | p99 |
|---|---|---|---|---|---|
{rows}
"""

THROUGHPUT = """
## Throughput

The whole stack against a bare loop: one process that parses, embeds and inserts the same files one after another, with
the pipeline's own code, options and batch sizes (`bench/loop.py`), but without HTTP, Kafka, child processes, progress
and recovery. Small: {small} documents of {each} pages. Large: {large} documents of {pages:,} pages together. Every
round of either side begins with an empty table. The stack's time runs from the first request to the last `complete`.
Cores used are the processor seconds of all processes that take part, servers and child processes included and the
measuring client not, by wall time. Medians of {rounds} rounds, in which stack and loop took turns.

| | documents/s | pages/s | cores used | pages/s per core |
|---|---|---|---|---|
{sides}

Per core used, the pipeline reaches **{small_share:.0%}** of the loop on small documents and **{large_share:.0%}** on
large ones; the aim is {aim:.0%}. Where the processor time goes, in seconds per 1,000 pages:

{costs}

What the loop does not have is what the difference is made of. A document costs seven records or more on Kafka, a
database row with its history, an HTTP request and an event stream, however few its pages are, which weighs on short
documents. On long ones it is the way of text and vectors through Kafka twice, and the report of every part. For
that, the work spreads over cores and machines, survives the death of any part, and shows where it is.
"""


def page(results: Results) -> str:
    """Return what was measured as Markdown."""
    return INTRODUCTION + "".join(_sections(results))


def _sections(results: Results) -> Iterator[str]:
    if results.latency:
        yield _latency(results.latency) + _conditions(results.conditions["latency"])
    if results.freshness:
        yield _freshness(results.freshness) + _conditions(results.conditions["freshness"])
    if results.throughput:
        yield _throughput(results.throughput) + _conditions(results.conditions["throughput"])


def _conditions(here: Conditions) -> str:
    return CONDITIONS.format(**here.model_dump())


def _latency(latency: Latency) -> str:
    spreads = {"**upload to `complete`**": latency.total, "upload to its answer": latency.accepted, **latency.hops}
    rows = (_row(name, _spread(one)) for name, one in spreads.items())
    return LATENCY.format(uploads=latency.uploads, rounds=latency.rounds, rows="\n".join(rows))


def _freshness(freshness: Freshness) -> str:
    idle, load = freshness.idle, freshness.load
    names = (f"one document of {idle.pages:,} pages", f"{load.documents} documents at once")
    rows = (
        _row(name, [f"{lag.units:,}", f"{lag.events:,}", *_spread(lag.lag)])
        for name, lag in zip(names, (idle, load), strict=True)
    )
    return FRESHNESS.format(rounds=freshness.rounds, rows="\n".join(rows))


def _throughput(throughput: Throughput) -> str:
    small, large = throughput.small, throughput.large
    workloads = {"small": small, "large": large}
    return THROUGHPUT.format(
        small=small.documents,
        each=small.pages // small.documents,
        large=large.documents,
        pages=large.pages,
        rounds=len(small.rounds),
        sides="\n".join(_side(name, one, side) for name, one in workloads.items() for side in ("stack", "loop")),
        small_share=small.efficiency,
        large_share=large.efficiency,
        aim=AIM,
        costs="\n".join(_costs(workloads)),
    )


def _side(name: str, workload: Workload, side: str) -> str:
    runs = _runs(workload, side)
    return _row(
        f"{name}, {side}",
        [
            f"{median(workload.documents / run.seconds for run in runs):,.1f}",
            f"{median(run.pages_per_second for run in runs):,.0f}",
            f"{median(run.cores for run in runs):.2f}",
            f"{median(run.pages_per_core_second for run in runs):,.0f}",
        ],
    )


def _costs(workloads: Mapping[str, Workload]) -> Iterator[str]:
    for side in ("stack", "loop"):
        names = list(_runs(workloads["small"], side)[0].cpu)
        yield _row(side, [*names, "all"])
        yield "|---" * (len(names) + 2) + "|"
        for title, workload in workloads.items():
            runs = _runs(workload, side)
            yield _row(title, [*(_cost(runs, [name]) for name in names), _cost(runs, names)])
        if side == "stack":
            yield ""


def _runs(workload: Workload, side: str) -> list[Run]:
    return [one.stack if side == "stack" else one.loop for one in workload.rounds]


def _cost(runs: Iterable[Run], names: Iterable[str]) -> str:
    wanted = set(names)
    used = [(sum(seconds for name, seconds in run.cpu.items() if name in wanted), run.pages) for run in runs]
    return f"{median(1000 * seconds / pages for seconds, pages in used):.2f}"


def _spread(one: Spread) -> list[str]:
    return [f"{value:,.1f}" for value in (one.p50, one.p95, one.p99)]


def _row(name: str, cells: Iterable[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"
