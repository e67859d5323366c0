"""Being stopped from outside: a CI system that cancels a job sends SIGTERM, which is to end like Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def termination_interrupts() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt within the block. Only the main thread hears signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


_AGAIN = 0.05  # seconds until an interrupt that was dropped is raised again
_heard = threading.Event()
"""Set from an interrupt on to the end of the block that listens."""


def was_interrupted(error: BaseException) -> bool:
    """Return whether an error is what became of an interrupt: libraries turn one into errors of their own.

    One that :func:`lasting_interrupts` heard is behind whatever fails after it; of others the chain of an error tells,
    where the library kept it.
    """
    seen = set[int]()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        if isinstance(link, KeyboardInterrupt):
            return True
        seen.add(id(link))
        link = link.__cause__ or link.__context__
    return _heard.is_set()


@contextlib.contextmanager
def lasting_interrupts() -> Iterator[Callable[[], None]]:
    """Let SIGTERM and Ctrl-C raise KeyboardInterrupt within the block, and give a call that does so where one got lost.

    Python drops what is raised while it frees an object, which a long computation does all the time; it is raised again
    a moment later then. What a library swallows is left to the call. Only the main thread hears signals.
    """

    def stop(_: int, __: FrameType | None) -> None:
        _heard.set()
        raise KeyboardInterrupt

    def check() -> None:
        if _heard.is_set():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    heeded = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heeded}
    try:
        with _raised_again(stop):
            yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _heard.clear()


@contextlib.contextmanager
def _raised_again(stop: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let a timer raise an interrupt that Python has dropped; systems without such timers go without."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    hook = sys.unraisablehook

    def dropped(raised: sys.UnraisableHookArgs) -> None:
        if issubclass(raised.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        else:
            hook(raised)

    before = signal.signal(signal.SIGALRM, stop)
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
