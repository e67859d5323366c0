"""What a trial is and what comes of it, as plain data.

A trial is a point of a search: how deep, wide and large, trained for how long, from which seed, starting from which
other trial's weights. Its key is the digest of all that, so that one key has one result, wherever and in whatever order
trials are run. What carries it out is the caller's (:data:`Work`): nothing here knows of pruning.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from fxprune.errors import InputError

RESULT = "result.json"
SCHEMA = 1


@dataclass(frozen=True)
class Trial:
    """A pure function of this description and the data: two trials that are equal have the same accuracy.

    Attributes:
        depth: Share of the layers that can go which are kept, in (0, 1] or as the caller counts.
        width: Share of the channels that are kept.
        resolution: Side of the input, as a share of the original's.
        epochs: How long it is trained.
        seed: Of all that is random in it.
        parent: Key of the trial whose weights it starts from; None for those that the search was given.
        settings: Digest of all else that the accuracy follows from: model, data, recipe (:func:`digest`).
        options: More that the work asks for, as plain JSON.

    Raises:
        InputError: A share is no positive number, or the options are no JSON.
    """

    depth: float = 1.0
    width: float = 1.0
    resolution: float = 1.0
    epochs: int = 0
    seed: int = 0
    parent: str | None = None
    settings: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("depth", "width", "resolution"):
            value = float(getattr(self, name))
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"the {name} of a trial is {value}; give a share of the original that is above 0")
            object.__setattr__(self, name, value)  # 1 and 1.0 are one trial
        _ = self.key  # options that are no JSON are refused here, and not on a worker

    @cached_property
    def key(self) -> str:
        """The sha256 digest of the content, in hexadecimal digits."""
        return digest(self.to_json())

    @property
    def name(self) -> str:
        """A short name for people, which begins the name of its folder."""
        return f"d{self.depth:.3g}-w{self.width:.3g}-r{self.resolution:.3g}-s{self.seed}"

    def to_json(self) -> dict[str, Any]:
        """Return the description as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Trial:
        """Return the trial that :meth:`to_json` described."""
        return cls(**values)


@dataclass(frozen=True)
class TrialResult:
    """What came of a trial.

    Attributes:
        key: Of the trial.
        status: ``done``, or ``failed``: it raised, returned no number, or was lost or timed out too often.
        accuracy: On the validation data; None where it failed.
        macs: Multiply-accumulates of one sample, counted.
        params: Parameters.
        resolution: Side of the input in pixels.
        seconds: Of the attempt that ended it, on its worker.
        weights: Name of the file with its weights, within the folder of the trial.
        worker: Host and process that ended it.
        attempts: How often it was begun.
        error: Why it failed.
        figures: What else the work returned, as plain JSON.
    """

    key: str
    status: Literal["done", "failed"]
    accuracy: float | None = None
    macs: float | None = None
    params: float | None = None
    resolution: float | None = None
    seconds: float = 0.0
    weights: str | None = None
    worker: str = ""
    attempts: int = 1
    error: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def outcome(self) -> dict[str, Any]:
        """The part that follows from the trial alone, not from where and how often it was run."""
        values = self.to_json()
        return {name: value for name, value in values.items() if name not in ("seconds", "worker", "attempts")}

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrialResult:
        """Return the result that :meth:`to_json` described."""
        return cls(**values)


Work = str | Callable[[Trial, Path], Mapping[str, Any]]
"""Carries a trial out: ``work(trial, folder)``, or ``"package.module:function"`` that names such a function.

It returns a dictionary with ``accuracy`` (a finite number) and, where it has them, ``macs``, ``params``,
``resolution``, ``weights`` (the name of a file that it wrote into the folder), and whatever else is plain JSON. The
folder is the trial's own and the same at every attempt, so that it can keep a checkpoint there and go on from it, as
``finetune(out=folder)`` does. The parent's files lie in :func:`parent_folder`. It must be picklable to be run by other
processes.
"""


def digest(values: Any) -> str:
    """Return the sha256 digest of plain data, the same for the same content.

    Raises:
        InputError: It is no JSON: it holds something else, or a number that is not finite.
    """
    try:
        text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the description of a trial has to be plain data ({error}); give texts, finite numbers, lists and "
            "dictionaries"
        ) from error
    return hashlib.sha256(text.encode()).hexdigest()


def folder_of(trials: Path, trial: Trial) -> Path:
    """Return the folder of a trial, among those of all trials."""
    return trials / f"{trial.name}-{trial.key[:16]}"


def parent_folder(trial: Trial, folder: Path) -> Path | None:
    """Return the folder of the trial whose weights this one starts from, or None where it has no parent.

    Args:
        trial: The one that is run.
        folder: Its folder, as its work is given it.

    Raises:
        InputError: The folder is gone.
    """
    if trial.parent is None:
        return None
    for found in folder.parent.glob(f"*-{trial.parent[:16]}"):
        return found
    raise InputError(f"the folder of the trial that {trial.name} starts from is missing in {folder.parent}")


def parent_weights(trial: Trial, folder: Path) -> Path | None:
    """Return the file with the weights that a trial starts from, or None where it has no parent.

    Raises:
        InputError: The parent has no weights: it is not done, or its work wrote none.
    """
    place = parent_folder(trial, folder)
    if place is None:
        return None
    result = read_result(place)
    if result is None or result.status != "done" or not result.weights:
        raise InputError(f"the trial in {place}, which {trial.name} starts from, left no weights")
    return place / result.weights


def read_result(folder: Path, key: str | None = None) -> TrialResult | None:
    """Return what a worker wrote at the end of a trial, or None where it has not ended.

    Args:
        folder: Of the trial.
        key: The trial that is asked for; the file of another one counts as none.
    """
    try:
        values = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # it may have been cut short by a power cut
        return None
    if values.get("schema") != SCHEMA or (key is not None and values["result"]["key"] != key):
        return None
    known = {each.name for each in fields(TrialResult)}
    return TrialResult.from_json({name: value for name, value in values["result"].items() if name in known})
