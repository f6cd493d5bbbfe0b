"""L2: what is asked and how it is graded."""

from .registry import list_tasks, load_task

__all__ = ["list_tasks", "load_task"]
