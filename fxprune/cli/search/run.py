"""``search``: the best depth, width and resolution under a budget, trained, exported and reported."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fxprune.cli.search.job import Job, Options, prepare
from fxprune.cli.search.parts import forget_files
from fxprune.cli.shared.console import err, say
from fxprune.cli.shared.output import staging
from fxprune.errors import VerifyError
from fxprune.interrupts import lasting_interrupts

if TYPE_CHECKING:
    from fxprune.search import Event, Trial
    from fxprune.search.search import SearchResult


def run(options: Options) -> None:
    """Carry the command out; all but the search itself appears in the output folder only when everything has passed.

    Raises:
        FxPruneError: With the exit code of the design: input, budget, check or environment.
    """
    from fxprune.cli.search.finish import finish
    from fxprune.cli.search.summary import show

    start = time.perf_counter()
    forget_files()
    with lasting_interrupts() as check:
        try:
            job = prepare(options)
            found = _search(job, check)
            with staging(options.out) as folder:
                report = finish(job, found, folder, start)
                check()
        except KeyboardInterrupt as stop:
            if not options.folder.is_dir():
                raise
            raise KeyboardInterrupt(*stop.args, f"the same command goes on from {options.folder}") from stop
    show(report, options.out)
    if not report["ok"]:
        raise VerifyError(f"a check did not pass; see {options.out / 'report.html'}")


def _search(job: Job, check: Callable[[], None]) -> SearchResult:
    """Run the search under a table of its trials."""
    from fxprune.cli.search.trials_table import TrialsTable
    from fxprune.search.search import search

    options = job.options
    start = time.perf_counter()
    with TrialsTable() as table:

        def update(event: Event, trial: Trial) -> None:
            check()
            table(event, trial)

        def phase(what: str, trials: Sequence[Trial]) -> None:
            check()
            table.add(trials)
            say(f"{time.perf_counter() - start:8.1f} s  {what}", err)

        found = search(
            job.subject, job.training, job.asked, folder=options.folder, executor=job.executor,
            settings=job.settings(), on_update=update, on_phase=phase, retry_failed=options.retry_failed,
        )  # fmt: skip
    job.stages.seconds["search"] = time.perf_counter() - start
    return found
