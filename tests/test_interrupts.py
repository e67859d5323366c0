"""What becomes of Ctrl-C on its way through libraries."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fxprune.interrupts import lasting_interrupts, was_interrupted
from fxprune.search.trials import RESULT, Trial
from fxprune.search.work import carry_out


def swallowed(trial: Trial, folder: Path) -> dict[str, Any]:
    """Be interrupted within a library that says something else, and keeps nothing of why."""
    with contextlib.suppress(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    raise RuntimeError("FakeTensorMode is set already")


def wrapped(trial: Trial, folder: Path) -> dict[str, Any]:
    """The same, of a library that raises its own error while it handles the interrupt."""
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        raise RuntimeError("the import of a part failed") from None
    return {}


def fails(trial: Trial, folder: Path) -> dict[str, Any]:
    raise RuntimeError("the images are on the other disk")


TRIAL = Trial(1.0, 1.0, 1.0, epochs=1, seed=0)


@pytest.mark.parametrize("work", [swallowed, wrapped])
def test_an_interrupt_that_became_another_error_is_no_failed_trial(work: Callable[..., Any], tmp_path: Path) -> None:
    with lasting_interrupts(), pytest.raises(KeyboardInterrupt):
        carry_out(TRIAL, work, tmp_path)
    assert not (tmp_path / RESULT).exists()
    assert carry_out(TRIAL, fails, tmp_path).status == "failed"  # and later ones may fail again


def test_the_chain_of_an_error_tells_where_nobody_listened(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        carry_out(TRIAL, wrapped, tmp_path)
    assert carry_out(TRIAL, fails, tmp_path).error == "RuntimeError: the images are on the other disk"


def test_other_errors_are_none() -> None:
    error = ValueError("a")
    error.__context__ = KeyError("b")
    error.__context__.__context__ = error
    assert not was_interrupted(error)
    error.__context__ = KeyboardInterrupt()
    assert was_interrupted(error)


class Freed:
    """Is interrupted while it is freed, where Python drops what is raised."""

    def __init__(self, raised: bool = False) -> None:
        self.raised = raised

    def __del__(self) -> None:
        if self.raised:
            raise ValueError("not free of faults")
        os.kill(os.getpid(), signal.SIGINT)


def free_and_wait() -> None:
    Freed()
    time.sleep(60)


def test_an_interrupt_that_python_drops_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def hook(raised: Any) -> None:
        seen.append(raised.exc_type)

    monkeypatch.setattr(sys, "unraisablehook", hook)
    alarm = signal.getsignal(signal.SIGALRM)
    with lasting_interrupts() as check:
        check()
        Freed(raised=True)
        with pytest.raises(KeyboardInterrupt):
            free_and_wait()
        with pytest.raises(KeyboardInterrupt):
            check()
    assert seen == [ValueError]  # which is somebody else's
    assert sys.unraisablehook is hook
    assert signal.getsignal(signal.SIGALRM) == alarm
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
