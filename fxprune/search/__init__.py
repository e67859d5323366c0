"""Searching over depth, width and resolution: trials, where they run, and what is made of their results."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fxprune.search.executors import Event, Executor, Workers
from fxprune.search.executors.in_process import InProcess
from fxprune.search.executors.processes import Processes
from fxprune.search.executors.ray_cluster import RayCluster
from fxprune.search.run import run_trials
from fxprune.search.store import Store
from fxprune.search.trials import Trial, TrialResult, Work, digest, parent_folder, parent_weights
from fxprune.search.work import SearchStopped

if TYPE_CHECKING:
    from fxprune.search.fitting import Request
    from fxprune.search.network import Subject
    from fxprune.search.pruning import Choices
    from fxprune.search.saved import load

_HOMES = {
    "Choices": "fxprune.search.pruning",
    "Request": "fxprune.search.fitting",
    "Subject": "fxprune.search.network",
    "load": "fxprune.search.saved",
}

__all__ = [
    "Choices",
    "Event",
    "Executor",
    "InProcess",
    "Processes",
    "RayCluster",
    "Request",
    "SearchStopped",
    "Store",
    "Subject",
    "Trial",
    "TrialResult",
    "Work",
    "Workers",
    "digest",
    "load",
    "parent_folder",
    "parent_weights",
    "run_trials",
]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first used, so that trials are read without it."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fxprune.search' has no attribute {name!r}")
