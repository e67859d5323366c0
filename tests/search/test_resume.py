"""A search that is killed at any moment, and goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from search import works
from search.test_processes import SECONDS, is_alive, wait_until

from fxprune.search import InProcess, Store, run_trials

OPTIONS = {"count": 6, "sleep": 0.06, "steps": 6, "held": 5}  # no search ends before it has been killed
TRIALS = works.trials(**OPTIONS)


def start(folder: Path, executor: str, **options: Any) -> subprocess.Popen[str]:
    text = json.dumps({**OPTIONS, "executor": executor, **options})
    if executor == "ray":
        pytest.importorskip("ray", reason="ray is not installed: pip install 'fxprune[ray]'")
    command = [sys.executable, str(Path(__file__).with_name("program.py")), str(folder), text]
    path = os.pathsep.join(map(str, Path(__file__).resolve().parents[2:0:-1]))
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, **pipes)


def undisturbed(folder: Path) -> list[dict[str, Any]]:
    folder.mkdir()
    (folder / "go").touch()
    with Store.open(folder, {"model": "m"}) as store:
        results = run_trials(works.trials(**{**OPTIONS, "sleep": 0.0}), works.fall, store, InProcess())
    return [without_sleep(result.outcome) for result in results.values()]


def without_sleep(outcome: dict[str, Any]) -> dict[str, Any]:
    """Keep what does not follow from how long a step takes, nor from the number of threads."""
    return {name: value for name, value in outcome.items() if name not in ("key", "figures")}


def finish(folder: Path, executor: str) -> list[dict[str, Any]]:
    (folder / "go").touch()
    last = start(folder, executor)
    printed, errors = last.communicate(timeout=SECONDS)
    assert last.returncode == 0, errors
    return [without_sleep(outcome) for outcome in json.loads(printed.splitlines()[-1])]


def kill_after(folder: Path, executor: str, seconds: float) -> set[int]:
    """Kill a search so long after its first trial has begun; return its workers."""
    search = start(folder, executor)
    assert search.stdout is not None
    assert search.stdout.readline()
    time.sleep(seconds)
    search.send_signal(signal.SIGKILL)
    printed, errors = search.communicate(timeout=SECONDS)
    assert search.returncode == -signal.SIGKILL, (printed, errors)  # it was in the middle
    return {int(mark) for path in folder.glob("trials/*/begun") for mark in path.read_text().split()}


@pytest.mark.parametrize(
    ("executor", "times"), [("here", 2), ("processes", 5), pytest.param("ray", 2, marks=pytest.mark.slow)]
)
def test_killed_several_times_at_random_moments(executor: str, times: int, tmp_path: Path) -> None:
    draw = random.Random(executor)
    folder, seen = tmp_path / "search", []
    for _ in range(times):
        moment = draw.uniform(0.05, 0.4)
        workers = kill_after(folder, executor, moment)
        wait_until(lambda: not any(is_alive(worker) for worker in workers))  # noqa: B023 - it is called here
        with Store.open(folder, {"model": "m"}) as store:
            seen.append((moment, sum(state == "done" for state in store.states().values())))
    assert finish(folder, executor) == undisturbed(tmp_path / "other"), seen
    with Store.open(folder, {"model": "m"}) as store:
        folders = [store.folder_of(trial) for trial in TRIALS]
    assert [len(works.marks(place, "done")) for place in folders] == [1] * len(TRIALS), seen
    assert seen[-1][1] < len(TRIALS), seen  # there was something left to do


def test_a_new_search_waits_for_a_worker_that_is_about_to_die(tmp_path: Path) -> None:
    """Killed and started again at once: the worker of the first may still hold its trial."""
    kill_after(tmp_path / "search", "processes", 0.2)
    assert finish(tmp_path / "search", "processes") == undisturbed(tmp_path / "other")
    with Store.open(tmp_path / "search", {"model": "m"}) as store:
        assert all(len(works.marks(store.folder_of(trial), "done")) == 1 for trial in TRIALS)


def test_an_interrupt_ends_the_workers(tmp_path: Path) -> None:
    search = start(tmp_path, "processes")
    assert search.stdout is not None
    assert search.stdout.readline().startswith("started")
    wait_until(lambda: any(path.read_text() for path in tmp_path.glob("trials/*/begun")))
    search.send_signal(signal.SIGINT)
    _, errors = search.communicate(timeout=SECONDS)
    assert "KeyboardInterrupt" in errors
    workers = [int(mark) for path in tmp_path.glob("trials/*/begun") for mark in path.read_text().split()]
    assert workers
    wait_until(lambda: not any(map(is_alive, workers)))
