"""The examples that OpenAPI shows are answers that the API can give."""

import pytest
from pydantic import BaseModel

from services.gateway import examples
from services.gateway.handlers import Accepted, Deleted, TaskPage
from services.gateway.health import Health
from services.gateway.search import Found
from services.gateway.stats import Stats
from shared.tasks import Task


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (Accepted, examples.ACCEPTED),
        (Task, examples.TASK),
        (TaskPage, examples.TASK_PAGE),
        (Found, examples.FOUND),
        (Stats, examples.STATS),
        (Deleted, examples.DELETED),
        (Health, examples.HEALTH),
    ],
)
def test_an_example_is_a_whole_and_valid_answer(model: type[BaseModel], example: dict[str, object]) -> None:
    assert model.model_validate(example).model_dump(mode="json") == example
