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
baselines = typer.Typer(help="What candidates are held against.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(baselines, name="baseline")

Model = Annotated[str, typer.Argument(metavar="MODEL", help="package.module:callable or path/file.py:callable")]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="Shape and dtype of one input: 1x3x224x224[:dtype]. Repeat for more; commas make a list: 3x480x640,",
    ),
]
ModelArgs = Annotated[
    list[str] | None, typer.Option("--model-arg", help="Keyword argument of the callable: name=value.")
]
Weights = Annotated[Path | None, typer.Option("--weights", help="safetensors file, or a checkpoint of tensors.")]
Seed = Annotated[
    int, typer.Option("--seed", help="Seed of weights that are not loaded, of inputs and of random scores.")
]

Runtime = Annotated[str | None, typer.Option("--runtime", help="Runtime to measure on; `fxprune doctor` lists them.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads within an operator; 1 if left out.")]
Batch = Annotated[int | None, typer.Option("--batch", min=1, help="Batch size where it is dynamic; 1 if left out.")]
Sizes = Annotated[
    list[str] | None, typer.Option("--size", help="Size of another dynamic dimension: name=N. Repeat for more.")
]
Config = Annotated[
    Path | None, typer.Option("--config", help="TOML file; fxprune.toml or pyproject.toml here if left out.")
]
Golden = Annotated[Path | None, typer.Option("--golden", help="npz file of inputs by name; random ones if left out.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write everything found, raw times included.")]


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
    context: typer.Context,
    *,
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="package.module:callable or path/file.py:callable; or from the recipe."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for model.onnx, model.safetensors, plan.json and the reports."),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="TOML file with all of this; options here go before it.")
    ] = None,
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
    print_recipe: Annotated[
        bool, typer.Option("--print-recipe", help="Print this run as a recipe; without --out, only that.")
    ] = False,
    print_script: Annotated[
        bool, typer.Option("--print-script", help="Print this run as a Python script; without --out, only that.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on from the checkpoints of trainings in --out.")
    ] = True,
    seed: Seed = 0,
) -> None:
    """Prune under a budget, prove the result, export and measure.

    Batch norms are fused on the way. Files appear in the folder only when all is done.
    """
    from fxprune.cli.optimize import run_or_print

    values = {
        "model": model, "out": out, "input": tuple(input or ()), "model_arg": tuple(model_arg or ()),
        "weights": weights, "macs": macs, "params": params, "channels": channels, "latency": latency,
        "importance": importance, "allocation": allocation, "round_to": round_to, "protect": tuple(protect or ()),
        "threads": threads, "runtime": runtime, "compensate": compensate, "no_latency": no_latency, "onnx": onnx,
        "seconds": seconds, "resume": resume, "seed": seed,
    }  # fmt: skip
    given = {name: value for name, value in values.items() if _was_given(context, name)}
    run_or_print(recipe, given, print_recipe=print_recipe, print_script=print_script)


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


