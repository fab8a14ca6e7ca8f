"""The answer to `/health`: one line for every component that an upload needs on its way."""

from pydantic import BaseModel

from shared.blobs import BlobStore
from shared.database.pool import Pool, ping
from shared.errors import DependencyUnavailableError
from shared.stages import StageState, StageWatch


class Component(BaseModel):
    """One part of the service."""

    name: str
    ok: bool
    detail: str


class Health(BaseModel):
    """All of it; `ok` only where every component is."""

    ok: bool
    components: list[Component]


async def check_health(pool: Pool, blobs: BlobStore, watch: StageWatch) -> Health:
    """Ask every component; none that is away makes this raise."""
    database, blob_store = await ping(pool), await blobs.ping()
    components = [
        Component(name="database", ok=database, detail="answers" if database else "does not answer"),
        Component(name="blobs", ok=blob_store, detail="answers" if blob_store else "does not answer"),
        *await _broker_and_stages(watch),
    ]
    return Health(ok=all(component.ok for component in components), components=components)


async def _broker_and_stages(watch: StageWatch) -> list[Component]:
    try:
        stages = await watch.observe()
    except DependencyUnavailableError as error:
        return [Component(name="broker", ok=False, detail=str(error))]
    return [
        Component(name="broker", ok=True, detail="answers"),
        *(_stage(name, state) for name, state in stages.items()),
    ]


def _stage(name: str, state: StageState) -> Component:
    work = f"{state.members} consumers, {state.waiting} records waiting"
    if not state.members:
        return Component(name=name, ok=False, detail=f"no consumer is running; {state.waiting} records waiting")
    if state.stuck:
        return Component(name=name, ok=False, detail=f"stands still: {work}")
    return Component(name=name, ok=True, detail=work)
