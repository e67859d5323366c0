"""What a run with trainings keeps in its folder in order to go on, and how it tells that it is the same run.

A checkpoint says which training it is of, but not which steps led to it. Beside each one lies ``leads.json``: the
recipe up to there. A plan that was measured is kept too, since a second measurement may choose other channels.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune.cli.recipes.options import Options
from fxprune.cli.recipes.recipe import write_recipe
from fxprune.errors import InputError

if TYPE_CHECKING:
    from fxprune.planning import Plan

LEADS = "leads.json"
_PLAN = "plan.json"
_SAME_RESULT = ("cpu", "save_every")  # options of a training that change nothing of what comes out


def check_the_same(folder: Path, options: Options, number: int, plan: Plan | None) -> None:
    """Refuse to go on with a training to which other steps led; note down what leads to one that begins.

    Args:
        folder: Of the training.
        options: Of the run.
        number: Of the step.
        plan: What was cut in front of it.

    Raises:
        InputError: The folder has a checkpoint, and the recipe up to this step was another one.
    """
    from fxprune.training.checkpoint import first_difference
    from fxprune.training.trainer import CHECKPOINT

    leads = _leading_to(options, number) | {"cut by the plan": plan.hash if plan else ""}
    if options.resume and (folder / CHECKPOINT).exists() and (folder / LEADS).exists():
        found = first_difference(leads, json.loads((folder / LEADS).read_text()))
        if found:
            raise InputError(
                f"{folder} holds a training that other steps led to: {found}. Give the recipe that it began with, "
                "another --out, or --no-resume to start again; nothing was changed"
            )
        return
    _write(folder / LEADS, leads)


def keep_plan(folder: Path, options: Options, number: int, plan: Plan, trials: list[list[float]]) -> None:
    """Keep a plan that a step made."""
    leads = _leading_to(options, number)
    _write(folder / _PLAN, {"leads": leads, "plan": plan.to_json(), "trials": trials})


def kept_plan(folder: Path, options: Options, number: int) -> tuple[Plan, list[list[float]]] | None:
    """Return the plan that the same steps made, with what was tried on the way."""
    from fxprune.planning import Plan

    if not (folder / _PLAN).exists():
        return None
    found = json.loads((folder / _PLAN).read_text())
    if found["leads"] != _leading_to(options, number):
        return None
    return Plan.from_json(found["plan"]), found["trials"]


def _leading_to(options: Options, number: int) -> dict[str, Any]:
    """Return all that decides what comes out of a step, as plain data."""
    values = tomllib.loads(write_recipe(options))
    steps = {
        f"step {place}": {key: value for key, value in step.items() if key not in _SAME_RESULT}
        for place, step in enumerate(values["passes"][: number + 1], 1)
    }
    weights = hashlib.sha256(options.weights.read_bytes()).hexdigest() if options.weights else ""
    data = {key: value for key, value in values.get("data", {}).items() if key != "workers"}
    plan = values.get("plan", {})
    runtime = {"runtime": options.runtime, "threads": options.threads} if options.latency is not None else {}
    found = {"model": values["model"], "weights": weights, "data": data, "plan": plan | runtime, "steps": steps}
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def _write(path: Path, values: dict[str, Any]) -> None:
    from fxprune.deploy.files import atomic_write

    text = json.dumps(values, indent=2)

    def write(temporary: Path) -> None:
        temporary.write_text(text)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {path.parent}: {error.strerror or error}; give another --out"
        ) from error
    atomic_write(path, write)
