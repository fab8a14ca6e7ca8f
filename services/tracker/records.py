"""What the tracker tells others of a task, as records."""

from shared.kafka import Outgoing
from shared.tasks import TaskRow, canceled, completed, update_of
from shared.topics import DOCUMENTS_COMPLETED, TASK_CONTROL, TASK_UPDATES


def update(task: TaskRow) -> Outgoing:
    """Tell the watchers of its new state."""
    return Outgoing.of(TASK_UPDATES.name, str(task.task_id), update_of(task))


def cancellation(task: TaskRow) -> Outgoing:
    """Tell the workers that it is canceled, and the indexer to remove what it has in the index."""
    return Outgoing.of(TASK_CONTROL.name, str(task.task_id), canceled(task))


def retirement(task: TaskRow) -> Outgoing:
    """Tell the indexer that it is its document's newest complete version, so that older ones may go."""
    return Outgoing.of(DOCUMENTS_COMPLETED.name, str(task.document_id), completed(task))
