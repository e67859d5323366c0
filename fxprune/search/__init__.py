"""Searching over depth, width and resolution: trials, where they run, and what is made of their results."""

from fxprune.search.executors import Event, Executor, Workers
from fxprune.search.executors.in_process import InProcess
from fxprune.search.executors.processes import Processes
from fxprune.search.executors.ray_cluster import RayCluster
from fxprune.search.run import run_trials
from fxprune.search.store import Store
from fxprune.search.trials import Trial, TrialResult, Work, digest, parent_folder, parent_weights
from fxprune.search.work import SearchStopped

__all__ = [
    "Event",
    "Executor",
    "InProcess",
    "Processes",
    "RayCluster",
    "SearchStopped",
    "Store",
    "Trial",
    "TrialResult",
    "Work",
    "Workers",
    "digest",
    "parent_folder",
    "parent_weights",
    "run_trials",
]
