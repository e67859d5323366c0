"""What a search shows while its trials run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from rich.console import Console

from fxprune.cli.search import trials_table
from fxprune.cli.search.trials_table import TrialsTable
from fxprune.search import Event, Trial, TrialResult

FIRST = Trial()
SECOND = Trial(width=0.5, parent=FIRST.key)
THIRD = Trial(depth=0.75, resolution=0.8, seed=1)
FOURTH = Trial(width=0.3, parent=THIRD.key)


def screen(terminal: bool, height: int = 30, width: int = 100) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=width, height=height, color_system=None, legacy_windows=False
    )


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def drawn(table: TrialsTable, height: int = 30, width: int = 120) -> list[str]:
    console = screen(True, height, width)
    console.print(table.table())
    return text_of(console).splitlines()


NEWS = [
    Event(FIRST.key, "finished", "a:1", result=TrialResult(FIRST.key, "done", 0.9, 2.5e6, seconds=12.3)),
    Event(SECOND.key, "started", "a:1"),
    Event(SECOND.key, "lost", "a:1", "its worker was killed"),
    Event(SECOND.key, "started", "a:2"),
    Event(THIRD.key, "started", "a:3"),
    Event(THIRD.key, "timed out", "a:3", "too [slow]", TrialResult(THIRD.key, "failed", error="too [slow], once")),
    Event(FOURTH.key, "finished", result=TrialResult(FOURTH.key, "failed", attempts=0, error="its parent failed")),
]


def test_a_log_gets_a_line_for_each_piece_of_news() -> None:
    console = screen(False)
    with TrialsTable([FIRST, SECOND, THIRD, FOURTH], console) as table:
        for event in NEWS:
            table(event)
    lines = [line.partition(" s  ")[2] for line in text_of(console).splitlines()]
    assert lines == [
        "d1-w1-r1-s0: done: accuracy 0.9000, 2.50 M MACs, 12.3 s (known)",
        "d1-w0.5-r1-s0: started on a:1",
        "d1-w0.5-r1-s0: lost: its worker was killed",
        "d1-w0.5-r1-s0: started on a:2, attempt 2",
        "d0.75-w1-r0.8-s1: started on a:3",
        "d0.75-w1-r0.8-s1: failed: too [slow], once",
        "d1-w0.3-r1-s0: failed: its parent failed",
    ]


def test_a_terminal_sees_the_state_of_each_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(trials_table, "time", SimpleNamespace(monotonic=lambda: now[0]))
    table = TrialsTable([FIRST, SECOND, THIRD, FOURTH], screen(True))
    waiting = drawn(table)
    assert [line.split()[4] for line in waiting[1:5]] == ["waiting"] * 4
    for event in NEWS:
        table(event)
    now[0] += 71.0
    heading, first, second, third, _, counts = drawn(table)
    assert heading.split() == ["depth", "width", "size", "seed", "state", "accuracy", "MACs", "seconds"]
    assert first.split() == ["1", "1", "1", "0", "done", "0.9000", "2.50", "M", "12"]
    assert second.split()[:6] == ["1", "0.5", "1", "0", "running", "71"]
    assert "a:2, attempt 2: its worker was killed" in second
    assert third.split()[:6] == ["0.75", "1", "0.8", "1", "failed", "-"]
    assert third.rstrip().endswith("too [slow], once")
    assert counts.startswith("1 done, 2 failed, 1 running of 4; 1:11")


def test_only_reasons_are_shortened() -> None:
    table = TrialsTable([FIRST, SECOND], screen(True))
    table(NEWS[0])
    table(Event(SECOND.key, "finished", result=TrialResult(SECOND.key, "failed", error="a long reason " * 20)))
    _, first, second, _ = drawn(table, width=80)
    assert first.split() == ["1", "1", "1", "0", "done", "0.9000", "2.50", "M", "12"]
    assert second.split()[:6] == ["1", "0.5", "1", "0", "failed", "-"]
    assert second.rstrip().endswith("…")


def _lines_shown(table: TrialsTable, height: int) -> Sequence[str]:
    table._console.height = height
    return [line.split()[1] for line in drawn(table)[1:-1]]


def test_a_low_terminal_shows_what_matters() -> None:
    trials = [Trial(width=number / 100) for number in range(1, 41)]
    table = TrialsTable(trials, screen(True))
    for trial in trials[:20]:
        table(Event(trial.key, "finished", result=TrialResult(trial.key, "done", 0.5)))
    bad = TrialResult(trials[3].key, "failed", error="no")
    table(Event(trials[3].key, "finished", result=bad))
    for trial in trials[20:22]:
        table(Event(trial.key, "started", "a:1"))
    assert _lines_shown(table, 7) == ["0.04", "0.21", "0.22"]
    assert _lines_shown(table, 11) == ["0.04", "0.19", "0.2", "0.21", "0.22", "0.23", "0.24"]
    assert "33 of them not shown" in drawn(table)[-1]
    assert len(_lines_shown(table, 100)) == 40


def test_the_table_stays_when_the_search_ends() -> None:
    console = screen(True)
    with TrialsTable([FIRST], console) as table:
        table(NEWS[0])
    assert "1 done of 1" in text_of(console).splitlines()[-1]


def test_trials_may_be_added() -> None:
    console = screen(False)
    table = TrialsTable(console=console)
    table(NEWS[1], SECOND)
    table(NEWS[2], SECOND)
    assert [line.split()[2] for line in text_of(console).splitlines()] == ["d1-w0.5-r1-s0:"] * 2
    assert drawn(table)[-1].startswith("1 waiting of 1")