@app.command()
@guarded
def finetune(  # noqa: PLR0913 - every choice of a training is one
    *,
    model: Model,
    data: Annotated[
        str, typer.Option("--data", help="digits, shapes, imagefolder:PATH, or torchvision:NAME:PATH as on the disk.")
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Folder for model.onnx, model.safetensors, report.json, and training/.")
    ],
    plan: Annotated[
        Path | None, typer.Option("--plan", help="What optimize removed: its folder, or plan.json in it.")
    ] = None,
    input: Inputs = None,
    model_arg: ModelArgs = None,
    weights: Weights = None,
    data_arg: Annotated[list[str] | None, typer.Option("--data-arg", help="Argument of shapes: name=value.")] = None,
    image_size: Annotated[int | None, typer.Option("--image-size", help="Height and width of images.")] = None,
    image_channels: Annotated[int | None, typer.Option("--image-channels", help="1 (grey) or 3 (colour).")] = None,
    fraction: Annotated[float, typer.Option("--fraction", help="Share of the training images to use.")] = 1.0,
    augment: Annotated[bool, typer.Option("--augment", help="Move and mirror training images.")] = False,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that load images.")] = 0,
    over_parameterize: Annotated[
        float | None, typer.Option("--over-parameterize", help="Train each layer as a chain so many times as wide.")
    ] = None,
    distill: Annotated[bool, typer.Option("--distill", help="Learn from the model before the plan, too.")] = False,
    distill_similarity: Annotated[
        float, typer.Option("--distill-similarity", help="Weight of the similarities; up to 3000 for long trainings.")
    ] = 100.0,
    distill_logits: Annotated[float, typer.Option("--distill-logits", help="Weight of the logits.")] = 0.0,
    epochs: Annotated[int, typer.Option("--epochs", help="Times through the training images.")] = 10,
    batch: Annotated[int, typer.Option("--batch", help="Images per process and forward pass.")] = 64,
    accumulate: Annotated[int, typer.Option("--accumulate", help="Forward passes per step.")] = 1,
    optimizer: Annotated[str, typer.Option("--optimizer", help="sgd or adamw.")] = "sgd",
    lr: Annotated[float, typer.Option("--lr", help="The highest learning rate.")] = 0.01,
    momentum: Annotated[float, typer.Option("--momentum", help="Of SGD.")] = 0.9,
    weight_decay: Annotated[float, typer.Option("--weight-decay", help="Pull of the weights to zero.")] = 5e-4,
    decay: Annotated[str, typer.Option("--decay", help="all, or weights: not biases and norms.")] = "all",
    schedule: Annotated[
        str, typer.Option("--schedule", help="constant, cosine, linear, step, slr or allr (with --original-epochs).")
    ] = "cosine",
    original_epochs: Annotated[
        float | None, typer.Option("--original-epochs", help="Length of the training of the dense model.")
    ] = None,
    warmup: Annotated[
        float | None, typer.Option("--warmup", help="Share of the steps in which the rate rises.")
    ] = None,
    label_smoothing: Annotated[float, typer.Option("--label-smoothing", help="Of the cross-entropy.")] = 0.0,
    clip: Annotated[float | None, typer.Option("--clip", help="Largest norm of the gradients.")] = None,
    ema: Annotated[float, typer.Option("--ema", help="Decay of a running mean of the weights; 0 for none.")] = 0.0,
    precision: Annotated[str | None, typer.Option("--precision", help="no, bf16 or fp16.")] = None,
    patience: Annotated[
        int, typer.Option("--patience", help="Epochs without a better validation result until the end; 0: never.")
    ] = 0,
    save_every: Annotated[int, typer.Option("--save-every", help="Steps between checkpoints.")] = 500,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on from the checkpoint in --out, if there is one.")
    ] = True,
    cpu: Annotated[bool, typer.Option("--cpu", help="Train on the CPU also where there is a GPU.")] = False,
    onnx: Annotated[bool, typer.Option("--onnx/--no-onnx", help="Export to ONNX.")] = True,
    seed: Seed = 0,
) -> None:
    """Train a model, cut by a plan if there is one; then collapse, compare and export it.

    The same command goes on where it was interrupted. Several processes: accelerate launch --multi_gpu -m fxprune ...
    """
    from fxprune.cli.finetune import Options, run

    recipe = {
        "epochs": epochs, "batch": batch, "accumulate": accumulate, "optimizer": optimizer, "lr": lr,
        "momentum": momentum, "weight_decay": weight_decay, "decay": decay, "schedule": schedule, "warmup": warmup,
        "label_smoothing": label_smoothing, "clip": clip, "ema": ema, "precision": precision, "patience": patience,
        "seed": seed, "save_every": save_every,
    }  # fmt: skip
    run(
        Options(
            model=model, data=data, out=out, plan=plan, inputs=tuple(input or ()), model_args=tuple(model_arg or ()),
            weights=weights, data_args=tuple(data_arg or ()), size=image_size, channels=image_channels,
            fraction=fraction, augment=augment, workers=workers, over_parameterize=over_parameterize, distill=distill,
            gamma=distill_similarity, logits=distill_logits, original_epochs=original_epochs, recipe=recipe,
            resume=resume, cpu=cpu, onnx=onnx,
        )
    )  # fmt: skip


