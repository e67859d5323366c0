"""``groups``, ``explain``, ``export`` and ``doctor``: commands that look, and leave a model as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxprune.cli.commands.types import (
    AsJson,
    Inputs,
    Model,
    ModelArgs,
    Seed,
    Weights,
)
from fxprune.cli.shared.console import guarded


@guarded
def groups(
    model: Model,
    input: Inputs = None,
    model_arg: ModelArgs = None,
    weights: Weights = None,
    as_json: AsJson = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Draw them on a page of its own instead.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """List what can be removed together, and what stays and why."""
    from fxprune.cli.inspect import show_groups

    show_groups(model, list(input or ()), list(model_arg or ()), weights, as_json=as_json, html=html, seed=seed)


@guarded
def explain(
    model: Model,
    parameter: Annotated[str, typer.Argument(metavar="PARAMETER", help="Name of a parameter, as in the state_dict.")],
    input: Inputs = None,
    model_arg: ModelArgs = None,
    weights: Weights = None,
    dim: Annotated[int, typer.Option("--dim", min=0, help="Dimension of the parameter.")] = 0,
    seed: Seed = 0,
) -> None:
    """Tell what a parameter goes with, and the path to what keeps it."""
    from fxprune.cli.inspect import show_explanation

    show_explanation(model, parameter, dim, list(input or ()), list(model_arg or ()), weights, seed)


@guarded
def export(
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="The ONNX file to write.")],
    input: Inputs = None,
    model_arg: ModelArgs = None,
    weights: Weights = None,
    opset: Annotated[
        int | None, typer.Option("--opset", help="Operator set version; the exporter's default if left out.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Export the model as it is to ONNX, and compare the file."""
    from fxprune.cli.inspect import export_model

    export_model(model, out, list(input or ()), list(model_arg or ()), weights, opset, seed)


@guarded
def doctor() -> None:
    """Check what is installed, and say what to do about the rest."""
    from fxprune.cli.doctor import diagnose

    diagnose()
