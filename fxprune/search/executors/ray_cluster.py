"""Trials on a Ray cluster: the machines of one that runs, or workers of one that is started here for the search.

The folder of the search has to lie on a disk that all machines see under the same path: trials keep their checkpoints
there and start from each other's weights.

A trial whose worker is lost is submitted again here, not by Ray: Ray would do so without end where memory ran out, and
would not say so. Its time counts from when it is seen to have begun, not from when it was submitted.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxprune.errors import EnvironmentProblem, InputError
from fxprune.search.executors import Event, Workers
from fxprune.search.executors.jobs import Job, check_limits, unpicklable
from fxprune.search.executors.worker import output_to
from fxprune.search.trials import Trial, Work
from fxprune.search.work import LOG, attempts_of, carry_out, load_work

_MEMORY = 100_000_000  # bytes for objects; what is sent are descriptions and figures
_LOOK = 1.0  # seconds between looks at what has begun and what is late
_PORT = 5.0  # seconds for a machine to answer at all
_PROBE = """
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
    ray.cluster_resources()
except Exception as error:
    cause = error.__cause__ or error
    sys.exit(f"{type(cause).__name__}: {(str(cause) or 'no reason given').splitlines()[0]}")
"""


@dataclass(frozen=True)
class RayCluster:
    """Trials as tasks of Ray.

    Attributes:
        address: Of the cluster, as ``ray.init`` takes it (``host:6379``, ``ray://host:10001``, ``auto``); None starts
            one on this machine, which ends with the search.
        workers: How many trials run at a time on a cluster that is started here.
        cpus: Of one trial; also its threads.
        gpus: Of one trial; a fraction lets several share one.
        timeout: Seconds for an attempt, after which its worker is killed; None for no limit.
        retries: How often a trial is begun again whose worker was lost or killed for its time.
        runtime_env: What workers need, as Ray takes it: packages, variables, the folder with the model's code.
        connect_within: Seconds to reach the cluster.
        begin_within: Seconds until the first trial has begun; a cluster whose workers cannot start never says so.
    """

    address: str | None = None
    workers: int = 2
    cpus: float = 1
    gpus: float = 0
    timeout: float | None = None
    retries: int = 2
    runtime_env: Mapping[str, Any] | None = None
    connect_within: float = 60.0
    begin_within: float = 600.0

    def __post_init__(self) -> None:
        check_limits(self.workers, 1, self.timeout, self.retries)
        if not self.cpus > 0 or self.gpus < 0:
            raise InputError(f"a trial cannot run on {self.cpus} CPUs and {self.gpus} GPUs; give more than none")

    @property
    def label(self) -> str:
        """What it is, in words."""
        return f"Ray at {self.address}" if self.address else f"Ray on this machine, {self.workers} workers"

    def start(self, work: Work) -> Workers:
        """Connect to the cluster, or start one.

        Raises:
            InputError: The cluster cannot be reached, or has no machine for such a trial; the work cannot be pickled.
            EnvironmentProblem: ray is not installed, or cannot start.
        """
        ray = _ray()
        load_work(work)
        try:
            content = ray.cloudpickle.dumps(work)
        except Exception as error:  # an object's own code takes part
            raise unpicklable(work, error) from error
        owned = not ray.is_initialized()
        if owned:
            self._connect(ray)
        try:
            self._check_resources(ray)
        except BaseException:
            if owned:
                ray.shutdown()
            raise
        return _Tasks(ray, self, content, owned)

    def _connect(self, ray: Any) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        options["runtime_env"] = dict(self.runtime_env or {})
        if self.address is not None:
            _check_reachable(self.address, self.connect_within)
            ray.init(address=self.address, **options)
            return
        variables = options["runtime_env"].get("env_vars", {})
        options["runtime_env"]["env_vars"] = {"PYTHONPATH": _import_path(), **variables}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # what is started here reports to nobody
        options |= {"num_cpus": math.ceil(self.workers * self.cpus), "object_store_memory": _MEMORY}
        options |= {"num_gpus": math.ceil(self.workers * self.gpus)} if self.gpus else {}
        try:
            ray.init(address="local", include_dashboard=False, **options)
        except Exception as error:  # of many kinds: ports, memory, folders
            ray.shutdown()
            raise EnvironmentProblem(
                f"Ray cannot start on this machine ({error}); run trials on processes instead, or give the address of "
                "a cluster"
            ) from error

    def _check_resources(self, ray: Any) -> None:
        """Refuse what would wait for ever."""
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(each.get("CPU", 0) >= self.cpus and each.get("GPU", 0) >= self.gpus for each in machines):
            have = ", ".join(f"{each.get('CPU', 0):g} CPUs and {each.get('GPU', 0):g} GPUs" for each in machines)
            raise InputError(
                f"no machine of the Ray cluster has {self.cpus:g} CPUs and {self.gpus:g} GPUs for a trial; it has "
                f"{have}. Ask for less, or add a machine first"
            )


@dataclass
class _Task(Job):
    """A trial that was submitted to Ray.

    Attributes:
        begun: How many attempts its folder knew of before.
        since: When the attempt was seen to have begun.
        late: It was cancelled for its time.
    """

    begun: int = 0
    since: float | None = None
    late: bool = False


class _Tasks:
    def __init__(self, ray: Any, options: RayCluster, work: bytes, owned: bool) -> None:
        self._ray, self._options, self._work, self._owned = ray, options, work, owned
        self._remote = ray.remote(_run).options(num_cpus=options.cpus, num_gpus=options.gpus, max_retries=0)
        self._tasks: dict[Any, _Task] = {}
        self._first_limit = time.monotonic() + options.begin_within

    def submit(self, trial: Trial, folder: Path) -> None:
        self._submit(_Task(trial, folder))

    def wait(self) -> list[Event]:
        """Sleep until a task ends; look in between at which have begun, and which are late."""
        while True:
            ended, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=_LOOK)
            events = [event for task in self._tasks.values() for event in self._see_begun(task)]
            for ref in ended:
                events += self._take(ref)
            self._cancel_late()
            if events:
                self._first_limit = float("inf")
                return events
            if time.monotonic() > self._first_limit:
                raise InputError(
                    f"no worker of the Ray cluster has begun a trial within {self._options.begin_within:g} s; it is "
                    "busy (ray status), or its workers cannot start (see worker-*.err and raylet.out among its logs)"
                )

    def close(self, kill: bool = False) -> None:
        """Cancel what runs, and end the cluster where it was started here."""
        for ref in self._tasks:
            with contextlib.suppress(self._ray.exceptions.RayError, ValueError):  # it is gone with the cluster
                self._ray.cancel(ref, force=True)
        self._tasks.clear()
        if self._owned:
            self._ray.shutdown()

    def _submit(self, task: _Task) -> None:
        task.begun, task.since, task.late = len(attempts_of(task.folder)), None, False
        self._tasks[self._remote.remote(self._work, task.trial.to_json(), os.fspath(task.folder))] = task

    def _see_begun(self, task: _Task) -> list[Event]:
        if task.since is not None:
            return []
        begun = attempts_of(task.folder)
        if len(begun) <= task.begun:
            return []
        task.since = time.monotonic()
        return [Event(task.trial.key, "started", begun[-1]["worker"])]

    def _cancel_late(self) -> None:
        if self._options.timeout is None:
            return
        for ref, task in self._tasks.items():
            if task.since is not None and time.monotonic() > task.since + self._options.timeout and not task.late:
                task.late = True
                self._ray.cancel(ref, force=True)  # its worker is killed, not asked

    def _take(self, ref: Any) -> list[Event]:
        """Take what came of a task."""
        task, errors = self._tasks.pop(ref), self._ray.exceptions
        try:
            kind, content = self._ray.get(ref)
        except (errors.RayTaskError, errors.RuntimeEnvSetupError, errors.TaskUnschedulableError) as error:
            raise InputError(
                f"a worker of the Ray cluster could not begin a trial: {_last_line(str(error))}. All machines need "
                "fxprune and the code of the model; runtime_env can bring them"
            ) from error
        except errors.RayError as error:  # the worker or its machine is gone
            return self._lose(task, error)
        if kind == "stopped":
            raise InputError(content)
        return [Event(task.trial.key, "finished", content.worker, result=content)]

    def _lose(self, task: _Task, error: Exception) -> list[Event]:
        late = task.late
        reason = f"it took more than {self._options.timeout:g} s and was killed" if late else _why_lost(error)
        event = task.lost(reason, "timed out" if late else "lost", self._options.retries)
        if event.result is None:
            self._submit(task)
        return [event]


def _run(content: bytes, trial: dict[str, Any], folder: str) -> tuple[str, Any]:
    """Carry a trial out on a worker of Ray."""
    from ray import cloudpickle

    try:
        work = cloudpickle.loads(content)
        load_work(work)
    except Exception as error:
        return "stopped", f"a worker of Ray cannot load the work ({type(error).__name__}: {error})"
    place = Path(folder)
    try:
        with output_to(place / LOG) if place.is_dir() else contextlib.nullcontext():
            return "result", carry_out(Trial.from_json(trial), work, place)
    except InputError as error:
        return "stopped", str(error)


def _import_path() -> str:
    """Return where this process finds modules: its workers on this machine find the same."""
    return os.pathsep.join(path or str(Path.cwd()) for path in sys.path)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise EnvironmentProblem(
            f"trials on a cluster need ray, which is not installed ({error}): pip install 'fxprune[ray]'"
        ) from error
    return ray


def _check_reachable(address: str, seconds: float) -> None:
    """Refuse an address behind which no cluster answers; Ray itself may wait for minutes, or end the process."""
    found = re.fullmatch(r"(?:ray://)?([^:/]+|\[.+\]):(\d+)", address)
    if found:
        try:
            with socket.create_connection((found[1].strip("[]"), int(found[2])), timeout=min(_PORT, seconds)):
                pass
        except (OSError, OverflowError) as error:
            raise _unreachable(address, str(error)) from error
    command = [sys.executable, "-c", _PROBE, address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise _unreachable(address, f"no answer within {seconds:g} s") from error
    if done.returncode:
        raise _unreachable(address, _last_line(done.stderr) or f"exit code {done.returncode}")


def _unreachable(address: str, reason: str) -> InputError:
    return InputError(
        f"the Ray cluster at {address} cannot be reached: {reason}. Check the address and that the cluster runs (ray "
        "status), or leave the address out to run trials on this machine; nothing was begun"
    )


def _why_lost(error: Exception) -> str:
    return f"its worker was lost ({type(error).__name__}: {str(error).strip().splitlines()[0][:200]})"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""
