"""Runs the zoo's workers side by side, each under a bound on wall time per phase and on the memory of its processes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tools._pool import Job, Worker, run_all
from tools._records import Record


@dataclass(frozen=True)
class Limits:
    """Bounds of one worker: seconds for the tool's own work, for each other phase (build, checks, export), and GiB."""

    work: float = 120.0
    check: float = 600.0
    memory: float = 16.0

    def of(self, phase: str) -> float:
        """Return the seconds a phase may take."""
        return self.work if phase == "work" else self.check

    def __call__(self, worker: Worker) -> str:
        """Return which bound the worker has passed, or nothing."""
        if worker.memory() > self.memory * 2**30:
            return f"more than {self.memory:g} GiB"
        record = latest(worker)
        seconds = time.time() - record["phase_since"] if "phase_since" in record else time.monotonic() - worker.started
        if record["phase"] == "done":  # all is said, and it may still hang as it ends
            seconds = time.monotonic() - worker.heard
        if seconds > self.of(record["phase"]):
            return f"no answer in {self.of(record['phase']):g} s"
        return ""


def latest(worker: Worker) -> Record:
    """Return the record as the worker last had it."""
    if worker.answers:
        record: Record = worker.answers[-1]
        return record
    ((tool, model),) = worker.job.items
    return {"tool": tool, "model": model, "seconds": {}, "phase": "build", "stage": "start"}


def finished(worker: Worker) -> Record:
    """Return the final record of a worker that has ended."""
    record = dict(latest(worker))
    record["peak_rss_mib"] = max(record.get("peak_rss_mib", 0), worker.peak // 2**20)
    if record["phase"] != "done":
        record.setdefault("outcome", "failed")  # what was found before stays found: the detail says where it ended
        record["detail"] = f"{worker.why or 'process ended before it was done'} (in {record['stage']})"
    record.pop("phase_since", None)
    record["wall_seconds"] = round(time.monotonic() - worker.started, 1)
    return record


def run(tasks: Sequence[tuple[str, str]], jobs: int, threads: int, seed: int, limits: Limits) -> Iterator[Record]:
    """Run (tool, model) tasks, ``jobs`` at a time, with every thread pool set to ``threads``; yield their records."""
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    started = [job(tool, model, threads, seed) for tool, model in tasks]
    for worker in run_all(started, jobs, limits, environment=dict.fromkeys(counts, str(threads))):
        if worker.ended:
            yield finished(worker)


def job(tool: str, model: str, threads: int, seed: int) -> Job:
    """Return what one worker does."""
    words = ("-m", "tools._zoo_worker", tool, model, "--threads", str(threads), "--seed", str(seed))
    return Job(words, ((tool, model),))
