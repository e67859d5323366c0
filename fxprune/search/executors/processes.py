"""Trials on processes of this machine, which may be killed, hang or run out of memory without harm to the search.

Each worker has a pipe of its own and shares nothing with the others, so that one that is killed in the middle of a
message leaves the others unharmed. It leads a process group, with which what it started (loaders of data) is ended too,
and it ends when the search does, however that ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Literal

from fxprune.errors import InputError
from fxprune.search.executors import Event, Workers
from fxprune.search.executors.jobs import Job, check_limits, unpicklable
from fxprune.search.executors.worker import serve
from fxprune.search.trials import Trial, Work
from fxprune.search.work import load_work, worker_name

START_LIMIT = 300.0  # seconds for a worker to load Python, torch and the work
_END_LIMIT = 5.0  # seconds for a worker to leave by itself
_GONE_LIMIT = 60.0  # seconds for a worker that has closed its pipe to be gone: Python takes down torch before
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Processes:
    """Several trials at a time, each on a process of this machine.

    Attributes:
        workers: How many.
        threads: Of torch (OpenMP) in each.
        timeout: Seconds for an attempt, after which its worker is killed; None for no limit.
        retries: How often a trial is begun again whose worker was lost or killed for its time; it goes on from what its
            work has kept in its folder. One that raises or returns no number is not begun again.
    """

    workers: int = 2
    threads: int = 1
    timeout: float | None = None
    retries: int = 2

    def __post_init__(self) -> None:
        check_limits(self.workers, self.threads, self.timeout, self.retries)

    @property
    def label(self) -> str:
        """What it is, in words."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.workers} process{'es' if self.workers > 1 else ''} with {threads} each"

    def start(self, work: Work) -> Workers:
        """Return workers; their processes are started when there is something to do.

        Raises:
            InputError: The work cannot be pickled, or not be found.
        """
        load_work(work)
        try:
            content = pickle.dumps(work)
        except Exception as error:  # an object's own code takes part
            raise unpicklable(work, error) from error
        return _Pool(self, content)


@dataclass(eq=False)
class _Worker:
    process: SpawnProcess
    pipe: Connection
    since: float = field(default_factory=time.monotonic)  # it was started, or given its job
    ready: bool = False
    job: Job | None = None

    @property
    def name(self) -> str:
        return worker_name(self.process.pid)


class _Pool:
    def __init__(self, options: Processes, work: bytes) -> None:
        self._options, self._work = options, work
        self._queue: deque[Job] = deque()
        self._workers: list[_Worker] = []
        self._failed_starts = 0

    def submit(self, trial: Trial, folder: Path) -> None:
        self._queue.append(Job(trial, folder))

    def wait(self) -> list[Event]:
        """Hand out what waits, and sleep until a worker says something, dies or has had its time."""
        while True:
            events = self._hand_out()
            if events:
                return events
            self._start_workers()
            watched = {item: worker for worker in self._workers for item in (worker.pipe, worker.process.sentinel)}
            ended = connection.wait(list(watched), self._next_limit())
            for worker in dict.fromkeys(watched[item] for item in ended):  # type: ignore[index]
                events += self._hear(worker)
            for worker in [worker for worker in self._workers if time.monotonic() >= self._limit(worker)]:
                events += self._end_late(worker)
            if events:
                return events

    def close(self, kill: bool = False) -> None:
        """Ask idle workers to leave, and kill the others."""
        for worker in self._workers:
            if worker.job is None and worker.ready and not kill:
                with contextlib.suppress(OSError):  # it is gone already
                    worker.pipe.send(None)
        until = time.monotonic() + _END_LIMIT
        for worker in self._workers:
            if worker.job is None and worker.ready and not kill:
                worker.process.join(max(until - time.monotonic(), 0))
            _kill(worker)
        self._workers.clear()

    # ---------------------------------------------------------------- handing out

    def _start_workers(self) -> None:
        starting = sum(not worker.ready for worker in self._workers)
        missing = min(self._options.workers - len(self._workers), len(self._queue) - starting)
        for _ in range(missing):
            here, there = _SPAWN.Pipe()
            process = _SPAWN.Process(target=serve, args=(there, self._work), name="fxprune-trials")
            with _threads_of_children(self._options.threads):
                process.start()
            there.close()  # so that its end is heard here
            self._workers.append(_Worker(process, here))

    def _hand_out(self) -> list[Event]:
        events = []
        for worker in self._workers:
            if not self._queue:
                break
            if not worker.ready or worker.job is not None:
                continue
            job = self._queue.popleft()
            worker.job, worker.since = job, time.monotonic()
            events.append(Event(job.trial.key, "started", worker.name))
            with contextlib.suppress(OSError):  # it is gone; its sentinel says so
                worker.pipe.send((job.trial, job.folder))
        return events

    # ---------------------------------------------------------------- what becomes of a worker

    def _hear(self, worker: _Worker) -> list[Event]:
        """Take a message; or note that the worker is gone."""
        try:
            kind, content = worker.pipe.recv() if worker.pipe.poll() else ("gone", None)
        except (EOFError, OSError):
            kind, content = "gone", None
        if kind == "gone":
            return self._lose(worker, _how_it_ended(worker.process), "lost")
        if kind == "stopped":
            raise InputError(content)
        if kind == "ready":
            worker.ready, self._failed_starts = True, 0
            return []
        job, worker.job = worker.job, None
        assert job is not None  # a worker speaks of the job that it was given
        return [Event(job.trial.key, "finished", worker.name, result=content)]

    def _lose(self, worker: _Worker, reason: str, kind: Literal["lost", "timed out"]) -> list[Event]:
        _kill(worker)
        self._workers.remove(worker)
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts > self._options.retries:
                raise InputError(
                    f"a worker process ended before it could begin ({reason}). Where trials are started from a script, "
                    "what it does has to stand under if __name__ == '__main__', since workers import it; stderr "
                    "has more"
                )
        if worker.job is None:
            return []
        event = worker.job.lost(reason, kind, self._options.retries)
        if event.result is None:
            self._queue.appendleft(worker.job)
        return [event]

    def _limit(self, worker: _Worker) -> float:
        if not worker.ready:
            return worker.since + START_LIMIT
        if worker.job is None or self._options.timeout is None:
            return float("inf")
        return worker.since + self._options.timeout

    def _next_limit(self) -> float | None:
        limit = min(map(self._limit, self._workers), default=float("inf"))
        return None if limit == float("inf") else max(limit - time.monotonic(), 0)

    def _end_late(self, worker: _Worker) -> list[Event]:
        if not worker.ready:
            return self._lose(worker, f"it was not ready after {START_LIMIT:g} s", "lost")
        return self._lose(worker, f"it took more than {self._options.timeout:g} s and was killed", "timed out")


@contextlib.contextmanager
def _threads_of_children(threads: int) -> Iterator[None]:
    """Set what libraries of a new process read when they are loaded, which may be before any of our code runs there."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _kill(worker: _Worker) -> None:
    """End a worker and what it started, and wait for it; it may be gone already."""
    pid = worker.process.pid
    if hasattr(os, "killpg") and pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has no group of its own yet, or is gone
            os.killpg(pid, signal.SIGKILL)
    worker.process.kill()
    worker.process.join()
    worker.process.close()
    worker.pipe.close()


def _how_it_ended(process: SpawnProcess) -> str:
    process.join(_GONE_LIMIT)
    code = process.exitcode
    if code is None:
        return f"its worker closed its pipe and did not end within {_GONE_LIMIT:g} s"
    if code < 0:
        name = signal.Signals(-code).name
        return f"its worker was killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")
    return f"its worker ended with exit code {code}"
