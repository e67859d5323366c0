"""``finetune``: train a model, pruned by a plan if there is one, then collapse, check and export it."""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fxprune
from fxprune.cli.finetune_plan import check_plan, read_plan
from fxprune.cli.loading import capture, load_model, parse_arguments
from fxprune.cli.report.facts import PARITY_TOLERANCE
from fxprune.cli.shared.console import Stages, err, say
from fxprune.cli.shared.files import write_text
from fxprune.cli.shared.output import staging
from fxprune.cli.shared.requirements import require_packages
from fxprune.cli.shared.training import TRAINING, input_of, say_epoch
from fxprune.errors import InputError, VerifyError

if TYPE_CHECKING:
    from fxprune.capture import Traced
    from fxprune.planning import Plan
    from fxprune.training import Finetuned, Recipe, Splits


@dataclass(frozen=True)
class Options:
    """The options of the command, as given.

    Attributes:
        recipe: Those that the recipe takes, under its names.
        distill: Whether to learn from the model as it was before the plan.
        gamma: Weight of similarity-preserving distillation.
        logits: Weight of distillation of the logits.
    """

    model: str
    data: str
    out: Path
    plan: Path | None = None
    inputs: tuple[str, ...] = ()
    model_args: tuple[str, ...] = ()
    weights: Path | None = None
    data_args: tuple[str, ...] = ()
    size: int | None = None
    channels: int | None = None
    fraction: float = 1.0
    augment: bool = False
    workers: int = 0
    over_parameterize: float | None = None
    distill: bool = False
    gamma: float = 100.0
    logits: float = 0.0
    original_epochs: float | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    resume: bool = True
    cpu: bool = False
    onnx: bool = True


class _Steps(Stages):
    """Stages that only the main process speaks of."""

    @contextlib.contextmanager
    def step(self, name: str, what: str) -> Iterator[None]:
        """Do as any stage does, or only what is in it."""
        with super().step(name, what) if _is_main() else contextlib.nullcontext():
            yield


def run(options: Options) -> None:
    """Carry the command out; the results appear in the output folder only when everything has passed.

    Raises:
        FxPruneError: With the exit code of the design: input, check or environment.
    """
    _check(options)
    steps = _Steps()
    plan = read_plan(options.plan)
    splits = _data(options)
    with steps.step("load", f"load {options.model}"):
        model = load_model(options.model, list(options.model_args), options.weights, options.recipe["seed"])
    with steps.step("capture", "capture the graph"):
        dense = capture(model, list(options.inputs) or [input_of(splits)], options.recipe["seed"])
    pruned = dense
    if plan is not None and options.plan is not None:
        for note in check_plan(plan, dense, options.plan) if _is_main() else ():
            say(f"note: {note}", err)
        pruned = _prune(dense, plan, steps)
    recipe = _recipe(options, dense, pruned)
    try:
        trained = _train(options, recipe, dense, pruned, splits)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"the same command goes on from {options.out / TRAINING}") from stop
    _leave()
    if not trained.is_main:
        return
    report: dict[str, Any] = {
        "schema": 1, "ok": True, "model": options.model, "data": options.data, "versions": _versions(),
        "plan": None if plan is None else plan.hash, "recipe": recipe.describe(), "best": trained.best,
    }  # fmt: skip
    with staging(options.out) as folder:
        final = _finish(trained.traced, steps, folder)
        report["accuracy"] = _accuracies({"dense": dense, "before": pruned, "after": final}, splits, steps)
        if options.onnx:
            report["onnx"] = _export(options, final, plan, steps, folder)
            report["ok"] = report["onnx"]["ok"]
        if plan is not None:
            write_text(folder / "plan.json", plan.to_json(indent=2))
        report["seconds"] = steps.seconds
        write_text(folder / "report.json", json.dumps(report, indent=2, default=str))
    _show(report, options.out)
    if not report["ok"]:
        raise VerifyError(f"the ONNX file differs from the model; see {options.out / 'report.json'}")


