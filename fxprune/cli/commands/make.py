"""``optimize``, ``finetune``, ``search`` and ``demo``: commands that make a smaller model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxprune.cli.commands.types import (
    Augment,
    DataArgs,
    Fraction,
    ImageChannels,
    Inputs,
    Latency,
    LearningRate,
    Macs,
    MeasuredOn,
    MeasuringSeconds,
    MeasuringThreads,
    Model,
    ModelArgs,
    NoLatency,
    Onnx,
    Optimizer,
    Protect,
    RoundTo,
    Seed,
    WeightDecay,
    Weights,
)
from fxprune.cli.shared.console import guarded


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
    macs: Macs = None,
    params: Annotated[float | None, typer.Option("--params", help="Share of the parameters to keep.")] = None,
    channels: Annotated[float | None, typer.Option("--channels", help="Share of the channels to keep.")] = None,
    latency: Latency = None,
    importance: Annotated[str, typer.Option("--importance", help="l1, l2, bn_scale, fpgm, lamp, random.")] = "l2",
    allocation: Annotated[
        str | None,
        typer.Option("--allocation", help="uniform, global, isomorphic or latency (with --latency the default)."),
    ] = None,
    round_to: RoundTo = "auto",
    protect: Protect = None,
    threads: MeasuringThreads = 1,
    runtime: MeasuredOn = "onnxruntime-cpu",
    compensate: Annotated[
        str | None,
        typer.Option("--compensate", help="constant: biases take what a removed channel gives for zero inputs."),
    ] = None,
    no_latency: NoLatency = False,
    onnx: Onnx = True,
    seconds: MeasuringSeconds = 10.0,
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
    from fxprune.cli.optimize.run import run_or_print

    values = {
        "model": model, "out": out, "input": tuple(input or ()), "model_arg": tuple(model_arg or ()),
        "weights": weights, "macs": macs, "params": params, "channels": channels, "latency": latency,
        "importance": importance, "allocation": allocation, "round_to": round_to, "protect": tuple(protect or ()),
        "threads": threads, "runtime": runtime, "compensate": compensate, "no_latency": no_latency, "onnx": onnx,
        "seconds": seconds, "resume": resume, "seed": seed,
    }  # fmt: skip
    given = {name: value for name, value in values.items() if _was_given(context, name)}
    run_or_print(recipe, given, print_recipe=print_recipe, print_script=print_script)


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
    data_arg: DataArgs = None,
    image_size: Annotated[int | None, typer.Option("--image-size", help="Height and width of images.")] = None,
    image_channels: ImageChannels = None,
    fraction: Fraction = 1.0,
    augment: Augment = False,
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
    optimizer: Optimizer = "sgd",
    lr: LearningRate = 0.01,
    momentum: Annotated[float, typer.Option("--momentum", help="Of SGD.")] = 0.9,
    weight_decay: WeightDecay = 5e-4,
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
    onnx: Onnx = True,
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


@guarded
def search(  # noqa: PLR0913 - every choice of a search is one
    context: typer.Context,
    *,
    model: Model,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for model.onnx, model.safetensors, plans.json, reports, and search/.")
    ],
    macs: Macs = None,
    latency: Latency = None,
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
    round_to: RoundTo = "auto",
    protect: Protect = None,
    data_arg: DataArgs = None,
    image_channels: ImageChannels = None,
    fraction: Fraction = 1.0,
    augment: Augment = False,
    batch: Annotated[int, typer.Option("--batch", help="Images per forward pass.")] = 64,
    optimizer: Optimizer = "sgd",
    lr: LearningRate = 0.01,
    weight_decay: WeightDecay = 5e-4,
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
    no_latency: NoLatency = False,
    runtime: MeasuredOn = "onnxruntime-cpu",
    threads: MeasuringThreads = 1,
    seconds: Annotated[float, typer.Option("--seconds", help="Time for each latency measurement.")] = 10.0,
    onnx: Onnx = True,
    seed: Seed = 0,
) -> None:
    """Choose depth, width and resolution together under one budget.

    Trains smaller networks along each dimension, fits accuracy, and prunes to the optimum. The same command goes on
    where it was stopped.
    """
    from fxprune.cli.search.job import OF_DATA, Options, refuse_with_train
    from fxprune.cli.search.run import run

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


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


@guarded
def demo(
    out: Annotated[
        Path,
        typer.Option("--out", help="Folder for model.onnx, dense.onnx, model.safetensors, plan.json, report.json."),
    ] = Path("fxprune-demo"),
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Of both trainings.")] = 8,
    seconds: MeasuringSeconds = 5.0,
    seed: Seed = 0,
) -> None:
    """Show it all in a minute: train on digits, prune, recover, export, check, measure."""
    from fxprune.cli.demo import Options, run

    run(Options(out, epochs, seconds, seed))
