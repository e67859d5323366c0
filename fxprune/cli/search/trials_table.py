"""The trials of a search while they run: a table on a terminal, a line for each piece of news elsewhere.

On stderr, as all progress: what is piped on is the result alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fxprune.cli.shared.console import err, say, thousands
from fxprune.search import Event, Trial, TrialResult

_AROUND = 4  # lines of a terminal that are no rows: heading, counts, and the prompt
_COLUMNS = {"depth": 5, "width": 5, "size": 5, "seed": 4, "state": 7, "accuracy": 8, "MACs": 8, "seconds": 7}
_STATES = ("done", "failed", "running", "waiting")
_STYLES = {"done": "green", "failed": "red", "running": "bold", "waiting": "dim"}


@dataclass
class _Row:
    trial: Trial
    state: str = "waiting"
    begun: float = 0.0
    attempts: int = 0
    worker: str = ""
    note: str = ""  # why the attempt before was lost
    result: TrialResult | None = None


class TrialsTable:
    """Shows trials; give it to ``run_trials`` as ``on_update``, within a ``with`` statement."""

    def __init__(self, trials: Iterable[Trial] = (), console: Console = err) -> None:
        """Show these trials.

        Args:
            trials: Those that are known to come, in the order of the rows.
            console: Where.
        """
        self._rows = {trial.key: _Row(trial) for trial in trials}
        self._console, self._start = console, time.monotonic()
        self._live = Live(console=console, get_renderable=self.table, refresh_per_second=1, transient=True)

    def add(self, trials: Iterable[Trial]) -> None:
        """Show these too, as trials that are still to come."""
        for trial in trials:
            self._rows.setdefault(trial.key, _Row(trial))

    def __enter__(self) -> TrialsTable:
        self._start = time.monotonic()
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()
            self._console.print(self.table(whole=True))

    def __call__(self, event: Event, trial: Trial | None = None) -> None:
        """Take news of a trial.

        Args:
            event: What happened.
            trial: To which one; needed where it was not among the first.
        """
        row = self._rows[event.key] if trial is None else self._rows.setdefault(event.key, _Row(trial))
        known = row.state == "waiting" and event.result is not None and event.result.attempts > 0  # from an earlier run
        _update(row, event)
        if not self._console.is_terminal:
            since = f"{time.monotonic() - self._start:8.1f} s"
            say(f"{since}  {row.trial.name}: {_news(row, event)}{' (known)' * known}", self._console)

    def table(self, whole: bool = False) -> Group:
        """Return what there is to see now.

        Args:
            whole: All rows; else as many as the terminal has room for.
        """
        rows = list(self._rows.values())
        shown = rows if whole else _that_fit(rows, max(self._console.height - _AROUND, 1))
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for name, width in _COLUMNS.items():  # only the last one is shortened where the terminal is narrow
            table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True, min_width=width)
        table.add_column("")  # may be wrapped, as far as rich is concerned: else it takes room from all
        for row in shown:
            table.add_row(*_cells(row))
        return Group(table, Text(self._counts(len(rows) - len(shown)), style="dim"))

    def _counts(self, hidden: int) -> str:
        counts = Counter(row.state for row in self._rows.values())
        parts = [f"{counts[state]} {state}" for state in _STATES if counts[state]]
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        more = f"; {hidden} of them not shown" if hidden else ""
        return f"{', '.join(parts) or 'no trials'} of {len(self._rows)}{more}; {minutes}:{seconds:02d} min"


def _update(row: _Row, event: Event) -> None:
    row.worker = event.worker or row.worker
    if event.kind == "started":
        row.state, row.begun, row.attempts = "running", time.monotonic(), row.attempts + 1
    elif event.kind != "finished":
        row.state, row.note = "waiting", event.reason
    if event.result is not None:
        row.state, row.result = event.result.status, event.result


def _news(row: _Row, event: Event) -> str:
    """Return one line, which is all that a log file gets."""
    result = event.result
    if result is None:
        if event.kind == "started":
            again = f", attempt {row.attempts}" if row.attempts > 1 else ""
            return f"started on {event.worker}{again}"
        return f"{event.kind}: {event.reason}"
    if result.status == "failed":
        return f"failed: {result.error}"
    macs = f", {thousands(result.macs)} MACs" if result.macs is not None else ""
    return f"done: accuracy {result.accuracy:.4f}{macs}, {result.seconds:.1f} s"


def _cells(row: _Row) -> list[Text | str]:
    trial, result = row.trial, row.result
    seconds, note = "", row.note if row.state != "done" else ""
    if row.state == "running":
        seconds = f"{time.monotonic() - row.begun:.0f}"
        note = row.worker + (f", attempt {row.attempts}: {row.note}" if row.attempts > 1 else "")
    accuracy = macs = ""
    if result is not None:
        seconds, note = f"{result.seconds:.0f}", result.error
        accuracy = f"{result.accuracy:.4f}" if result.accuracy is not None else "-"
        macs = thousands(result.macs) if result.macs is not None else ""
    shares = [f"{value:.3g}" for value in (trial.depth, trial.width, trial.resolution)]
    state = Text(row.state, style=_STYLES[row.state])
    return [*shares, str(trial.seed), state, accuracy, macs, seconds, Text(note, overflow="ellipsis", no_wrap=True)]


def _that_fit(rows: list[_Row], room: int) -> list[_Row]:
    """Keep what runs, then what failed, what was done last, and what comes next; in the order of the rows."""
    if len(rows) <= room:
        return rows
    waiting = [row for row in rows if row.state == "waiting"]
    done = [row for row in reversed(rows) if row.state == "done"]
    urgent = [row for state in ("running", "failed") for row in rows if row.state == state]
    beside = [row for pair in zip(done, waiting, strict=False) for row in pair]
    chosen = [*urgent, *beside, *done[len(waiting) :], *waiting[len(done) :]][:room]
    kept = set(map(id, chosen))
    return [row for row in rows if id(row) in kept]
