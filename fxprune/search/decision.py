"""What a search measured and decided between its trials, kept so that it goes on with the same networks.

Trials and counted costs are the same whenever they are asked for; a latency is not, and what is chosen by one would be
other networks each time that a search goes on, and trained anew.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import fxprune
from fxprune.deploy.files import atomic_write
from fxprune.deploy.machine import machine
from fxprune.errors import InputError
from fxprune.search.candidates import Built
from fxprune.search.fitting import Measured, Request
from fxprune.search.meters import Measuring
from fxprune.search.network import Subject, rebuild
from fxprune.search.optimum import Choice
from fxprune.search.predictor import Point
from fxprune.search.pruning import described, read_plan
from fxprune.search.trials import digest

CHOICES, LATENCY = "choices", "latency.json"
Wanted = Mapping[str, Built | str]


def measured_once(folder: Path, how: Measuring, measure: Callable[[], float]) -> float:
    """Return a share of the latency that was measured before in the same way on such a machine, or measure and note it.

    Args:
        folder: Of the trial whose network it is.
        how: How it is measured.
        measure: Does it.

    Raises:
        InputError: It cannot be written.
    """
    asked = {**dataclasses.asdict(how), "machine": machine()["fingerprint"]}
    known = _read(folder / LATENCY)
    if known is not None and known.get("measuring") == asked:
        return float(known["share"])
    share = measure()
    _write(folder / LATENCY, {"measuring": asked, "share": share})
    return share


def file_for(folder: Path, asked: Request, measured: Sequence[Measured]) -> Path:
    """Return where the decision lies that follows from these points.

    Args:
        folder: Of the search.
        asked: Budget and choices.
        measured: The points.
    """
    request = {**dataclasses.asdict(asked), "epochs": None, "alternatives": None}  # they do not decide what is built
    points = [[each.trial.key, each.point.accuracy, each.cost] for each in measured]
    key = digest({"request": request, "points": points, "version": fxprune.__version__})
    return folder / CHOICES / f"{key[:16]}.json"


def keep(path: Path, wanted: Wanted) -> None:
    """Write down what was built.

    Raises:
        InputError: It cannot be written.
    """
    found = {name: built if isinstance(built, str) else _plain(built) for name, built in wanted.items()}
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {path.parent}: {error.strerror or error}") from error
    _write(path, {"schema": 1, "networks": found})


def kept(path: Path, subject: Subject) -> dict[str, Built | str] | None:
    """Build again what was decided; None where nothing was.

    Args:
        path: Of :func:`file_for`.
        subject: The dense model.
    """
    found = _read(path)
    if found is None:
        return None
    networks: dict[str, Built | str] = {}
    for name, entry in found["networks"].items():
        if isinstance(entry, str):
            networks[name] = entry
            continue
        network = rebuild(subject, [read_plan(plan) for plan in entry["plans"]], entry["side"])
        depth, width, resolution = entry["shares"]
        point = Point(depth, width, resolution, float("nan"))
        networks[name] = Built(Choice(**entry["choice"]), network, point, entry["cost"])
    return networks


def _plain(built: Built) -> dict[str, Any]:
    return {
        "choice": dataclasses.asdict(built.choice),
        "side": built.network.side,
        "plans": described(built.network.steps),
        "shares": list(built.point.shares),
        "cost": built.cost,
    }


def _read(path: Path) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # a power cut may have cut it short
        return None
    return values


def _write(path: Path, values: dict[str, Any]) -> None:
    text = json.dumps(values, indent=1)

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    atomic_write(path, write)
