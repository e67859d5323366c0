"""The plan that ``finetune`` begins with: where it is, and whether the model that was named is the one it is of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from fxprune.cli.recipes.options import CALIBRATE, PRUNE, TRAIN
from fxprune.errors import InputError, PlanError

if TYPE_CHECKING:
    from fxprune.capture import Traced
    from fxprune.planning import Plan

_OF_VALUES = (TRAIN, CALIBRATE)  # steps that leave the graph as it is
_FOR_DEPLOYMENT = ("remove-identity", "fuse-batchnorm")
_INSTEAD = (
    'Take the recipe that {folder}/report.json holds under "recipe", add a step [[passes]] with name = "train" to it, '
    "and run fxprune optimize --recipe"
)


def read_plan(path: Path | None) -> Plan | None:
    """Return a plan from its file, or from the folder of a run.

    Raises:
        InputError: There is none.
    """
    from fxprune.planning import Plan

    if path is None:
        return None
    file = path / "plan.json" if path.is_dir() else path
    if file.is_file():
        return Plan.from_json(file.read_text())
    made_by = _steps_of(file.parent)
    if made_by:
        raise InputError(
            f"{file.parent} has no plan: its steps were {', '.join(made_by)}, none of which cuts by one, and finetune "
            f"does not carry out others. {_INSTEAD.format(folder=file.parent)}"
        )
    raise InputError(
        f"there is no plan {file}; give a folder that fxprune optimize wrote with {PRUNE}, or its plan.json"
    )


def _steps_of(folder: Path) -> list[str]:
    """Return the steps of the run that wrote a folder; none where it was no run of optimize."""
    try:
        steps = json.loads((folder / "report.json").read_text())["steps"]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    return [str(step) for step in steps] if isinstance(steps, list) else []


def check_plan(plan: Plan, dense: Traced, path: Path) -> list[str]:
    """Refuse a plan for another graph, with the reason where it is known; return notes on what else a run did.

    Raises:
        InputError: The plan was made behind steps that change the graph.
        PlanError: It was made for another model.
    """
    folder = path if path.is_dir() else path.parent
    names = [step.partition(" (")[0] for step in _steps_of(folder)]
    at = names.index(PRUNE) if PRUNE in names else 0
    before = [name for name in names[:at] if name not in _OF_VALUES]
    try:
        plan.check(dense)
    except PlanError as error:
        if not before:
            raise
        raise InputError(
            f"the plan in {folder} is for the model behind {', '.join(before)}, and finetune, which takes the model as "
            f"it was built, carries out the plan alone. {_INSTEAD.format(folder=folder)}"
        ) from error
    behind = [name for name in names[at + 1 :] if name not in (*_OF_VALUES, *_FOR_DEPLOYMENT)]
    if not behind:
        return []
    return [f"of the steps that made {folder}, {PRUNE} alone is carried out here; not {', '.join(behind)}"]
