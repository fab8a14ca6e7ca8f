"""Many tasks through one stack, bombs among them: memory, descriptors, files and processes stay what they were."""

import random
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path

import psutil

from services.parser.engines import ParserOptions
from shared.database.pool import Pool, acquire
from shared.tasks import FINAL
from tests.faults.documents import Document, bomb, many_shards, mixed
from tests.faults.ledger import Upload
from tests.faults.trial import LONG, Trial
from tests.support.eventually import eventually
from tests.support.footprint import Footprint, children_seen, footprint, slope

TASKS, MANY_TASKS = 150, 1000
"""Of the short version and the long one."""

BATCH = 15
"""Tasks between two looks."""

LONG_ONES = 8
"""Those of a batch that have many shards, so that children come to the end of their units."""

WARM_UP = 3
"""The share of the tasks after which everything has its size, as a divisor. All bombs are among them."""

SERVICE = 192
"""MiB of a service's own process: at rest it has 80 to 115, of which the code and one model are nearly all."""

CHILD = 512
"""MiB of a child between two documents: 45 to 280 are usual, by the largest it has had; its replacement ends that."""

SERVERS = {"kafka": 768, "postgres": 512}
"""MiB: a Java heap of 512, and shared buffers of 128, which both fill up, and what goes with them."""

GROWTH = 16
"""MiB by which a service may have grown at the end. In the long version, 25 KiB that are kept of each task are more."""

MORE_FILES = 8
"""Descriptors that may have been added: a pool of connections opens them as it needs them."""

PARSED = "SELECT count(*) FROM task_units WHERE task_id = ANY($1) AND step = 'parse' AND state = 'done'"

LEFT = "SELECT count(*) FROM tasks WHERE task_id = ANY($1) AND NOT status = ANY($2)"


async def test_many_tasks_leave_everything_as_it_was(trial: Trial) -> None:
    batches = list(batches_of(trial.choice, MANY_TASKS if trial.scale is LONG else TASKS))
    warm, looks = len(batches) // WARM_UP, list[dict[str, Footprint]]()
    await trial.ready(trial.stack.components)
    processes = [(part.name, part.pid) for part in trial.stack.components]

    for batch in batches[:warm]:
        await through(trial, batch)
    files = temporary_files(trial)
    async with children_seen(trial.stack.services["parser"]) as children:
        uploads: list[Upload] = []
        for batch in batches[warm:]:
            uploads += await through(trial, batch)
            looks.append({part.name: footprint(part) for part in trial.stack.components})

    trial.note("many tasks", summary(looks))
    assert [(part.name, part.pid) for part in trial.stack.components] == processes, "a bomb kills a child only"
    assert temporary_files(trial) <= files
    assert not list(chain(*(complaints(name, looks) for name in looks[0])))
    units = await trial.pool.fetchval(PARSED, [upload.task_id for upload in uploads])
    assert len(children) >= units / ParserOptions().max_tasks, "none works on for ever"
    await trial.verdict("many tasks", faults=warm)


def batches_of(choice: random.Random, total: int) -> Iterator[Sequence[Document]]:
    """Yield documents; there is a bomb in each batch of the warm-up."""
    documents = mixed(choice)
    for first in range(0, total, BATCH):
        special = [many_shards(choice.getrandbits(32)) for _ in range(LONG_ONES)]
        if first < total // WARM_UP:
            special.append(bomb(choice.getrandbits(32)))
        yield [*special, *islice(documents, BATCH - len(special))]


async def through(trial: Trial, documents: Sequence[Document]) -> Sequence[Upload]:
    """Upload documents, and wait until all their tasks are over."""
    uploads = await trial.load.upload(documents)
    await eventually(partial(are_over, trial.pool, uploads), trial.scale.patience)
    return uploads


async def are_over(pool: Pool, uploads: Sequence[Upload]) -> None:
    """Assert that tasks are over."""
    async with acquire(pool) as connection:
        left = await connection.fetchval(LEFT, [upload.task_id for upload in uploads], list(FINAL))
    assert not left, f"{left} tasks are not over"


def temporary_files(trial: Trial) -> set[Path]:
    """Return what lies in the folder for temporary files."""
    service = psutil.Process(trial.stack.services["parser"][0].pid)
    return set(Path(service.environ()["TMPDIR"]).rglob("*"))


def complaints(name: str, looks: Sequence[dict[str, Footprint]]) -> Iterator[str]:
    """Say what one part takes too much of, and what of it grows."""
    own = [look[name] for look in looks]
    memory, files = [look.memory for look in own], [look.files for look in own]
    if max(memory) > SERVERS.get(name, SERVICE):
        yield f"{name} takes too much memory: {memory} MiB"
    if name not in SERVERS and slope(enumerate(memory)) * len(memory) > GROWTH:
        yield f"the memory of {name} grows: {memory} MiB"
    if max(files) > files[0] + MORE_FILES:
        yield f"{name} opens more and more files: {files}"
    if any(child > CHILD for look in own for child in look.children):
        yield f"a child of {name} takes too much memory: {[look.children for look in own]} MiB"


def summary(looks: Sequence[dict[str, Footprint]]) -> str:
    """Return each part's memory at the beginning and at the end."""
    first, last = looks[0], looks[-1]
    return ", ".join(f"{name} {first[name].memory:.0f} → {last[name].memory:.0f} MiB" for name in first)
