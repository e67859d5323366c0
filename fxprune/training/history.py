"""What a training reports: a line of JSON for each epoch, and a picture of its curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fxprune.deploy.files import atomic_write
from fxprune.training.images import missing

Row = dict[str, Any]


def write_metrics(path: Path, history: Sequence[Row]) -> None:
    """Write one line of JSON per epoch, all in one step.

    Raises:
        InputError: The file cannot be written.
    """
    text = "".join(json.dumps(row) + "\n" for row in history)

    def write(temporary: Path) -> None:
        temporary.write_text(text)

    atomic_write(path, write)


def empty_figure() -> Any:
    """Return a figure that needs no window, and none of pyplot's global state.

    Raises:
        EnvironmentProblem: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing("matplotlib", error) from error
    return Figure(figsize=(8, 3.2), layout="constrained")


def write_curves(path: Path, history: Sequence[Row]) -> None:
    """Draw loss and accuracy over the epochs as a PNG.

    Raises:
        InputError: The file cannot be written.
        EnvironmentProblem: matplotlib is not installed.
    """
    figure = empty_figure()
    for axes, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part in ("train", "validation"):
            points = [(row["epoch"], row[f"{part}_{what}"]) for row in history if row.get(f"{part}_{what}") is not None]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", label=part)
        axes.set(xlabel="epoch", title=what)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
