"""Running trials: parents first, nothing twice, and the same results whoever runs them in whatever order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from fxprune.errors import InputError
from fxprune.search.executors import Event, Executor, Workers
from fxprune.search.executors.in_process import InProcess
from fxprune.search.store import Store
from fxprune.search.trials import RESULT, Trial, TrialResult, Work, read_result


def run_trials(
    trials: Iterable[Trial],
    work: Work,
    store: Store,
    executor: Executor | None = None,
    on_update: Callable[[Event], None] | None = None,
    *,
    retry_failed: bool = False,
) -> dict[str, TrialResult]:
    """Run those trials that have no result in the store, and return the results of all.

    A trial begins when the one it starts from is done; where that failed, it fails too. Results are recorded as they
    come, so that the same call goes on where an earlier one was killed.

    Args:
        trials: What to run; a parent is among them, or done already.
        work: Carries one out.
        store: Keeps what comes of them, and their folders.
        executor: Where they run; default :class:`~fxprune.search.executors.in_process.InProcess`.
        on_update: Is told what happens, in this thread; of a trial that has a result already, just that.
        retry_failed: Run trials again that have failed; their checkpoints are still there.

    Returns:
        The results by key, in the order of the trials.

    Raises:
        InputError: A parent is missing; another process runs the search; the disk is full; the work cannot be sent to
            workers. What is done by then is kept.
        EnvironmentProblem: A package that the executor needs is missing.
        KeyboardInterrupt: What is done is kept; workers are ended.
    """
    wanted = {trial.key: trial for trial in trials}
    with store.running():
        _check_parents(wanted, store)
        store.end_lost_attempts("the search ended")
        store.add(wanted.values())
        run = _Run(wanted, store, on_update or _quiet)
        run.take_known(retry_failed)
        if run.open:
            run.finish(executor or InProcess(), work)
    return {key: run.results[key] for key in wanted}


class _Run:
    """What is done, and what waits for what."""

    def __init__(self, wanted: dict[str, Trial], store: Store, tell: Callable[[Event], None]) -> None:
        self.wanted, self.store, self.tell = wanted, store, tell
        self.known = store.all_trials() | wanted
        self.results = store.results()
        self.submitted: set[str] = set()

    @property
    def open(self) -> list[Trial]:
        return [trial for key, trial in self.wanted.items() if key not in self.results]

    def take_known(self, retry_failed: bool) -> None:
        """Take over what an earlier run has brought about, also where it was killed before it could record it."""
        for key, trial in self.wanted.items():
            folder = self.store.folder_of(trial)
            result = self.results.pop(key, None) or read_result(folder, key)
            if result is None:
                continue
            if retry_failed and result.status == "failed":
                self.store.forget(key)
                _remove(folder / RESULT)
                continue
            self._take(result)

    def finish(self, executor: Executor, work: Work) -> None:
        """Run what is open."""
        workers = executor.start(work)
        try:
            self._submit(workers)
            while self.submitted:
                for event in workers.wait():
                    self._handle(event)
                self._submit(workers)
        except BaseException:
            workers.close(kill=True)
            raise
        workers.close()

    def _submit(self, workers: Workers) -> None:
        """Hand out those whose parents are done."""
        self._fail_orphans()
        for trial in self.open:
            parent = self.results.get(trial.parent or "")
            if trial.key not in self.submitted and (trial.parent is None or parent is not None):
                self.submitted.add(trial.key)
                workers.submit(trial, self.store.folder_of(trial))

    def _fail_orphans(self) -> None:
        """Those whose parents failed fail with them, and so do those that start from these."""
        failed = [key for key, result in self.results.items() if result.status == "failed"]
        while failed:
            parent = failed.pop()
            for trial in self.open:
                if trial.parent == parent:
                    self._take(TrialResult(trial.key, "failed", attempts=0, error=self._reason(parent)))
                    failed.append(trial.key)

    def _reason(self, parent: str) -> str:
        """Return why a trial cannot begin: the first of its chain that failed, and that one's own reason."""
        cause, above = parent, self.known[parent].parent
        while above is not None and above in self.results and self.results[above].status == "failed":
            cause, above = above, self.known[above].parent
        place = "the trial that it starts from" if cause == parent else "a trial of the chain that it starts from"
        return f"{place}, {self.known[cause].name} ({cause[:16]}), failed: {self.results[cause].error}"

    def _handle(self, event: Event) -> None:
        if event.kind == "started":
            self.store.begin_attempt(event.key, event.worker)
        elif event.kind != "finished":
            self.store.end_attempt(event.key, event.kind, event.reason)
        if event.result is None:
            self.tell(event)
            return
        self.submitted.discard(event.key)
        self._take(event.result, event)

    def _take(self, result: TrialResult, event: Event | None = None) -> None:
        self.store.record(result)
        self.results[result.key] = result
        self.tell(event or Event(result.key, "finished", result.worker, result=result))


def _check_parents(wanted: dict[str, Trial], store: Store) -> None:
    known = store.all_trials() | wanted
    for trial in wanted.values():
        if trial.parent is not None and trial.parent not in known:
            raise InputError(
                f"trial {trial.name} starts from the trial {trial.parent[:16]}, which is neither given nor in "
                f"{store.folder}; give it too"
            )
        if trial.parent is not None and trial.parent not in wanted and store.result(trial.parent) is None:
            raise InputError(
                f"trial {trial.name} starts from {known[trial.parent].name}, which has no result yet; give that "
                "trial too"
            )


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot remove {path}: {error.strerror or error}") from error


def _quiet(_: Event) -> None:
    """Tell nobody."""
