"""``groups``, ``explain`` and ``export``: look at a model without changing it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from fxprune.cli.console import out, say
from fxprune.cli.loading import example_inputs, load_model
from fxprune.cli.optimize import PARITY_TOLERANCE
from fxprune.cli.output import staging
from fxprune.errors import InputError


def _traced(model: str, inputs: list[str], arguments: list[str], weights: Path | None, seed: int) -> Any:
    from fxprune.capture import trace

    return trace(load_model(model, arguments, weights, seed), example_inputs(inputs, seed))


def show_groups(
    model: str, inputs: list[str], arguments: list[str], weights: Path | None, *, as_json: bool, seed: int
) -> None:
    """Print the coupled groups of a model."""
    from fxprune.channels import find_groups

    found = find_groups(_traced(model, inputs, arguments, weights, seed))
    if as_json:
        listed = [
            {"parameters": [list(p) for p in g.parameters], "units": g.units, "frozen": g.frozen, "reason": g.reason}
            for g in found.groups
        ]
        print(json.dumps({"model": model, "units": int(found.live.sum()), "groups": listed}, indent=2))
        return
    table = Table(title=f"{model}: {int(found.live.sum()):,} removable units in {len(found.groups)} groups")
    table.add_column("#", justify="right")
    table.add_column("units", justify="right")
    table.add_column("stay", justify="right")
    table.add_column("parameters (dimension)", overflow="fold")
    table.add_column("why some stay", overflow="fold")
    for number, group in enumerate(found.groups):
        names = [f"{name} ({d})" for name, d in group.parameters]
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        table.add_row(str(number), str(group.units), str(group.frozen), shown, group.reason)
    out.print(table)


def show_explanation(
    model: str, parameter: str, dim: int, inputs: list[str], arguments: list[str], weights: Path | None, seed: int
) -> None:
    """Print what one dimension of a parameter is coupled to."""
    from fxprune.channels import find_groups

    found = find_groups(_traced(model, inputs, arguments, weights, seed))
    say(str(found.explain(parameter, dim)))


def export_model(
    model: str, path: Path, inputs: list[str], arguments: list[str], weights: Path | None, opset: int | None, seed: int
) -> None:
    """Export a model and compare the file with it."""
    from fxprune.deploy.onnx import export_onnx
    from fxprune.deploy.parity import check_parity

    if path.is_dir():
        raise InputError(f"--out {path} is a folder; name the file, for example {path / 'model.onnx'}")
    traced = _traced(model, inputs, arguments, weights, seed)
    with staging(path.parent) as folder:  # a file that is wrong never takes the place of one that is right
        report = export_onnx(traced, folder / path.name, opset=opset, metadata={"model": model})
        parity = check_parity(traced, folder / path.name, seed=seed)
        parity.require(PARITY_TOLERANCE)
    say(f"{path}: opset {report.opset}, {report.bytes:,} bytes, largest relative error {parity.max_relative_error:.1e}")
