"""Named points between two steps, where fault tests end the process."""

from collections.abc import Callable

Checkpoint = Callable[[str], None]


def no_checkpoint(_name: str) -> None:
    """Do nothing."""
