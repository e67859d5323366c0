"""``fxprune``: the commands and their options. Nothing here imports torch before a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import fxprune
from fxprune.cli.console import guarded, set_debug

app = typer.Typer(
    help="Make a trained model smaller and faster, prove that it is right, and ship it as ONNX.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help fits 80 columns, and errors are lines, not boxes
    pretty_exceptions_enable=False,
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="package.module:callable or path/file.py:callable")]
Inputs = Annotated[
    list[str] | None,
    typer.Option("--input", help="Shape and dtype of one input: 1x3x224x224[:dtype]. Repeat for more."),
]
ModelArgs = Annotated[
    list[str] | None, typer.Option("--model-arg", help="Keyword argument of the callable: name=value.")
]
Weights = Annotated[Path | None, typer.Option("--weights", help="safetensors file, or a checkpoint of tensors.")]
Seed = Annotated[
    int, typer.Option("--seed", help="Seed of weights that are not loaded, of inputs and of random scores.")
]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"fxprune {fxprune.__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks with errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Make a trained model smaller and faster, prove that it is right, and ship it as ONNX."""
    set_debug(debug)


@app.command()
@guarded
def optimize(  # noqa: PLR0913 - every option of the main command is one
    *,
    model: Model,
    out: Annotated[
        Path,
        typer.Option("--out", help="Folder for model.onnx, model.safetensors, plan.json, report.json, report.html."),
    ],
    input: Inputs = None,
    model_arg: ModelArgs = None,
    weights: Weights = None,
    macs: Annotated[float | None, typer.Option("--macs", help="Share of the multiply-accumulates to keep.")] = None,
    params: Annotated[float | None, typer.Option("--params", help="Share of the parameters to keep.")] = None,
    channels: Annotated[float | None, typer.Option("--channels", help="Share of the channels to keep.")] = None,
    latency: Annotated[float | None, typer.Option("--latency", help="Share of the measured latency to keep.")] = None,
    importance: Annotated[str, typer.Option("--importance", help="l1, l2, bn_scale, fpgm, lamp, random.")] = "l2",
    allocation: Annotated[
        str | None,
        typer.Option("--allocation", help="uniform, global, isomorphic or latency (with --latency the default)."),
    ] = None,
    round_to: Annotated[
        str, typer.Option("--round-to", help="auto, or a number that widths are multiples of.")
    ] = "auto",
    protect: Annotated[
        list[str] | None, typer.Option("--protect", help="Parameters whose channels stay, as a glob: head.*")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads for the latency measurement.")] = 1,
    runtime: Annotated[str, typer.Option("--runtime", help="Runtime to measure on.")] = "onnxruntime-cpu",
    compensate: Annotated[
        str | None,
        typer.Option("--compensate", help="constant: biases take what a removed channel gives for zero inputs."),
    ] = None,
    no_latency: Annotated[bool, typer.Option("--no-latency", help="Do not measure the latency of the result.")] = False,
    onnx: Annotated[bool, typer.Option("--onnx/--no-onnx", help="Export to ONNX.")] = True,
    seconds: Annotated[float, typer.Option("--seconds", help="Time for the latency measurement.")] = 10.0,
    seed: Seed = 0,
) -> None:
    """Prune under a budget, prove the result, export and measure.

    Batch norms are fused on the way. Files appear in the folder only when all is done.
    """
    from fxprune.cli.optimize import Options, run

    run(
        Options(
            model=model, out=out, inputs=tuple(input or ()), model_args=tuple(model_arg or ()), weights=weights,
            macs=macs, params=params, channels=channels, latency=latency, importance=importance,
            allocation=allocation, round_to=round_to, protect=tuple(protect or ()), threads=threads, runtime=runtime,
            compensate=compensate, measure=not no_latency, onnx=onnx, seconds=seconds, seed=seed,
        )
    )  # fmt: skip


@app.command()
@guarded
def groups(
    model: Model,
    input: Inputs = None,
    model_arg: ModelArgs = None,
    weights: Weights = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    seed: Seed = 0,
) -> None:
    """List what can be removed together, and what stays and why."""
    from fxprune.cli.inspect import show_groups

    show_groups(model, list(input or ()), list(model_arg or ()), weights, as_json=as_json, seed=seed)


@app.command()
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


@app.command()
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


@app.command()
@guarded
def probe(  # noqa: PLR0913 - options
    *,
    model: Model,
    input: Inputs = None,
    model_arg: ModelArgs = None,
    runtime: Annotated[str, typer.Option("--runtime", help="Runtime to time the layers on.")] = "onnxruntime-cpu",
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads within an operator.")] = 1,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Batch size that is served.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    seed: Seed = 0,
) -> None:
    """Time the layers of a model at several widths; what is found is kept for budgets of latency."""
    from fxprune.cli.probe import show_probes

    show_probes(
        model, list(input or ()), list(model_arg or ()), runtime=runtime, threads=threads, batch=batch,
        as_json=as_json, seed=seed,
    )  # fmt: skip


@app.command()
@guarded
def doctor() -> None:
    """Check what is installed, and say what to do about the rest."""
    from fxprune.cli.doctor import diagnose

    diagnose()


def main() -> None:
    """Run the command line."""
    app()
