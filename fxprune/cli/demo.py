"""``demo``: the whole way on a small network and real data: train, prune, recover, collapse, export, check, measure."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from fxprune.cli.report.facts import PARITY_TOLERANCE, latency_line
from fxprune.cli.shared.console import Stages, err, out, say, share, thousands
from fxprune.cli.shared.files import write_text
from fxprune.cli.shared.output import staging
from fxprune.errors import EnvironmentProblem, VerifyError

if TYPE_CHECKING:
    from fxprune.capture import Traced
    from fxprune.planning import Plan
    from fxprune.training import Splits

KEEP = 0.25  # share of the multiply-accumulates
RATE = 4  # how many times as wide the chains are that stand for each layer in training
DENSE_LR, RECOVER_LR = 0.1, 0.05
SIMILARITY = 100.0  # weight of the teacher's similarities


@dataclass(frozen=True)
class Options:
    """The options of the command, as given."""

    out: Path
    epochs: int = 8
    seconds: float = 5.0
    seed: int = 0


def run(options: Options) -> None:
    """Carry the command out; the files appear in the output folder only when all is done.

    Raises:
        FxPruneError: A package is missing, the folder cannot be written, or a check did not pass.
    """
    for module, package in (("accelerate", "accelerate"), ("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")):
        if importlib.util.find_spec(module) is None:
            raise EnvironmentProblem(f"the demo needs {package}; it comes with pip install 'fxprune[train]'")
    stages = Stages()
    with staging(options.out) as folder, _one_thread():
        report = _demonstrate(options, stages, folder)
        write_text(folder / "report.json", json.dumps(report, indent=2, default=str))
    _show(report, options.out)
    if not report["ok"]:
        raise VerifyError(f"the ONNX file differs from the model; see {options.out / 'report.json'}")


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Give torch one thread for a while: on layers this small, several wait for each other longer than they work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _demonstrate(options: Options, stages: Stages, folder: Path) -> dict[str, Any]:
    from fxprune.passes import FuseBatchNorm, PruneChannels, RemoveIdentity
    from fxprune.pipeline import Pipeline
    from fxprune.planning import make_plan
    from fxprune.results import write_weights
    from fxprune.training import load_data

    splits = load_data("digits")
    dense = _dense(options, splits, stages)
    with stages.step("prune", f"prune to {KEEP:.0%} of the MACs, and compare with the masked reference in float64"):
        plan = make_plan(dense, macs=KEEP, importance="l1", allocation="uniform", round_to=1)
        pruned = Pipeline([PruneChannels(plan)])(dense).traced
    recovered, collapse_error = _recover(options, dense, pruned, splits, stages)
    with stages.step("test", "measure accuracy on the test images"):
        report: dict[str, Any] = {
            "schema": 1, "data": "digits", "seed": options.seed, "epochs": options.epochs, "plan": plan.hash,
            "collapse_max_relative_error": collapse_error,
            "models": {
                name: _figures(model, splits)
                for name, model in (("dense", dense), ("pruned", pruned), ("recovered", recovered))
            },
        }  # fmt: skip
    final = Pipeline([RemoveIdentity(), FuseBatchNorm()])(recovered).traced
    report |= _deploy(options, dense, final, plan, stages, folder)
    write_weights(folder, recovered.module)
    write_text(folder / "plan.json", plan.to_json(indent=2))
    report["seconds"] = stages.seconds
    return report


def _dense(options: Options, splits: Splits, stages: Stages) -> Traced:
    """Return the trained network that everything starts from."""
    import torch

    from fxprune.capture import trace
    from fxprune.cli.demo_net import DigitNet
    from fxprune.training import Recipe

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = DigitNet()
    traced = trace(model.eval(), torch.stack([splits.train[index][0] for index in range(2)]))
    recipe = Recipe(epochs=options.epochs, lr=DENSE_LR, seed=options.seed)
    what = f"train a residual network on {len(splits.train)} images of digits"  # type: ignore[arg-type] # in memory
    return _trained(traced, splits, recipe, [], stages, what)


def _recover(options: Options, dense: Traced, pruned: Traced, splits: Splits, stages: Stages) -> tuple[Traced, float]:
    """Return the pruned network trained as a wider one and collapsed again, and by how much collapsing changed it."""
    from fxprune.passes import OverParameterize, Reparameterize
    from fxprune.pipeline import Pipeline
    from fxprune.training import Distillation, Recipe

    with stages.step("expand", f"write each layer as a chain {RATE} times as wide that computes the same"):
        expanded = Pipeline([OverParameterize(rate=RATE, seed=options.seed)])(pruned).traced
    teacher = copy.deepcopy(dense.module)
    recipe = Recipe(epochs=options.epochs, lr=RECOVER_LR, seed=options.seed)
    objectives = [lambda student: Distillation(student, teacher, gamma=SIMILARITY)]
    trained = _trained(
        expanded, splits, recipe, objectives, stages, "train that, with the dense network as its teacher"
    )
    with stages.step("collapse", "collapse the chains: the graph is the pruned one again"):
        collapsed = Pipeline([Reparameterize(only_blocks=True)])(trained).traced
        inputs = trained.inputs(batch=64, seed=options.seed)
        before, after = (model.run(*inputs)[0] for model in (trained, collapsed))
    return collapsed, float((before - after).abs().max() / before.abs().max())


def _trained(model: Traced, splits: Splits, recipe: Any, objectives: list[Any], stages: Stages, what: str) -> Traced:
    from fxprune.training import finetune

    start = time.perf_counter()
    found = finetune(model, splits.train, splits.validation, recipe, objectives=objectives, cpu=True)
    spent = time.perf_counter() - start
    stages.seconds["train"] = stages.seconds.get("train", 0.0) + spent
    say(f"{spent:6.1f} s  {what}: {found.best['validation_accuracy']:.1%} right on the validation images", err)
    assert found.traced is not None  # a capture was given
    return found.traced


def _figures(model: Traced, splits: Splits) -> dict[str, Any]:
    from fxprune.planning import count
    from fxprune.training import evaluate

    cost = count(model)
    accuracy = evaluate(model.module, splits.test)["accuracy"]
    return {"accuracy": accuracy, "macs": int(cost.macs), "params": int(cost.params)}


def _deploy(options: Options, dense: Traced, final: Traced, plan: Plan, stages: Stages, folder: Path) -> dict[str, Any]:
    """Export both networks, compare the new file with its graph, and measure one beside the other."""
    from fxprune.deploy.latency import measure_latency
    from fxprune.deploy.latency_budget import served
    from fxprune.deploy.onnx import export_onnx
    from fxprune.deploy.parity import check_parity

    with stages.step("export", "export to ONNX and compare"):
        exported = export_onnx(final, folder / "model.onnx", metadata={"data": "digits", "plan": plan.hash})
        baseline = export_onnx(served(dense), folder / "dense.onnx")
        error = check_parity(final, exported.path, seed=options.seed).max_relative_error
    with stages.step("latency", "measure latency beside the dense network"):
        found = measure_latency(exported.path, baseline.path, seconds=options.seconds, seed=options.seed)
    ok = error <= PARITY_TOLERANCE
    latency = {**found.to_dict(samples=False), "control_holds": found.control_holds}
    onnx = {**exported.to_dict(), "dense_bytes": baseline.bytes, "max_relative_error": error, "ok": ok}
    return {"ok": ok, "onnx": onnx, "latency": latency}


def _show(report: dict[str, Any], folder: Path) -> None:
    models, latency = report["models"], report["latency"]
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("handwritten digits")
    for column in ("accuracy", "MACs", "", "parameters", "", "latency"):
        table.add_column(column, justify="right", no_wrap=True)
    # Pruned and recovered are one graph, of which the second is the file that was measured.
    times = {"dense": f"{latency['dense_ms']:.3f} ms", "recovered": f"{latency['pruned_ms']:.3f} ms"}
    for name, row in models.items():
        costs = [
            text for key in ("macs", "params") for text in (thousands(row[key]), share(row[key], models["dense"][key]))
        ]
        table.add_row(name, f"{row['accuracy']:.1%}", *costs, times.get(name, ""))
    say("")
    out.print(table)
    say("")
    say(latency_line(latency))
    say(
        f"largest relative error: {report['collapse_max_relative_error']:.1e} from collapsing, "
        f"{report['onnx']['max_relative_error']:.1e} of model.onnx to the graph"
    )
    say(f"written to {folder}, in {sum(report['seconds'].values()):.0f} s")
