"""What ``search`` was asked for, and what that amounts to: model, training, executor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune.cli.loading import parse_arguments, round_to
from fxprune.cli.search.parts import (
    ModelOf,
    TrainOf,
    absolute,
    absolute_data,
    executor_of,
    keep_weights,
)
from fxprune.cli.shared.console import Stages
from fxprune.cli.shared.requirements import require_packages, require_runtime
from fxprune.cli.shared.training import input_of
from fxprune.errors import InputError

if TYPE_CHECKING:
    from fxprune.search import Executor, Request, Subject
    from fxprune.search.pruning import TrainAndEvaluate
    from fxprune.search.training import DataTraining

OF_DATA = (
    "data_arg", "image_channels", "fraction", "augment", "batch", "optimizer", "lr", "weight_decay", "schedule",
)  # fmt: skip
"""Names of the options that say how to train on ``--data``; a training of the user's own knows nothing of them."""

SEARCH = "search"  # folder in --out: the database and the trials, which a search goes on from


@dataclass(frozen=True)
class Options:
    """The options of the command, as given.

    Attributes:
        model: The model, with its arguments and weights in the next three.
        side_arg: Keyword of the model that takes the side of images; None for a model of any size.
        inputs: Specification of the one input, at the whole resolution.
        macs: Share of the multiply-accumulates to keep; or
        latency: share of the latency, measured as ``measuring`` says.
        data: What is trained and evaluated on, with its arguments in the next four; or
        train: the user's own function.
        recipe: Options of the recipe, under its names.
        choices: How layers and channels are chosen, under the names of :class:`~fxprune.search.pruning.Choices`.
        epochs: At each point, and of the final network.
        explore: The smallest budget that the points are to serve; None: this one.
        workers: Processes; ray, trial_cpus, trial_gpus and timeout say the rest.
        measure: Whether the latency of the final file is measured.
    """

    model: str
    out: Path
    model_args: tuple[str, ...] = ()
    weights: Path | None = None
    side_arg: str | None = None
    inputs: tuple[str, ...] = ()
    macs: float | None = None
    latency: float | None = None
    data: str | None = None
    data_args: tuple[str, ...] = ()
    channels: int | None = None
    fraction: float = 1.0
    augment: bool = False
    train: str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, Any] = field(default_factory=dict)
    epochs: tuple[int, int] = (2, 10)
    points: int = 3
    explore: float | None = None
    dimensions: tuple[str, ...] = ("depth", "width", "resolution")
    alternatives: bool = True
    workers: int = 0
    ray: str | None = None
    trial_cpus: int = 1
    trial_gpus: float = 0.0
    timeout: float | None = None
    retry_failed: bool = False
    dynamic_size: bool = False
    measuring: dict[str, Any] = field(default_factory=dict)
    measure: bool = True
    onnx: bool = True
    seed: int = 0

    @property
    def folder(self) -> Path:
        """Of the search."""
        return self.out / SEARCH


@dataclass(frozen=True)
class Job:
    """What the options amount to: all that a search is called with.

    Attributes:
        options: Them.
        asked: Budget and choices.
        training: Trains and evaluates.
        subject: The dense model.
        spec: Specification of its input.
        executor: Where trials run; None for this process.
        stages: Where progress is shown.
    """

    options: Options
    asked: Request
    training: TrainAndEvaluate
    subject: Subject
    spec: str
    executor: Executor | None
    stages: Stages

    @property
    def data(self) -> DataTraining | None:
        """The training, where it has a test set."""
        from fxprune.search.training import DataTraining

        return self.training if isinstance(self.training, DataTraining) else None

    def settings(self) -> dict[str, Any]:
        """Return what accuracies follow from besides the model and the choices."""
        return {"train": self.options.train} if self.data is None else {"data": self.data.describe()}


