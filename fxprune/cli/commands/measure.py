"""``probe``, ``bench``, ``gate`` and ``baseline update``: commands that measure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxprune.cli.commands.types import (
    AsJson,
    Batch,
    Config,
    Golden,
    Inputs,
    JsonFile,
    Model,
    ModelArgs,
    Runtime,
    Seed,
    Sizes,
    Threads,
)
from fxprune.cli.shared.console import guarded


@guarded
def probe(  # noqa: PLR0913 - options
    *,
    model: Model,
    input: Inputs = None,
    model_arg: ModelArgs = None,
    runtime: Annotated[str, typer.Option("--runtime", help="Runtime to time the layers on.")] = "onnxruntime-cpu",
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads within an operator.")] = 1,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Batch size that is served.")] = 1,
    as_json: AsJson = False,
    seed: Seed = 0,
) -> None:
    """Time the layers of a model at several widths; what is found is kept for budgets of latency."""
    from fxprune.cli.probe import show_probes

    show_probes(
        model, list(input or ()), list(model_arg or ()), runtime=runtime, threads=threads, batch=batch,
        as_json=as_json, seed=seed,
    )  # fmt: skip


@guarded
def bench(  # noqa: PLR0913 - options
    *,
    models: Annotated[
        list[str], typer.Argument(metavar="FILE_OR_MODEL...", help="ONNX or .pt2 files, or models from code.")
    ],
    against: Annotated[
        str | None, typer.Option("--against", help="What ratios are to; the first model if left out.")
    ] = None,
    input: Inputs = None,
    model_arg: ModelArgs = None,
    runtime: Runtime = None,
    threads: Threads = None,
    batch: Batch = None,
    size: Sizes = None,
    seconds: Annotated[float, typer.Option("--seconds", help="Time for measuring at most.")] = 10.0,
    precision: Annotated[
        float, typer.Option("--precision", help="Stop when intervals are this narrow, as a share.")
    ] = 0.01,
    pin: Annotated[bool, typer.Option("--pin", help="Keep to as many cores as there are threads.")] = False,
    seed: Seed = 0,
    json: JsonFile = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw times and ratios: .png, .svg or .pdf.")] = None,
) -> None:
    """Time models side by side, in turns."""
    from fxprune.cli.bench import BenchOptions, run

    given = {"runtime": runtime, "threads": threads, "batch": batch}
    settings = {name: value for name, value in given.items() if value is not None}
    run(
        BenchOptions(
            tuple(models), {**settings, "seconds": seconds, "pin": pin, "seed": seed}, against, tuple(input or ()),
            tuple(model_arg or ()), tuple(size or ()), precision, json, plot,
        )
    )  # fmt: skip


@guarded
def gate(  # noqa: PLR0913 - options
    *,
    candidate: Annotated[Path, typer.Argument(metavar="CANDIDATE", help="The ONNX file in question.")],
    baseline: Annotated[Path | None, typer.Option("--baseline", help="The ONNX file to hold it against.")] = None,
    max_ratio: Annotated[
        float | None, typer.Option("--max-ratio", help="Largest ratio of times; 1.05 if left out.")
    ] = None,
    config: Config = None,
    runtime: Runtime = None,
    threads: Threads = None,
    batch: Batch = None,
    size: Sizes = None,
    golden: Golden = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", help="Time for measuring at most; 10 if left out.")
    ] = None,
    json: JsonFile = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML.")] = None,
    summary: Annotated[Path | None, typer.Option("--summary", help="Write Markdown.")] = None,
) -> None:
    """Hold a file against a baseline: time, kernels, outputs, size.

    Exits with 0 if it passed, 1 if it failed, 3 if the interval did not decide.
    """
    from fxprune.cli.gate import GateOptions, run

    settings = {"runtime": runtime, "threads": threads, "batch": batch, "seconds": seconds}
    run(
        GateOptions(
            candidate, baseline, config, max_ratio, settings, tuple(size or ()), golden, json, junit, summary
        )
    )  # fmt: skip


@guarded
def update(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="The ONNX file; the configuration's if left out.")
    ] = None,
    config: Config = None,
    runtime: Runtime = None,
    batch: Batch = None,
    size: Sizes = None,
    golden: Golden = None,
    outputs: Annotated[bool, typer.Option("--outputs/--no-outputs", help="Keep inputs and outputs beside it.")] = True,
) -> None:
    """Accept a file as the baseline: write its hash and what does not depend on time beside it."""
    from fxprune.cli.baseline import update
    from fxprune.cli.gate import GateOptions

    settings = {"runtime": runtime, "batch": batch}
    options = GateOptions(Path(), file, config, None, settings, tuple(size or ()), golden)
    update(options, keep_outputs=outputs)
