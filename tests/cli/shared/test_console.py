"""Errors as one paragraph, counts as people read them, progress apart from the result."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest
import typer
from rich.console import Console

from fxprune.cli.shared import console
from fxprune.errors import BudgetError, EnvironmentProblem, FxPruneError, InputError


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (999, "999"), (1000, "1.00 k"), (25_557_032, "25.56 M"), (4_089_184_256, "4.09 G")],
)
def test_counts(value: int, shown: str) -> None:
    assert console.thousands(value) == shown


@pytest.mark.parametrize(
    ("error", "code"), [(InputError, 2), (BudgetError, 1), (EnvironmentProblem, 4), (FxPruneError, 1)]
)
def test_a_refusal_is_one_paragraph_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], error: type[FxPruneError], code: int
) -> None:
    @console.guarded
    def command() -> None:
        raise error("[red]layer[0][/red] is " + "very " * 60 + "long")

    with pytest.raises(typer.Exit) as stopped:
        command()
    printed, said = capsys.readouterr()
    assert stopped.value.exit_code == code
    assert printed == ""
    assert said == "fxprune: [red]layer[0][/red] is " + "very " * 60 + "long\n"


@pytest.mark.parametrize(("words", "said"), [((), "fxprune: interrupted\n"), (("x",), "fxprune: interrupted; x\n")])
def test_ctrl_c_is_one_line(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str) -> None:
    @console.guarded
    def command() -> None:
        raise KeyboardInterrupt(*words)

    with pytest.raises(typer.Exit) as stopped:
        command()
    assert stopped.value.exit_code == 130
    assert capsys.readouterr() == ("", said)


def test_other_errors_are_not_hidden() -> None:
    @console.guarded
    def command() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        command()


def test_text_breaks_between_words_on_a_terminal_only() -> None:
    for terminal, lines in ((True, 2), (False, 1)):
        screen = Console(file=io.StringIO(), width=20, force_terminal=terminal, color_system=None)
        console.say("a parameter of the stage", screen)
        assert isinstance(screen.file, io.StringIO)
        assert len(screen.file.getvalue().splitlines()) == lines
        assert "parameter of" in screen.file.getvalue()


def test_progress_is_no_part_of_the_result(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter((10.0, 10.5, 20.0, 22.0))
    monkeypatch.setattr(console, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    stages = console.Stages()
    for what in ("load [m]", "load more"):
        with stages.step("load", what):
            pass
    printed, said = capsys.readouterr()
    assert printed == ""
    assert said.splitlines() == ["   0.5 s  load [m]", "   2.0 s  load more"]
    assert stages.seconds == {"load": 2.5}


def test_shares() -> None:
    assert console.share(1, 3) == "33.3%"
    assert console.share(0, 0) == "-"


def test_what_libraries_print_is_muted_unless_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for debug, said in ((False, ""), (True, "noise\n")):
        console.set_debug(debug)
        with console.muted():
            print("noise", file=sys.stderr)
        console.set_debug(False)
        assert capsys.readouterr().err == said
