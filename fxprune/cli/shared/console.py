"""What every command shares: errors as one paragraph, exit codes, progress."""

from __future__ import annotations

import contextlib
import functools
import io
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import typer
from rich.console import Console

from fxprune.errors import FxPruneError

P = ParamSpec("P")
R = TypeVar("R")

out = Console()
err = Console(stderr=True)
_debug = False

INTERRUPTED = 130  # what a shell expects of a program that Ctrl-C ended


def say(text: str, console: Console = out) -> None:
    """Print text as it is: broken between words where a person reads it, and not at all where a program does."""
    console.print(text, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def set_debug(value: bool) -> None:
    """Show tracebacks with errors."""
    global _debug  # one switch for the whole process
    _debug = value


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Turn refusals into one paragraph on stderr and the exit code that belongs to them."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except FxPruneError as error:
            if _debug:
                traceback.print_exc()
            say(f"fxprune: {error}", err)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as stop:
            say("; ".join(["fxprune: interrupted", *map(str, stop.args)]), err)
            raise typer.Exit(INTERRUPTED) from None

    return run


class Stages:
    """Runs the steps of a command one after the other, shows which, and keeps how long each took.

    Progress goes to stderr, so that what is piped on is the result alone.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str, what: str) -> Iterator[None]:
        """Time one step under ``name``; a terminal sees a spinner, a log file one line at its end."""
        start = time.perf_counter()
        with err.status(what) if err.is_terminal else contextlib.nullcontext():
            yield
        spent = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + spent
        say(f"{spent:6.1f} s  {what}", err)


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Keep from the terminal what torch prints about its insides while it captures, unless that was asked for.

    A refusal says in one paragraph what torch says in fifty lines before it raises.
    """
    if _debug:
        yield
        return
    swallowed = io.StringIO()
    swallowed.rich_proxied_file = err.file  # type: ignore[attr-defined]  # where rich goes on to draw the spinner
    with contextlib.redirect_stderr(swallowed):
        yield


def share(part: float, whole: float) -> str:
    """Return a part in per cent of the whole; a dash where there is no whole."""
    return f"{part / whole:.1%}" if whole else "-"


def thousands(value: Any) -> str:
    """Return a count in a form that people read: 4.1 G, 25.6 M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return str(value)
