"""All methods of a recovery together, and each alone: one trial, and the tables over many.

The whole is: trainability-preserving pruning, the cut, over-parameterising, fine-tuning with the dense network as the
teacher, collapsing, folding batch norms, ONNX. Every way ends in a file, and the file is what is tested.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import nn

from fxprune.capture import Traced, trace
from fxprune.deploy.onnx import export_onnx
from fxprune.errors import VerifyError
from fxprune.passes import FuseBatchNorm, OverParameterize, PruneChannels, RemoveIdentity, Reparameterize
from fxprune.pipeline import Pipeline
from fxprune.planning import Plan, count
from fxprune.training import Distillation, Growth, PlainL1, Recipe, evaluate, finetune
from fxprune.training.growing import SCHEDULES
from tools._papers_tpp import epochs_of, interval, pulled, spread
from tools._papers_trials import Keyed, Numbers
from tools._recovery_tasks import SCALES as TASKS
from tools._recovery_tasks import Settings as Task
from tools._recovery_tasks import Tensors, build, data_for
from tools._recovery_trial import check_collapse

RATIO = 0.95
SEEDS = (0, 1, 2, 3, 4)
PARITY = 1e-4  # largest error of the file, of the largest output
COMMAND = "python tools/bench_papers.py --experiments composition --markdown docs/papers.md"


@dataclass(frozen=True)
class Way:
    """How filters go and what is done afterwards.

    Attributes:
        tpp: Whether they are pulled to zero before they go; otherwise the same filters are removed at once.
        expand: Whether layers are over-parameterised while they are fine-tuned.
        teach: Whether the dense network teaches, by similarity-preserving distillation at every layer.
        long: Whether fine-tuning takes as many epochs more as the penalties of ``tpp`` take.
        rate: The highest rate of fine-tuning, as a multiple of the task's.
    """

    tpp: bool = False
    expand: bool = False
    teach: bool = False
    long: bool = False
    rate: float = 1.0


SLOWER = 0.2  # of the task's rate: the published one of fine-tuning behind tpp
WHOLE = "tpp + over + sp"
FIRST = {
    "l1": Way(),
    "tpp": Way(tpp=True),
    "l1 + sp": Way(teach=True),
    "l1 + over": Way(expand=True),
    "l1 + over + sp": Way(expand=True, teach=True),
    WHOLE: Way(tpp=True, expand=True, teach=True),
}
LONGER = {
    "l1, longer": Way(long=True),
    "l1 + over + sp, longer": Way(expand=True, teach=True, long=True),
}
METHODS = {**FIRST, **{f"{name}, slower": replace(way, rate=SLOWER) for name, way in FIRST.items()}, **LONGER}
ON_SHAPES = ("l1", "tpp", "l1 + over + sp", WHOLE)  # and their slower ways, and L1 for longer


@dataclass(frozen=True)
class Settings(Numbers):
    """Everything that a trial depends on besides its method and seed.

    Attributes:
        task: Data, network and fine-tuning, as for the trials of recovery.
        growth: The schedule of the penalties.
        rate: Expansion rate.
        data: The task's name.
    """

    task: Task
    growth: Growth = SCHEDULES["short"]
    rate: int = 4
    data: str = "digits"

    @property
    def told(self) -> dict[str, Any]:
        """What the digest is made of."""
        values = {"task": self.task.digest, "growth": asdict(self.growth), "rate": self.rate, "ratio": RATIO}
        return values if self.data == "digits" else {**values, "data": self.data}  # older records are of digits

    @property
    def growth_epochs(self) -> int:
        """Epochs that the schedule takes."""
        return epochs_of(self.growth, self.task.train, self.task.batch)


SCALES = {
    "small": {
        "digits": Settings(TASKS["small"]["digits"]),
        "shapes": Settings(TASKS["small"]["shapes"], data="shapes"),
    },
    "test": {"digits": Settings(Task(8, 60, 0, 0.0, 20, 0.1, 2, 0.02), Growth(1, 0.1, 1.0, 30, 1), 2)},
}


@dataclass(frozen=True)
class Trial(Keyed):
    """One network, pruned and recovered in one way."""

    experiment = "composition"

    scale: str
    ratio: float
    seed: int
    method: str
    task: str = "digits"

    @property
    def settings(self) -> Settings:
        """What it depends on besides."""
        return SCALES[self.scale][self.task]

    @property
    def key(self) -> dict[str, Any]:
        """What a record of this trial says of it; the settings have a task of their own."""
        return {name: value for name, value in super().key.items() if name != "task"}


def trials(scale: str) -> list[Trial]:
    """Return all trials; what there is after a while makes whole rows, the dearest ones last."""
    first = [name for name in METHODS if name not in LONGER]
    order = [(seed, name) for seed in SEEDS for name in first] + [(seed, name) for name in LONGER for seed in SEEDS]
    found = [Trial(scale, RATIO, seed, name) for seed, name in order]
    if "shapes" in SCALES[scale]:
        few = [*ON_SHAPES, *(f"{name}, slower" for name in ON_SHAPES), "l1, longer"]
        found += [Trial(scale, RATIO, seed, name, "shapes") for seed in SEEDS for name in few]
    return found


def run_trial(trial: Trial, cache: Path) -> dict[str, Any]:
    """Prune, recover, collapse, export, and test the file.

    Raises:
        VerifyError: What is deployed costs more than the pruned network, or differs from what was trained.
    """
    settings, way, start = trial.settings, METHODS[trial.method], time.perf_counter()
    _, test = data_for(settings.data, settings.task, trial.seed)
    dense = _dense(settings, trial.seed, cache)
    before, plan = _planned(settings, way, dense, trial.seed, cache)
    pruned = Pipeline([PruneChannels(plan, allow_constant=True)])(before).traced
    record = {
        **trial.key,
        "dense": evaluate(dense.module, test)["accuracy"],
        "dense_macs": plan.before.macs,
        "macs": plan.after.macs,
        "params": plan.after.params,
        "before": evaluate(before.module, test)["accuracy"],
        "after": evaluate(pruned.module, test)["accuracy"],
    }
    recovered = _recovered(settings, way, dense, pruned, trial.seed, record)
    wanted = PlainL1.begin(dense, {"*": RATIO}, residual=True).finish()
    if not count(recovered).macs == count(pruned).macs == wanted.after.macs or plan.removed != wanted.removed:
        raise VerifyError(f"{count(recovered)} is left, and {wanted.after} should be, of the same filters for each way")
    record |= _deployed(recovered, test)
    return {**record, "seconds": round(time.perf_counter() - start, 1)}


def _dense(settings: Settings, seed: int, cache: Path) -> Traced:
    """Return the trained network of a seed, from the cache where it is there."""
    task = settings.task
    train, _ = data_for(settings.data, task, seed)
    model = build("resnet", settings.data, task, seed).eval()
    recipe = Recipe(
        task.dense_epochs, task.batch, lr=task.dense_lr, weight_decay=task.weight_decay, seed=seed, save_every=0
    )
    folder = cache / f"composition-dense-{task.digest}-{seed}"
    trained = finetune(model, train, None, recipe, out=folder, cpu=True).module
    return trace(trained.eval(), train.images[:2])


def _planned(settings: Settings, way: Way, dense: Traced, seed: int, cache: Path) -> tuple[Traced, Plan]:
    """Return the network before the cut, and the plan; the training with penalties is kept, for it serves two ways."""
    if not way.tpp:
        return dense, PlainL1.begin(dense, {"*": RATIO}, residual=True).finish()

    task = settings.task
    folder = cache / f"composition-tpp-{settings.digest}-{seed}"
    train, _ = data_for(settings.data, task, seed)
    return pulled(dense, train, RATIO, settings.growth, task.batch, seed, folder)


def _recovered(
    settings: Settings, way: Way, dense: Traced, pruned: Traced, seed: int, record: dict[str, Any]
) -> Traced:
    """Return the fine-tuned network, collapsed; how exactly goes into the record."""
    task, start = settings.task, pruned
    train, _ = data_for(settings.data, task, seed)
    if way.expand:
        start = Pipeline([OverParameterize(rate=settings.rate, seed=seed)])(pruned).traced
    recipe = Recipe(
        task.epochs + (settings.growth_epochs if way.long else 0), task.batch, lr=task.lr * way.rate, seed=seed,
        weight_decay=task.weight_decay, save_every=0,
    )  # fmt: skip
    layers = [name for name, layer in pruned.module.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    teacher = copy.deepcopy(dense.module)

    def taught(student: nn.Module) -> Distillation:
        return Distillation(student, teacher, layers={name: name for name in layers}, gamma=task.gamma)

    trained = finetune(start, train, None, recipe, objectives=[taught] if way.teach else [], cpu=True).traced
    assert trained is not None
    if not way.expand:
        return trained
    collapsed = Pipeline([Reparameterize(only_blocks=True)])(trained).traced
    record |= check_collapse(trained, collapsed, pruned, train.images[:100])
    return collapsed


def _deployed(recovered: Traced, test: Tensors) -> dict[str, Any]:
    """Fold batch norms, export, compare the file with the graph on all test images, and test it."""
    final = Pipeline([RemoveIdentity(), FuseBatchNorm()])(recovered).traced
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(final, Path(folder) / "model.onnx").path
        size = path.stat().st_size
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: test.images.numpy()})
    (wanted,), logits = final.run((test.images,)), torch.from_numpy(found)
    parity = float((logits - wanted).abs().max() / wanted.abs().max())
    if not parity <= PARITY:
        raise VerifyError(f"the file differs from the graph by {parity:.1e} of the largest output")
    accuracy = float((logits.argmax(1) == torch.tensor(test.targets)).double().mean())
    constant = bool((logits == logits[0]).all())  # a network that died: its file agrees, and that says nothing
    return {"parity": parity, "constant": constant, "file_bytes": size, "accuracy": accuracy}


# ---------------------------------------------------------------- tables


def page(results: list[dict[str, Any]], scale: str) -> str:
    """Return the tables, and what is not measured."""
    return "\n".join(_task_page(results, settings) for settings in SCALES[scale].values())


def _task_page(results: list[dict[str, Any]], settings: Settings) -> str:
    found = [r for r in results if r["experiment"] == "composition" and r["settings"] == settings.digest]
    if not found:
        return f"On {settings.data}: *not measured*; `{COMMAND}`.\n"
    task, growth = settings.task, settings.growth_epochs
    dense = spread([100 * r["dense"] for r in {r["seed"]: r for r in found}.values()])
    said = _INTRODUCTION.format(
        task=task, data=settings.data, slower=task.lr * SLOWER, test=task.test or 1797 - task.train,
        rate=settings.rate, steps=settings.growth.steps, growth=growth, dense=dense, ratio=RATIO,
        macs=found[0]["macs"], dense_macs=found[0]["dense_macs"],
    )  # fmt: skip
    lines = [said, _HEAD]
    for name, way in (FIRST | LONGER).items():
        if settings.data == "shapes" and not any(r["method"] == name for r in found):
            continue
        total = f"{growth} + {task.epochs}" if way.tpp else str(task.epochs + growth * way.long)
        lines.append(_row(name, total, found))
    return "\n".join([*lines, "", *_gaps(found), "", _checks(found)])


def _checks(found: list[dict[str, Any]]) -> str:
    exact = max((r["collapse_float64"] for r in found if "collapse_float64" in r), default=0.0)
    parity = max((r["parity"] for r in found if not r["constant"]), default=0.0)
    dead = sum(r["constant"] for r in found)
    return _CHECKS.format(trials=len(found), exact=exact, parity=parity, dead=dead)


_INTRODUCTION = """\
ResNet-20 with {task.width} channels in its first stage, {task.train} {data} to train on, tested on {test} others
(dense: {dense} %). Of the filters {ratio:.0%} go, residual sums included, the same ones in every way: {macs:,} MACs are
left of {dense_macs:,}. `tpp` takes {steps} steps ({growth} epochs) at a rate of 1e-3 before the cut. Epochs of
fine-tuning: {task.epochs}, at a rate of {task.lr:g}, or {slower:g} (slower). `over`: with layers expanded {rate} times;
`sp`: with the dense network's similarities (gamma {task.gamma:g}); the longer ways take as many epochs more as
the penalties do. "Tested" is the ONNX file, collapsed and with batch norms folded. Mean and standard deviation over
seeds.
"""
_CHECKS = """\
Checks of the {trials} trials: the same filters and MACs are left in all; collapsing moved outputs by at most
{exact:.0e} of the largest in float64; on all test images the files are within {parity:.0e} of their graphs. Networks
that died (a constant answer): {dead}.
"""
_HEAD = """\
| way | epochs | seeds | right behind the cut | tested | tested, slower |
|---|---|---|---|---|---|"""


def _row(name: str, epochs: str, found: list[dict[str, Any]]) -> str:
    rows, slower = ([r for r in found if r["method"] == each] for each in (name, f"{name}, slower"))
    if not rows:
        return f"| {name} | {epochs} | *not measured* | | | |"
    cells = [_percent(rows, "after"), _percent(rows, "accuracy"), _percent(slower, "accuracy")]
    seeds = f"{len(rows)}" if not slower or len(slower) == len(rows) else f"{len(rows)}, {len(slower)}"
    return f"| {name} | {epochs} | {seeds} | " + " | ".join(cells) + " |"


def _percent(rows: list[dict[str, Any]], key: str) -> str:
    return spread([100 * r[key] for r in rows]) + " %" if rows else "-"


def _gaps(rows: list[dict[str, Any]]) -> list[str]:
    """Return the differences of the whole to every other way, seed by seed, with 95 % intervals."""
    accuracy = {(r["method"], r["seed"]): 100 * r["accuracy"] for r in rows}
    lines = []
    pairs_of = (
        (WHOLE, [*FIRST, *LONGER]),
        (f"{WHOLE}, slower", [f"{name}, slower" for name in FIRST]),
        ("tpp", ["l1"]),
        ("tpp, slower", ["l1, slower"]),
    )
    for whole, others in pairs_of:
        for other in others:
            pairs = [((whole, seed), (other, seed)) for seed in SEEDS]
            gaps = [accuracy[ours] - accuracy[theirs] for ours, theirs in pairs if {ours, theirs} <= set(accuracy)]
            if other != whole and len(gaps) > 1:
                low, high = interval(gaps)
                word = "excludes" if low > 0 or high < 0 else "includes"
                lines.append(
                    f"- `{whole}` - `{other}`: {statistics.fmean(gaps):+.1f} points, 95 % interval "
                    f"[{low:+.1f}, {high:+.1f}], which {word} 0 ({len(gaps)} seeds)"
                )
    return lines
