"""Cores and processes there are; apart, so that to ask costs a command's start nothing."""

import os


def usable_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processes() -> int:
    """How many processes ``torchrun`` has started for this run; 1 without it."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_first() -> bool:
    """Whether this process is the one of them that writes files and shows results."""
    return processes() == 1 or int(os.environ.get("RANK") or 0) == 0
