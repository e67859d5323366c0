"""Jobs side by side, each in a process of its own that is bounded in time and in memory.

A worker answers by lines of JSON, each as soon as there is one, so that one that is killed leaves what it had. It has a
file of its own for them: whatever it prints, also by C code or before it begins, goes to a log, whose end says why it
broke. Nothing is kept here: whoever takes the answers writes them down (``tools/_records.py``), and asks the next time
for what is missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
POLL_SECONDS = 0.2
TAIL = 600  # characters of the log that are told
_ANSWERS = "FXPRUNE_POOL_ANSWERS"  # variable of a worker: the number of its open file for answers


# ---------------------------------------------------------------- the worker's side


@contextlib.contextmanager
def answering() -> Iterator[Callable[[Any], None]]:
    """Give the function that answers; who is started by hand answers on stdout.

    To begin is an answer of its own, which the pool keeps for itself: who never got here did not start. A worker whose
    pool ends, however that ends, ends with it.
    """
    number = os.environ.pop(_ANSWERS, None)  # what a worker starts is no worker
    if number is not None:
        _end_with_the_pool()
    with os.fdopen(os.dup(1) if number is None else int(number), "w", encoding="utf-8") as stream:

        def answer(value: Any) -> None:
            stream.write(json.dumps(value, default=float) + "\n")
            stream.flush()

        answer(None)
        yield answer


def _end_with_the_pool() -> None:
    """Watch the pipe from the pool, which says nothing and breaks when the pool ends."""

    def watch() -> None:
        os.read(0, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


# ---------------------------------------------------------------- the pool's side


@dataclass(frozen=True)
class Job:
    """What one worker does.

    Attributes:
        words: What stands behind ``python`` on its command line.
        items: What it answers, in this order.
    """

    words: tuple[str, ...]
    items: tuple[Any, ...] = ()


@dataclass(eq=False)
class Worker:
    """A process, and what it said.

    Attributes:
        job: What it does.
        process: The process.
        folder: Has its answers and its log.
        answers: All answers so far.
        taken: How many of these were taken.
        began: Whether it got as far as answering.
        started: When it was started, on the monotonic clock.
        heard: When it was last heard of.
        peak: The most bytes in memory, of it and of what it started, whenever anybody asked.
        ended: Whether it has ended.
        over: Which bound it passed, for which it was killed.
        broken: How it ended where it ended by itself, but not well.
    """

    job: Job
    process: subprocess.Popen[bytes]
    folder: Path
    answers: list[Any] = field(default_factory=list)
    taken: int = 0
    began: bool = False
    started: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)
    peak: int = 0
    ended: bool = False
    over: str = ""
    broken: str = ""
    _read: int = 0

    @property
    def why(self) -> str:
        """Why it did not end well, or nothing."""
        return self.over or self.broken

    def take(self) -> list[Any]:
        """Return the answers that were not taken yet."""
        new, self.taken = self.answers[self.taken :], len(self.answers)
        return new

    def memory(self) -> int:
        """Return the resident bytes of the process and of everything that it started."""
        import psutil  # type: ignore[import-untyped]

        total = 0
        with contextlib.suppress(psutil.Error):  # it has just ended
            parent = psutil.Process(self.process.pid)
            for process in (parent, *parent.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    total += int(process.memory_info().rss)
        self.peak = max(self.peak, total)
        return total

    def kill(self) -> None:
        """Kill the process and everything that it started: its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()

    def look(self, over: Callable[[Worker], str]) -> bool:
        """Read what it answered, and end it if it has to end; say whether there is anything new."""
        code = self.process.poll()  # before its answers, so that none comes in between
        new = self._listen()
        self.over = over(self) if code is None else ""
        self.ended = code is not None or bool(self.over)
        if self.ended:
            self.kill()  # what it started may have outlived it
            new = self._listen() or new  # it may have answered until then
            if code:
                tail = (self.folder / "log").read_text(encoding="utf-8", errors="replace")[-TAIL:]
                self.broken = f"process ended with code {code}: {' '.join(tail.split())}"
        return new or self.ended

    def _listen(self) -> bool:
        with (self.folder / "answers").open("rb") as stream:
            stream.seek(self._read)
            new = stream.read()
        whole = new[: new.rfind(b"\n") + 1]  # the last line may not be there as a whole yet
        for line in whole.splitlines():
            if self.began:
                self.answers.append(json.loads(line))
            self.began = True
        if whole:
            self._read, self.heard = self._read + len(whole), time.monotonic()
        return bool(whole)


