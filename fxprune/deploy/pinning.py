"""Keeping the process on fixed cores while it measures, where the system lets it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


def usable_cores() -> list[int]:
    """Return the cores that this process may run on; a container may have fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextlib.contextmanager
def pinned(threads: int, wanted: bool) -> Iterator[list[str]]:
    """Keep this thread, and those that it starts, on as many cores as there are threads; give notes on what went wrong.

    The last cores are taken, because the first serve most interrupts. A system that does not allow it is measured on
    unpinned: pinning makes times steadier, not righter.

    Args:
        threads: Cores to stay on.
        wanted: Whether to pin at all.
    """
    cores = usable_cores()
    notes = []
    if threads > len(cores):
        notes.append(f"{threads} threads share {len(cores)} core{'s' if len(cores) > 1 else ''}")
    before = set(cores) if wanted else None
    if before is not None:
        try:
            os.sched_setaffinity(0, cores[-threads:])
        except (AttributeError, OSError) as error:  # no such call on this system, or no permission
            notes.append(f"threads are not pinned to cores: {error}")
            before = None
    try:
        yield notes
    finally:
        if before is not None:
            os.sched_setaffinity(0, before)
