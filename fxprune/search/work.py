"""Carrying out one trial, the same on every kind of worker.

A trial has ended when its folder holds ``result.json``, which is written in one step before anybody is told. So a
search that was killed in between takes the result from there, and no trial is run twice to its end. A lock keeps a
second worker out of the folder, such as one whose search was killed and is about to die.
"""

from __future__ import annotations

import errno
import importlib
import json
import math
import os
import re
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fxprune.errors import InputError
from fxprune.interrupts import was_interrupted
from fxprune.search.trials import RESULT, SCHEMA, Trial, TrialResult, Work, read_result

ATTEMPTS, LOG = "attempts.jsonl", "log.txt"
LOCK_WAIT = 30.0  # seconds; a worker whose search was killed is gone within one
FINISHING = threading.Lock()
"""Held from the end of a work until its result is written; a worker whose search was killed dies outside of that."""

_NUMBERS = ("macs", "params", "resolution")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NUMBERS_OF_FULL = "|".join(map(str, _FULL))
_SAYS_FULL = re.compile(
    rf"no space left|quota exceeded|disk is full|\(os error ({_NUMBERS_OF_FULL})\)|code: ({_NUMBERS_OF_FULL})\b", re.I
)
_NOTHING = 1 << 16  # bytes; no trial is written into less


class SearchStopped(InputError):
    """No trial can be run, for a reason that concerns all of them; the search goes on when it is gone.

    Work may raise it, say where its data are missing; everything else that it raises concerns its trial alone.
    """


def load_work(work: Work) -> Callable[[Trial, Path], Mapping[str, Any]]:
    """Return the function that a work is or names.

    Raises:
        SearchStopped: There is no such function here.
    """
    if not isinstance(work, str):
        return work
    module, _, name = work.partition(":")
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise SearchStopped(
            f"a worker cannot load {work!r} ({error}); give package.module:function of a module that can be imported "
            "where workers run"
        ) from error
    if not callable(found):
        raise SearchStopped(f"{work!r} is a {type(found).__name__}, and no function of a trial and a folder")
    return found


def carry_out(trial: Trial, work: Work, folder: Path) -> TrialResult:
    """Run a trial to its end, note how it ended, and return that.

    Whatever the work raises, or returns that is no result, makes a failed trial. The traceback is in ``log.txt``. What
    ends the process (``SystemExit``, which is also what a worker that is told to leave raises) is no result, and
    neither is what an interrupt became on its way.

    Args:
        trial: What to run.
        work: What runs it.
        folder: The trial's own; it exists, and holds what earlier attempts left.

    Raises:
        SearchStopped: The disk is full; the work cannot be loaded, or says so itself; another worker is at the trial;
            or the folder does not exist here.
    """
    if not folder.is_dir():
        raise SearchStopped(
            f"{worker_name()} does not see {folder}; the folder of a search has to lie on a disk that all workers "
            "share, under the same name"
        )
    with _alone(folder):
        if known := read_result(folder, trial.key):
            return known  # its worker wrote it, but nobody took it
        function = load_work(work)
        with _stop_when_full(folder):
            about: dict[str, Any] = {"attempts": _note_attempt(folder), "worker": worker_name()}
            start = time.perf_counter()
            returned, error = _call(function, trial, folder)
            with FINISHING:
                values = {"status": "failed", "error": _reason(error)} if error else _judged(returned, folder)
                result = TrialResult(trial.key, **values, **about, seconds=time.perf_counter() - start)
                _write_result(folder, trial, result)
    return result


def _call(function: Callable[[Trial, Path], Any], trial: Trial, folder: Path) -> tuple[Any, Exception | None]:
    """Return what the work returned, or raised."""
    try:
        return function(trial, folder), None
    except Exception as error:
        if isinstance(error, SearchStopped) or _is_full(error, folder):
            raise
        if was_interrupted(error):
            raise KeyboardInterrupt from error
        with (folder / LOG).open("a") as file:
            file.write(traceback.format_exc())
        return None, error


def _judged(returned: Any, folder: Path) -> dict[str, Any]:
    try:
        return {"status": "done", **_checked(returned, folder)}
    except (TypeError, ValueError, OSError) as error:
        return {"status": "failed", "error": _reason(error)}