@dataclass(frozen=True)
class Limits:
    """Bounds of every worker; None is no bound.

    Attributes:
        seconds: For all that it does.
        each: Seconds from one answer to the next.
        memory: GiB in memory, of it and of what it started.
    """

    seconds: float | None = None
    each: float | None = None
    memory: float | None = None

    def __call__(self, worker: Worker) -> str:
        """Return which bound a worker has passed, or nothing."""
        now = time.monotonic()
        if self.memory is not None and worker.memory() > self.memory * 2**30:
            return f"more than {self.memory:g} GiB"
        for bound, since in ((self.seconds, worker.started), (self.each, worker.heard)):
            if bound is not None and now - since > bound:
                return f"no answer in {bound:g} s"
        return ""


def run_all(
    jobs: Iterable[Job], workers: int, over: Callable[[Worker], str], *, environment: Mapping[str, str] | None = None
) -> Iterator[Worker]:
    """Run jobs, so many at a time; yield a worker whenever it has answered, and when it has ended.

    Args:
        jobs: What is to be done; to a deque, more may be added meanwhile.
        workers: How many processes there are at a time.
        over: Says which bound a worker has passed ("" for none), as :class:`Limits` does.
        environment: Variables of the workers, beside those of this process.
    """
    waiting = jobs if isinstance(jobs, deque) else deque(jobs)
    running: list[Worker] = []
    with tempfile.TemporaryDirectory(prefix="fxprune-pool-") as folder:
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    running.append(_start(waiting.popleft(), Path(tempfile.mkdtemp(dir=folder)), environment))
                time.sleep(POLL_SECONDS)
                for worker in list(running):
                    if worker.look(over):
                        if worker.ended:
                            running.remove(worker)
                        yield worker
        finally:
            for worker in running:
                worker.kill()


def _start(job: Job, folder: Path, environment: Mapping[str, str] | None) -> Worker:
    with (folder / "answers").open("wb") as answers, (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *job.words], cwd=ROOT,
            env={**os.environ, **(environment or {}), _ANSWERS: str(answers.fileno())}, pass_fds=[answers.fileno()],
            stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    return Worker(job, process, folder)


def run_one(words: Sequence[str], limits: Limits, environment: Mapping[str, str] | None = None) -> Worker:
    """Run one job to its end."""
    return next(worker for worker in run_all([Job(tuple(words))], 1, limits, environment=environment) if worker.ended)


def record_of(words: Sequence[str], limits: Limits, **about: Any) -> Record:
    """Return what a job answers last, or, with what the record is about, that it did not end well."""
    worker = run_one(words, limits)
    if worker.over:
        return {**about, "outcome": worker.over}
    if worker.broken or not worker.answers:
        return {**about, "outcome": "crashed", "detail": worker.broken or "it said nothing"}
    found: Record = worker.answers[-1]
    return found


@dataclass(frozen=True)
class Many:
    """Many items, each of which has one answer.

    Attributes:
        words: What stands behind ``python``; behind it come the items of one worker.
        items_each: How many of them a process has at most before it is replaced by a fresh one.
        together: How many answers are given out at a time.
        lost: Makes the answer for an item at which a worker broke, from why it did.
    """

    words: tuple[str, ...]
    items_each: int
    together: int
    lost: Callable[[Any, Worker], Record]

    def run(self, items: Sequence[Any], workers: int, limits: Limits) -> Iterator[list[Record]]:
        """Yield the answers for items as they come; behind a broken worker a fresh one goes on with the next item.

        Raises:
            RuntimeError: A worker broke before it began.
        """
        size = max(1, min(self.items_each, -(-len(items) // workers)))  # where there are few, all have some
        waiting = deque(self._job(items[at : at + size]) for at in range(0, len(items), size))
        for worker in run_all(waiting, workers, limits):
            if not worker.ended and len(worker.answers) - worker.taken < self.together:
                continue
            records = worker.take()
            left = worker.job.items[len(worker.answers) :] if worker.ended else ()
            if left:
                if not worker.began:
                    raise RuntimeError(f"a worker did not begin: {worker.why}")
                records.append(self.lost(left[0], worker))
                if left[1:]:
                    waiting.append(self._job(left[1:]))
            if records:
                yield records

    def _job(self, items: Sequence[Any]) -> Job:
        return Job((*self.words, *map(str, items)), tuple(items))
