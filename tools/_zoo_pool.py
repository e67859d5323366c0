"""Runs workers side by side, each under a bound on wall time per phase and on the memory of its process tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil  # type: ignore[import-untyped]

from tools._zoo_record import Record

ROOT = Path(__file__).resolve().parents[1]
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Limits:
    """Bounds of one worker: seconds for the tool's own work, for each other phase (build, checks, export), and GiB."""

    work: float = 120.0
    check: float = 600.0
    memory: float = 16.0

    def of(self, phase: str) -> float:
        """Return the seconds a phase may take."""
        return self.work if phase == "work" else self.check


@dataclass
class Job:
    """One running worker."""

    tool: str
    model: str
    process: subprocess.Popen[bytes]
    record: Path
    log: IO[bytes]
    peak: int = 0
    started: float = field(default_factory=time.monotonic)

    def memory(self) -> int:
        """Resident bytes of the worker and everything it started."""
        try:
            parent = psutil.Process(self.process.pid)
            total = sum(_resident(process) for process in [parent, *parent.children(recursive=True)])
        except psutil.Error:
            total = 0
        self.peak = max(self.peak, total)
        return total

    def read(self) -> Record:
        """Read what the worker has written so far."""
        try:
            record: Record = json.loads(self.record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {"tool": self.tool, "model": self.model, "seconds": {}, "phase": "build", "stage": "start"}
        return record

    def kill(self) -> None:
        """Kill the worker and everything it started."""
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.Error:
            children = []
        self.process.kill()
        for child in children:
            try:
                child.kill()
            except psutil.Error:
                continue
        self.process.wait()


def _resident(process: psutil.Process) -> int:
    """Resident bytes of one process, none where it has just ended."""
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def start(tool: str, model: str, directory: Path, threads: int, seed: int) -> Job:
    """Start one worker with every thread pool set to ``threads``."""
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(counts, str(threads))}
    record = directory / f"{tool}-{model}.json"
    log = (directory / f"{tool}-{model}.log").open("wb")
    command = [sys.executable, "-m", "tools._zoo_worker", tool, model, str(record)]
    command += ["--threads", str(threads), "--seed", str(seed)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    return Job(tool, model, process, record, log)


def over_limit(job: Job, limits: Limits) -> str:
    """Return which bound the worker has passed, or nothing."""
    if job.memory() > limits.memory * 2**30:
        return f"more than {limits.memory:g} GiB"
    record = job.read()
    seconds = time.time() - record["phase_since"] if "phase_since" in record else time.monotonic() - job.started
    if record["phase"] != "done" and seconds > limits.of(record["phase"]):
        return f"no answer in {limits.of(record['phase']):g} s"
    return ""


def finish(job: Job, broken: str = "") -> Record:
    """Return the final record of a worker that has ended or, for the reason ``broken``, has to end."""
    if broken:
        job.kill()
    job.log.close()
    record = job.read()
    record["peak_rss_mib"] = max(record.get("peak_rss_mib", 0), job.peak // 2**20)
    if record["phase"] != "done":
        tail = Path(job.log.name).read_text(encoding="utf-8", errors="replace")[-600:]
        why = broken or f"process ended with code {job.process.returncode}: {tail}"
        record.setdefault("outcome", "failed")  # what was found before stays found: the detail says where it ended
        record["detail"] = f"{why} (in {record['stage']})"
    record.pop("phase_since", None)
    record["wall_seconds"] = round(time.monotonic() - job.started, 1)
    return record


def run_all(
    tasks: Sequence[tuple[str, str]], jobs: int, threads: int, seed: int, limits: Limits, done: Callable[[Record], None]
) -> None:
    """Run (tool, model) tasks, ``jobs`` at a time; ``done`` gets each record as soon as there is one."""
    waiting, running = list(tasks), list[Job]()
    with tempfile.TemporaryDirectory(prefix="zoo-") as directory:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(start(*waiting.pop(0), Path(directory), threads, seed))
                time.sleep(POLL_SECONDS)
                for job in list(running):
                    broken = over_limit(job, limits)
                    if broken or job.process.poll() is not None:
                        running.remove(job)
                        done(finish(job, broken))
        finally:
            for job in running:
                job.kill()