def _leave() -> None:
    """Part from the other processes: what is left to do is done by one."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _check(options: Options) -> None:
    """Refuse before any work what cannot end well."""
    require_packages()
    if options.plan is not None and options.out.resolve() in (options.plan.resolve(), options.plan.resolve().parent):
        raise InputError(
            f"--out {options.out} holds the plan and the model that was cut by it, which would be replaced by the "
            "trained one; name another folder"
        )


def _data(options: Options) -> Splits:
    from fxprune.training import load_data

    return load_data(
        options.data, fraction=options.fraction, size=options.size, channels=options.channels,
        augment=options.augment, arguments=parse_arguments(list(options.data_args)),
    )  # fmt: skip


def _prune(dense: Traced, plan: Plan, steps: Stages) -> Traced:
    from fxprune.passes import PruneChannels
    from fxprune.pipeline import Pipeline

    with steps.step("prune", "remove what the plan says, and compare with the masked reference in float64"):
        return Pipeline([PruneChannels(plan, allow_constant=True)])(dense).traced


def _recipe(options: Options, dense: Traced, pruned: Traced) -> Recipe:
    from fxprune.training import ALLR, Recipe

    chosen = dict(options.recipe)
    if chosen["schedule"] == "allr":
        if options.original_epochs is None:
            raise InputError(
                "--schedule allr needs --original-epochs: the length of the training that made the dense model"
            )
        chosen["schedule"] = ALLR.between(
            dense.module, pruned.module, original_epochs=options.original_epochs, epochs=chosen["epochs"]
        )
    return Recipe(**chosen)


def _train(options: Options, recipe: Recipe, dense: Traced, pruned: Traced, splits: Splits) -> Finetuned:
    from torch.utils.data import DataLoader

    from fxprune.passes import OverParameterize
    from fxprune.pipeline import Pipeline
    from fxprune.training import Distillation, finetune

    start = pruned
    if options.over_parameterize is not None:
        expand = OverParameterize(rate=options.over_parameterize, seed=recipe.seed)
        start = Pipeline([expand])(pruned).traced
    teacher = copy.deepcopy(dense.module)  # it shares no weights with the student

    def distillation(student: Any) -> Distillation:
        layers = "last" if options.over_parameterize is None else "blocks"
        return Distillation(student, teacher, layers=layers, gamma=options.gamma, logits=options.logits)

    def loader(images: Any, shuffle: bool) -> DataLoader[Any]:
        return DataLoader(images, batch_size=recipe.batch, shuffle=shuffle, num_workers=options.workers)

    return finetune(
        start, loader(splits.train, True), loader(splits.validation, False), recipe,
        objectives=[distillation] if options.distill else [], out=options.out / TRAINING, resume=options.resume,
        on_epoch=lambda row: say_epoch(row, recipe.epochs), cpu=options.cpu,
    )  # fmt: skip


def _finish(trained: Any, steps: Stages, folder: Path) -> Traced:
    """Collapse what was expanded, write the weights, and return the graph that is exported."""
    from fxprune.passes import FuseBatchNorm, RemoveIdentity, Reparameterize
    from fxprune.pipeline import Pipeline
    from fxprune.results import write_weights

    with steps.step("collapse", "collapse expanded layers, fold batch norms"):
        collapsed = Pipeline([Reparameterize(only_blocks=True)])(trained).traced
        write_weights(folder, collapsed.module)
        return Pipeline([RemoveIdentity(), FuseBatchNorm()])(collapsed).traced


def _accuracies(models: dict[str, Traced], splits: Splits, steps: Stages) -> dict[str, float]:
    from fxprune.training import evaluate

    with steps.step("test", "measure accuracy on the test set"):
        return {name: evaluate(traced.module, splits.test)["accuracy"] for name, traced in models.items()}


def _export(options: Options, final: Traced, plan: Plan | None, steps: Stages, folder: Path) -> dict[str, Any]:
    from fxprune.deploy.onnx import export_onnx
    from fxprune.deploy.parity import check_parity

    path = folder / "model.onnx"
    metadata = {"model": options.model, "data": options.data, "plan": "" if plan is None else plan.hash}
    with steps.step("export", "export to ONNX and compare"):
        exported = export_onnx(final, path, metadata=metadata)
        error = check_parity(final, path, seed=options.recipe["seed"]).max_relative_error
    return {**exported.to_dict(), "max_relative_error": error, "ok": error <= PARITY_TOLERANCE}


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"fxprune": fxprune.__version__, **{name: version(name) for name in ("torch", "accelerate", "onnxruntime")}}


def _show(report: dict[str, Any], folder: Path) -> None:
    names = {"dense": "the dense model", "before": "before", "after": "after"}
    if report["plan"] is None:
        del names["dense"]
    found = ", ".join(f"{what} {report['accuracy'][name]:.2%}" for name, what in names.items())
    best = report["best"]
    say(f"\n{report['model']}: accuracy on the test set: {found}")
    say(f"weights of epoch {best['epoch'] + 1}, {best['validation_accuracy']:.2%} right on the validation set")
    if "onnx" in report:
        say(f"model.onnx: largest relative error {report['onnx']['max_relative_error']:.1e}")
    say(f"written to {folder}")