def prepare(options: Options) -> Job:
    """Check the options and build the model.

    Raises:
        InputError: One of them cannot be used.
        EnvironmentProblem: A package or a runtime is missing.
    """
    from fxprune.search import Subject

    asked = request_of(options)
    executor = executor_of(options.workers, options.ray, options.trial_cpus, options.trial_gpus, options.timeout)
    _check_environment(options)
    training = training_of(options)
    spec = _input(options, training)
    if options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out {options.out} is a file; name a folder")
    stages = Stages()
    model = ModelOf(absolute(options.model), options.model_args, options.side_arg, options.seed)
    from fxprune.capture.specs import example_inputs

    inputs = example_inputs([spec], options.seed)
    subject = Subject(model, inputs, by_side=options.side_arg is not None)
    with stages.step("load", f"load {options.model}"):
        built = model(subject.side if options.side_arg is not None else None)
        weights = keep_weights(built, options.weights, options.folder)
    subject = Subject(model, inputs, weights, options.side_arg is not None)
    return Job(options, asked, training, subject, spec, executor, stages)


def request_of(options: Options) -> Request:
    """Return what is asked for.

    Raises:
        InputError: There is not exactly one budget, or a value is out of range.
    """
    from fxprune.search import Choices, Request
    from fxprune.search.meters import Measuring

    if (options.macs is None) == (options.latency is None):
        raise InputError("give exactly one budget: --macs or --latency, the share to keep: --macs 0.5")
    unknown = [name for name in options.dimensions if name not in Options.dimensions]
    if unknown or not options.dimensions:
        raise InputError(f"--dimensions are {', '.join(Options.dimensions)}; got {', '.join(unknown) or 'none'}")
    choices = {**options.choices, "round_to": round_to(options.choices.get("round_to", "auto"))}
    return Request(
        macs=options.macs, latency=options.latency, epochs=options.epochs, dimensions=options.dimensions,
        points=options.points, choices=Choices(**choices), measuring=Measuring(**options.measuring),
        alternatives=options.alternatives, explore=options.explore, seed=options.seed,
    )  # fmt: skip


def training_of(options: Options) -> TrainAndEvaluate:
    """Return what trains and evaluates.

    Raises:
        InputError: There are no such data, no such function, or both.
    """
    from fxprune.search.training import DataTraining
    from fxprune.training import Recipe

    if (options.data is None) == (options.train is None):
        raise InputError(
            "give what networks are trained and chosen on: --data SPEC (digits, shapes, imagefolder:PATH, ...), or "
            "--train package.module:function for a training of your own"
        )
    if options.train is not None:
        own = TrainOf(absolute(options.train))
        own.check()
        return own
    assert options.data is not None
    recipe = Recipe(**options.recipe, epochs=1, seed=options.seed)  # a trial says how many epochs
    arguments = parse_arguments(list(options.data_args))
    data = absolute_data(options.data)
    return DataTraining(data, recipe, options.fraction, options.channels, options.augment, arguments)


def refuse_with_train(given: Sequence[str]) -> None:
    """Refuse options that would do nothing beside ``--train``.

    Args:
        given: Names out of :data:`OF_DATA` that are on the command line.

    Raises:
        InputError: There is one.
    """
    if given:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InputError(
            f"{words} would change nothing beside --train, whose function trains as it likes; leave it out, or train "
            "on --data"
        )


def _check_environment(options: Options) -> None:
    if options.data is not None:
        require_packages()
    if options.latency is not None or (options.onnx and options.measure):
        require_runtime(options.measuring["runtime"])


def _input(options: Options, training: TrainAndEvaluate) -> str:
    """Return the specification of the model's input; by the data where none is given."""
    from fxprune.capture.specs import DEFAULT_INPUT, parse_input
    from fxprune.search.training import DataTraining

    if len(options.inputs) > 1 or any("," in spec for spec in options.inputs):
        raise InputError("a search takes models of one input; give --input once, without commas")
    spec = options.inputs[0] if options.inputs else DEFAULT_INPUT
    if not isinstance(training, DataTraining):
        return spec
    sizes, _ = parse_input(spec)
    square = len(sizes) == 4 and sizes[2] == sizes[3]
    if options.inputs and not square:
        raise InputError(f"images of --data are squares; --input {spec} has to be of the form 1x3x64x64")
    splits = training.splits(sizes[2] if options.inputs else None)
    own = input_of(splits)
    if options.inputs and own.split("x")[1:] != spec.partition(":")[0].split("x")[1:]:
        raise InputError(
            f"images of --data {options.data} are {own} and --input says {spec}; give --image-channels, or the same"
        )
    return own
