"""Types of the arguments and options that several commands have: what they are called, and what their help says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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

Macs = Annotated[float | None, typer.Option("--macs", help="Share of the multiply-accumulates to keep.")]
Latency = Annotated[float | None, typer.Option("--latency", help="Share of the measured latency to keep.")]
RoundTo = Annotated[str, typer.Option("--round-to", help="auto, or a number that widths are multiples of.")]
Protect = Annotated[
    list[str] | None, typer.Option("--protect", help="Parameters whose channels stay, as a glob: head.*")
]
NoLatency = Annotated[bool, typer.Option("--no-latency", help="Do not measure the latency of the result.")]
MeasuredOn = Annotated[str, typer.Option("--runtime", help="Runtime to measure on.")]
MeasuringThreads = Annotated[int, typer.Option("--threads", min=1, help="Threads for the latency measurement.")]
Onnx = Annotated[bool, typer.Option("--onnx/--no-onnx", help="Export to ONNX.")]
DataArgs = Annotated[list[str] | None, typer.Option("--data-arg", help="Argument of shapes: name=value.")]
ImageChannels = Annotated[int | None, typer.Option("--image-channels", help="1 (grey) or 3 (colour).")]
Fraction = Annotated[float, typer.Option("--fraction", help="Share of the training images to use.")]
Augment = Annotated[bool, typer.Option("--augment", help="Move and mirror training images.")]
Optimizer = Annotated[str, typer.Option("--optimizer", help="sgd or adamw.")]
LearningRate = Annotated[float, typer.Option("--lr", help="The highest learning rate.")]
WeightDecay = Annotated[float, typer.Option("--weight-decay", help="Pull of the weights to zero.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MeasuringSeconds = Annotated[float, typer.Option("--seconds", help="Time for the latency measurement.")]
