"""Work for trials, which worker processes import as ``search.works``: each shows one way for a trial to go.

A trial counts to ``options["steps"]`` and keeps each step in its folder as a checkpoint, with who took it. The files
``begun`` and ``done`` have a line for each time that it was begun and came to its end. Tests hold trials by files in
the folder of the search: so they need not be quick, nor lucky, to find them at work.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from fxprune.search import SearchStopped, Trial, parent_weights


def count(trial: Trial, folder: Path) -> dict[str, Any]:
    """Count with a checkpoint; the accuracy follows from the trial and its parent's weights."""
    mark(folder, "begun", os.getpid())
    meet(trial, folder)
    taken = steps(folder)
    total = taken[-1][2] if taken else start_of(trial, folder)
    for step in range(len(taken), trial.options.get("steps", 3)):
        time.sleep(trial.options.get("sleep", 0.0))
        while step == trial.options.get("held") and not (folder.parents[1] / "go").exists():
            time.sleep(0.02)
        total = (total * 31 + trial.seed + int(1000 * trial.width) + step) % 10007
        taken.append((step, os.getpid(), total))
        write(folder / "checkpoint.json", json.dumps(taken))
    write(folder / "weights.json", json.dumps(total))
    result = {
        "accuracy": total / 10007,
        "macs": 1e6 * trial.depth * trial.width**2,
        "weights": "weights.json",
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }
    mark(folder, "done", os.getpid())
    return result


def meet(trial: Trial, folder: Path) -> None:
    """Wait until two processes are at work, where there is the file ``meet``; not in the trial that all wait for."""
    while trial.parent and (folder.parents[1] / "meet").exists():
        if len({process for path in folder.parent.glob("*/begun") for process in marks(path.parent, "begun")}) > 1:
            return
        time.sleep(0.02)


def start_of(trial: Trial, folder: Path) -> int:
    weights = parent_weights(trial, folder)
    return 1 if weights is None else int(json.loads(weights.read_text()))


def steps(folder: Path) -> list[tuple[int, int, int]]:
    """Number, process and outcome of each step that is kept."""
    path = folder / "checkpoint.json"
    return [tuple(step) for step in json.loads(path.read_text())] if path.exists() else []


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
    if way in RETURNS:
        return RETURNS[way]  # type: ignore[no-any-return]
    WAYS.get(way, lambda folder: None)(folder)
    return count(trial, folder)


def fail(_: Path) -> None:
    raise RuntimeError("the data are gone\nand this is the second line")


def stop(_: Path) -> None:
    raise SearchStopped("there are no data on this machine")


def fill(_: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill_in_words(_: Path) -> None:
    """As safetensors says it, behind an error of somebody else."""
    try:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    except SafetensorError as error:
        raise RuntimeError("the weights could not be written") from error


def fill_unsaid(folder: Path) -> None:
    """As torch says it: the writer failed."""
    torch.save(torch.zeros(1 << 20), folder / "large.pt")


def hang(folder: Path) -> None:
    mark(folder, "begun", os.getpid())
    time.sleep(600)


def hang_once(folder: Path) -> None:
    if not marks(folder, "begun"):
        hang(folder)


def wait(folder: Path) -> None:
    """For a process of its own that hangs."""
    child = subprocess.Popen(["sleep", "600"])
    mark(folder, "child", child.pid)
    child.wait()


def die(_: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def say(_: Path) -> None:
    os.write(1, b"from a library\n")
    print("from python", file=sys.stderr)


WAYS: dict[str | None, Callable[[Path], None]] = {
    "raise": fail, "exit": lambda folder: sys.exit(3), "stop": stop, "full": fill, "full in words": fill_in_words,
    "full unsaid": fill_unsaid, "hang": hang, "hang once": hang_once,
    "wait": wait, "kill": die, "print": say,
}  # fmt: skip

RETURNS: dict[str | None, Any] = {
    "nan": {"accuracy": float("nan")},
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


def trials(count: int = 3, held: int | None = None, **options: Any) -> list[Trial]:
    """Two chains from one trial, as pruning step by step makes them; the last waits before a step for ``go``."""
    first = Trial(options=options)
    found = [first]
    for number in range(count):
        for name in ("width", "depth"):
            share = {name: 0.9 - 0.1 * number}
            parent = first if not number else found[-2]
            last = held is not None and number == count - 1 and name == "depth"
            found.append(Trial(**share, parent=parent.key, options={**options, "held": held} if last else options))
    return found