@app.command()
@guarded
def search(  # noqa: PLR0913 - every choice of a search is one
    context: typer.Context,
    *,
    model: Model,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for model.onnx, model.safetensors, plans.json, reports, and search/.")
    ],
    macs: Annotated[float | None, typer.Option("--macs", help="Share of the multiply-accumulates to keep.")] = None,
    latency: Annotated[float | None, typer.Option("--latency", help="Share of the measured latency to keep.")] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="digits, shapes, imagefolder:PATH, or torchvision:NAME:PATH as on the disk."),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            "--train",
            help="In place of --data: your train_and_evaluate(model, resolution, epochs), as module:name or FILE:name.",
        ),
    ] = None,
    input: Annotated[
        list[str] | None,
        typer.Option("--input", help="Shape of the one input, as 1x3x224x224; its side is the whole resolution."),
    ] = None,
    model_arg: ModelArgs = None,
    side_arg: Annotated[
        str | None,
        typer.Option("--side-arg", help="Keyword of a model made for one size that takes the side in pixels."),
    ] = None,
    weights: Weights = None,
    dimensions: Annotated[str, typer.Option("--dimensions", help="Which to search over.")] = "depth,width,resolution",
    points: Annotated[int, typer.Option("--points", help="Networks along each, besides the whole one.")] = 3,
    explore: Annotated[
        float | None, typer.Option("--explore", help="Take points for budgets down to this one, to be asked for later.")
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", help="Of training at each point.")] = 2,
    final_epochs: Annotated[
        int, typer.Option("--final-epochs", help="Of training the network that is chosen, and the alternatives.")
    ] = 10,
    alternatives: Annotated[
        bool,
        typer.Option("--alternatives/--no-alternatives", help="Train what one dimension alone gives, too."),
    ] = True,
    importance: Annotated[str, typer.Option("--importance", help="Of channels: l1, l2, bn_scale, fpgm, ...")] = "l2",
    layer_importance: Annotated[
        str, typer.Option("--layer-importance", help="Of layers: l1, bn_scale or random.")
    ] = "l1",
    round_to: Annotated[
        str, typer.Option("--round-to", help="auto, or a number that widths are multiples of.")
    ] = "auto",
    protect: Annotated[
        list[str] | None, typer.Option("--protect", help="Parameters whose channels stay, as a glob: head.*")
    ] = None,
    data_arg: Annotated[list[str] | None, typer.Option("--data-arg", help="Argument of shapes: name=value.")] = None,
    image_channels: Annotated[int | None, typer.Option("--image-channels", help="1 (grey) or 3 (colour).")] = None,
    fraction: Annotated[float, typer.Option("--fraction", help="Share of the training images to use.")] = 1.0,
    augment: Annotated[bool, typer.Option("--augment", help="Move and mirror training images.")] = False,
    batch: Annotated[int, typer.Option("--batch", help="Images per forward pass.")] = 64,
    optimizer: Annotated[str, typer.Option("--optimizer", help="sgd or adamw.")] = "sgd",
    lr: Annotated[float, typer.Option("--lr", help="The highest learning rate.")] = 0.01,
    weight_decay: Annotated[float, typer.Option("--weight-decay", help="Pull of the weights to zero.")] = 5e-4,
    schedule: Annotated[str, typer.Option("--schedule", help="constant, cosine, linear, step or slr.")] = "cosine",
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Processes that run trials; 0 or 1: this process does.")
    ] = 0,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="Run trials on this Ray cluster; local: start one here."),
    ] = None,
    trial_cpus: Annotated[int, typer.Option("--trial-cpus", min=1, help="Threads of a trial on a worker.")] = 1,
    trial_gpus: Annotated[
        float, typer.Option("--trial-gpus", min=0.0, help="GPUs of a trial on Ray; 0.25 lets four share one.")
    ] = 0.0,
    timeout: Annotated[
        float | None, typer.Option("--timeout", help="Seconds for a trial, which then runs on a worker.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run trials again that failed before.")] = False,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="Leave height and width open in model.onnx, where the model can.")
    ] = False,
    no_latency: Annotated[bool, typer.Option("--no-latency", help="Do not measure the latency of the result.")] = False,
    runtime: Annotated[str, typer.Option("--runtime", help="Runtime to measure on.")] = "onnxruntime-cpu",
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads for the latency measurement.")] = 1,
    seconds: Annotated[float, typer.Option("--seconds", help="Time for each latency measurement.")] = 10.0,
    onnx: Annotated[bool, typer.Option("--onnx/--no-onnx", help="Export to ONNX.")] = True,
    seed: Seed = 0,
) -> None:
    """Choose depth, width and resolution together under one budget.

    Trains smaller networks along each dimension, fits accuracy, and prunes to the optimum. The same command goes on
    where it was stopped.
    """
    from fxprune.cli.search import OF_DATA, Options, refuse_with_train, run

    if train is not None:
        refuse_with_train([name for name in OF_DATA if _was_given(context, name)])
    recipe = {"batch": batch, "optimizer": optimizer, "lr": lr, "weight_decay": weight_decay, "schedule": schedule}
    choices = {
        "importance": importance, "layer_importance": layer_importance, "round_to": round_to,
        "protect": tuple(protect or ()),
    }  # fmt: skip
    run(
        Options(
            model=model, out=out, model_args=tuple(model_arg or ()), weights=weights, side_arg=side_arg,
            inputs=tuple(input or ()), macs=macs, latency=latency, data=data, data_args=tuple(data_arg or ()),
            channels=image_channels, fraction=fraction, augment=augment, train=train, recipe=recipe, choices=choices,
            epochs=(epochs, final_epochs), points=points, explore=explore,
            dimensions=tuple(name.strip() for name in dimensions.split(",") if name.strip()),
            alternatives=alternatives, workers=workers, ray=ray, trial_cpus=trial_cpus, trial_gpus=trial_gpus,
            timeout=timeout, retry_failed=retry_failed, dynamic_size=dynamic_size,
            measuring={"runtime": runtime, "threads": threads, "seconds": seconds}, measure=not no_latency, onnx=onnx,
            seed=seed,
        )
    )  # fmt: skip


@app.command()
@guarded
def demo(
    out: Annotated[
        Path,
        typer.Option("--out", help="Folder for model.onnx, dense.onnx, model.safetensors, plan.json, report.json."),
    ] = Path("fxprune-demo"),
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Of both trainings.")] = 8,
    seconds: Annotated[float, typer.Option("--seconds", help="Time for the latency measurement.")] = 5.0,
    seed: Seed = 0,
) -> None:
    """Show it all in a minute: train on digits, prune, recover, export, check, measure."""
    from fxprune.cli.demo import Options, run

    run(Options(out, epochs, seconds, seed))


@app.command()
@guarded
def groups(
    model: Model,
    input: Inputs = None,
    model_arg: ModelArgs = None,
    weights: Weights = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Draw them on a page of its own instead.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """List what can be removed together, and what stays and why."""
    from fxprune.cli.inspect import show_groups

    show_groups(model, list(input or ()), list(model_arg or ()), weights, as_json=as_json, html=html, seed=seed)


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


@app.command()
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


@baselines.command()
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


@app.command()
@guarded
def doctor() -> None:
    """Check what is installed, and say what to do about the rest."""
    from fxprune.cli.doctor import diagnose

    diagnose()


def main() -> None:
    """Run the command line."""
    app()
