"""What a worker process does: it carries out what comes through its pipe, and ends when the search does."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fxprune.errors import InputError
from fxprune.search.work import FINISHING, LOG, carry_out, load_work


def serve(pipe: Connection, content: bytes) -> None:
    """Carry out what comes through the pipe, until there is no more."""
    if hasattr(os, "setsid"):
        os.setsid()  # a group of its own: Ctrl-C is the search's, and who ends the worker ends what it started
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_search, daemon=True).start()
    try:
        work = pickle.loads(content)
        load_work(work)
    except Exception as error:
        pipe.send(("stopped", f"a worker process cannot load the work ({type(error).__name__}: {error})"))
        return
    pipe.send(("ready", None))
    while True:
        try:
            message = pipe.recv()
        except EOFError:
            return
        if message is None:
            return
        trial, folder = message
        try:
            with output_to(folder / LOG):
                answer: tuple[str, Any] = ("result", carry_out(trial, work, folder))
        except InputError as error:
            answer = ("stopped", str(error))
        except OSError as error:
            answer = ("stopped", f"a worker cannot use {folder}: {error}")
        pipe.send(answer)


def _end_with_search() -> None:
    """Wait for the end of the search, which may have been killed, and end this process and what it started."""
    search = multiprocessing.parent_process()
    assert search is not None  # this is a process that multiprocessing started
    connection.wait([search.sentinel])
    FINISHING.acquire()  # never given back
    if hasattr(os, "killpg"):
        os.killpg(os.getpgid(0), signal.SIGKILL)
    os._exit(1)


@contextlib.contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Append what this process prints, also by libraries that are not Python, to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with path.open("ab") as file:
        try:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in enumerate(kept, 1):
                os.dup2(copy, number)
                os.close(copy)
