"""Work for trials, which worker processes import as ``search.works``: each shows one way for a trial to go.

A trial counts to ``options["steps"]``, in steps that it keeps in its folder as a checkpoint, and leaves marks of what
it did: ``begun``, ``steps`` and ``done`` have a line for each time.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from fxprune.search import SearchStopped, Trial, parent_weights


def count(trial: Trial, folder: Path) -> dict[str, Any]:
    """Count with a checkpoint; the accuracy follows from the trial and its parent's weights."""
    mark(folder, "begun", os.getpid())
    state = folder / "checkpoint.json"
    step, total = json.loads(state.read_text()) if state.exists() else (0, start_of(trial, folder))
    while step < trial.options.get("steps", 3):
        time.sleep(trial.options.get("sleep", 0.0))
        step, total = step + 1, (total * 31 + trial.seed + int(1000 * trial.width) + step) % 10007
        write(state, json.dumps([step, total]))
        mark(folder, "steps", step)
    write(folder / "weights.json", json.dumps(total))
    result = {
        "accuracy": total / 10007,
        "macs": 1e6 * trial.depth * trial.width**2,
        "weights": "weights.json",
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }
    mark(folder, "done", os.getpid())
    return result


def start_of(trial: Trial, folder: Path) -> int:
    weights = parent_weights(trial, folder)
    return 1 if weights is None else int(json.loads(weights.read_text()))


def mark(folder: Path, name: str, value: object) -> None:
    with (folder / name).open("a") as file:
        file.write(f"{value}\n")


def marks(folder: Path, name: str) -> list[str]:
    return (folder / name).read_text().split() if (folder / name).exists() else []


def write(path: Path, text: str) -> None:
    """In one step, as checkpoints are."""
    new = path.with_suffix(f".{os.getpid()}")
    new.write_text(text)
    new.replace(path)


def fall(trial: Trial, folder: Path) -> dict[str, Any]:
    """Count, unless the options say how it goes wrong."""
    way = trial.options.get("way")
    begun = len(marks(folder, "begun"))
    if way == "raise":
        raise RuntimeError("the data are gone\nand this is the second line")
    if way == "exit":
        sys.exit(3)
    if way == "nan":
        return {"accuracy": float("nan")}
    if way in RETURNS:
        return RETURNS[way]  # type: ignore[no-any-return]
    if way == "hang" or (way == "hang once" and not begun):
        mark(folder, "begun", os.getpid())
        time.sleep(600)
    if way == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if way == "stop":
        raise SearchStopped("there are no data on this machine")
    if way == "kill":
        mark(folder, "begun", os.getpid())
        os.kill(os.getpid(), signal.SIGKILL)
    if way == "print":
        os.write(1, b"from a library\n")
        print("from python", file=sys.stderr)
    return count(trial, folder)


RETURNS: dict[str | None, Any] = {
    "text": {"accuracy": "good"},
    "truth": {"accuracy": True},
    "nothing": None,
    "number": 0.5,
    "no accuracy": {"macs": 3},
    "endless": {"accuracy": 0.5, "macs": float("inf")},
    "no file": {"accuracy": 0.5, "weights": "gone.safetensors"},
    "object": {"accuracy": 0.5, "more": object()},
}


class Local:
    """Work as an object with what it needs."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, trial: Trial, folder: Path) -> dict[str, Any]:
        return {"accuracy": self.factor * trial.width}


def trials(count: int = 3, **options: Any) -> list[Trial]:
    """Two chains from one trial, as pruning step by step makes them."""
    first = Trial(options=options)
    found = [first]
    for number in range(count):
        for name in ("width", "depth"):
            share = {name: 0.9 - 0.1 * number}
            parent = first if not number else found[-2]
            found.append(Trial(**share, parent=parent.key, options=options))
    return found