def _write_result(folder: Path, trial: Trial, result: TrialResult) -> None:
    """Write the file that says that a trial has ended, in one step.

    It takes its name before it is flushed to the disk, so that a worker that is killed then has not worked in vain.
    What a power cut leaves of it is no JSON, and counts as nothing.
    """
    path, new = folder / RESULT, folder / f".{RESULT}.new"
    new.write_text(
        json.dumps({"schema": SCHEMA, "trial": trial.to_json(), "result": result.to_json()}, indent=1), encoding="utf-8"
    )
    new.replace(path)
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def attempts_of(folder: Path) -> list[dict[str, Any]]:
    """Return when and where a trial was begun, in order."""
    try:
        lines = (folder / ATTEMPTS).read_text().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def worker_name(process: int | None = None) -> str:
    """Return host and process; this one, unless another is named."""
    return f"{socket.gethostname()}:{process or os.getpid()}"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=LOCK_WAIT)
    except Timeout as error:
        begun = attempts_of(folder)
        raise SearchStopped(
            f"another worker ({begun[-1]['worker'] if begun else 'unknown'}) is still at the trial in {folder}; end "
            "it, or wait until it is done, and start the search again"
        ) from error
    except OSError as error:
        raise _stopped(folder, error) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _stop_when_full(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not isinstance(error, SearchStopped) and _is_full(error, folder):
            raise _stopped(folder, error) from error
        raise


def _stopped(folder: Path, error: BaseException) -> SearchStopped:
    return SearchStopped(
        f"a trial cannot write to {folder} ({error}), so the search stops; what is done is kept. Free space, and start "
        "it again: it goes on where it was"
    )


def _is_full(error: BaseException | None, folder: Path) -> bool:
    """Whether a full disk is behind an error, also where somebody has wrapped it, or raises something of their own.

    Libraries that write by themselves raise what they like: safetensors says so in words, and torch only that a file
    could not be written. Where nothing is left of the disk, that is the reason.
    """
    while error is not None:
        if (isinstance(error, OSError) and error.errno in _FULL) or _SAYS_FULL.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return _nothing_left(folder)


def _nothing_left(folder: Path) -> bool:
    """Whether the disk of a folder has no room, or no entries, for another file."""
    if not hasattr(os, "statvfs"):
        return False
    try:
        disk = os.statvfs(folder)
    except OSError:  # what is wrong with the folder is said by whoever writes there
        return False
    privileged = os.geteuid() == 0
    free, entries = (disk.f_bfree, disk.f_ffree) if privileged else (disk.f_bavail, disk.f_favail)
    return (disk.f_blocks > 0 and free * disk.f_frsize < _NOTHING) or (disk.f_files > 0 and entries == 0)


def _note_attempt(folder: Path) -> int:
    line = json.dumps({"worker": worker_name(), "started": time.time()})
    before = len(attempts_of(folder))
    with (folder / ATTEMPTS).open("a") as file:
        file.write(f"\n{line}\n")  # begins a line also where the one before was cut short
    return before + 1


def _checked(returned: Any, folder: Path) -> dict[str, Any]:
    """Return the parts of a result, from what a work returned."""
    if not isinstance(returned, Mapping) or "accuracy" not in returned:
        raise TypeError(
            f"it returned {_shown(returned)}, and not a dictionary with an accuracy"  # for people, beside the trial
        )
    values = dict(returned)
    found: dict[str, Any] = {"accuracy": _number("accuracy", values.pop("accuracy"))}
    for name in _NUMBERS:
        value = values.pop(name, None)
        found[name] = None if value is None else _number(name, value)
    weights = values.pop("weights", None)
    if weights is not None:
        found["weights"] = os.fspath(Path(weights).name if Path(weights).parent == folder else weights)
        if not (folder / found["weights"]).is_file():
            raise FileNotFoundError(f"it says that its weights are in {weights}, and there is no such file")
    try:
        found["figures"] = json.loads(json.dumps(values, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"it returned more than plain data ({error})") from error
    return found


def _number(name: str, value: Any) -> float:
    """Return a finite number, also of a scalar tensor or array."""
    if isinstance(value, str | bytes | bool):
        raise TypeError(f"it returned {_shown(value)} as {name}, which is no number")
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"it returned {_shown(value)} as {name}, which is no number") from error
    if not math.isfinite(number):
        raise ValueError(f"it returned {number} as {name}, which is no finite number")
    return number


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"


def _reason(error: Exception) -> str:
    """Return the kind of an error and its first line, short enough for a table."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:500]}" if lines else type(error).__name__
