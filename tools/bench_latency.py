"""What pruning gives on the runtime that serves the model: eight networks, beside Torch-Pruning, in one run.

    python tools/bench_latency.py --out results/latency.json [--models 'resnet*'] [--seconds 20] [--markdown FILE]

For each network these files are made, all by the same exporter, batch norms folded:

* ``dense``: the network as it is;
* ``half latency``: fxprune asked for half the dense latency;
* ``half MACs``: fxprune asked for half the multiply-accumulates (MACs), nothing else said;
* ``peer`` and ``peer 16``: Torch-Pruning with its defaults, and with ``round_to=16``, at the uniform ratio that comes
  nearest to half the MACs;
* ``MACs of peer 16``: fxprune asked for as many MACs as ``peer 16`` has, where rounding left that away from half;
* ``as fast as peer 16``: fxprune asked for the latency that ``peer 16`` was measured at.

Then all run in random order in one process, one thread, batch 1, until the time is out. Ratios are medians of paired
ratios to ``dense`` in CPU time of the process with 95 % bootstrap intervals; a second session of ``dense`` is the
control. *Retained importance* is the share of the squared L2 norm of all convolution and linear weights that is left.
A network that has a record in the output file is skipped, so that a run can be taken up again.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a script: the checkout itself is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

import fxprune
from fxprune.deploy.latency_budget import plan_for_latency, served
from fxprune.deploy.machine import machine
from fxprune.deploy.runtimes import get_runtime, random_feeds
from fxprune.deploy.statistics import paired_ratio
from tools._pool import Limits, answering, run_one
from tools._records import changed, read, write_text
from tools._zoo_models import build, make_inputs
from tools._zoo_torch_pruning import output_layers

MODELS = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "regnet_x_400mf",
    "convnext_tiny",
    "vit_b_16",
)
CONTROL = "dense again"
_LOADS = 6
_LEAST_ROUNDS = 6


# ---------------------------------------------------------------- what is compared


def weights_norm(model: nn.Module) -> float:
    """Return the squared L2 norm of all convolution and linear weights, the latter also in attention."""
    return sum(float(p.detach().double().square().sum()) for p in model.parameters() if p.dim() > 1)


def peer_pruned(model: nn.Module, name: str, ratio: float, round_to: int | None) -> nn.Module:
    """Return a copy that Torch-Pruning pruned; a ViT's own size attribute, which it leaves to the user, is set."""
    import torch_pruning as tp

    pruned, inputs = copy.deepcopy(model), make_inputs(name, 1)
    heads = {m: m.num_heads for m in pruned.modules() if isinstance(m, nn.MultiheadAttention)}
    tp.pruner.BasePruner(
        pruned,
        inputs[0],
        importance=tp.importance.MagnitudeImportance(p=2),
        global_pruning=False,
        pruning_ratio=ratio,
        round_to=round_to,
        ignored_layers=output_layers(pruned, name),
        num_heads=heads,
    ).step()
    if hasattr(pruned, "hidden_dim"):
        embedding: Any = pruned.get_submodule("conv_proj")
        pruned.hidden_dim = embedding.out_channels
    return pruned


def macs_of(model: nn.Module, name: str) -> int:
    """Return the MACs of one sample."""
    return int(fxprune.count(fxprune.trace(model, make_inputs(name, 2))).macs)


def peer_at_half(model: nn.Module, name: str, round_to: int | None) -> tuple[nn.Module, dict[str, Any]]:
    """Search the peer's uniform ratio that comes nearest to half the MACs, by bisection."""
    whole, low, high = macs_of(model, name), 0.0, 0.7
    best: tuple[float, nn.Module, dict[str, Any]] | None = None
    for _ in range(7):
        ratio = (low + high) / 2
        pruned = peer_pruned(model, name, ratio, round_to)
        kept = macs_of(pruned, name) / whole
        if best is None or abs(kept - 0.5) < best[0]:
            best = abs(kept - 0.5), pruned, {"pruning_ratio": ratio, "macs": kept}
        low, high = (ratio, high) if kept > 0.5 else (low, ratio)
    assert best is not None
    return best[1], best[2]


# ---------------------------------------------------------------- one network


def measure(files: dict[str, Path], seconds: float) -> dict[str, Any]:
    """Run every file in turns and return each one's ratio to ``dense``, with the raw CPU milliseconds.

    Sessions are loaded anew several times: where the weights come to lie in memory can make one session two per cent
    faster than another of the same file, for as long as it lives.
    """
    samples: dict[str, list[float]] = {arm: [] for arm in (*files, CONTROL)}
    for block in range(_LOADS):
        _measure_once({**files, CONTROL: files["dense"]}, seconds / _LOADS, samples, block)
    found = {}
    for arm, values in samples.items():
        estimate = paired_ratio(values, samples["dense"])
        found[arm] = {
            "ratio": estimate.ratio,
            "low": estimate.low,
            "high": estimate.high,
            "ms": sorted(values)[len(values) // 2],
            "samples": values,
        }
    return found


def _measure_once(files: dict[str, Path], seconds: float, samples: dict[str, list[float]], seed: int) -> None:
    runtime, runs, generator = get_runtime("onnxruntime-cpu"), dict[str, Callable[[], None]](), random.Random(seed)
    order = list(files)
    generator.shuffle(order)
    for arm in order:
        session = runtime.load(files[arm], 1)
        runs[arm] = session.prepare(random_feeds(session.inputs, batch=1, seed=0))
        for _ in range(3):
            runs[arm]()
    end, rounds = time.monotonic() + seconds, 0
    while rounds < _LEAST_ROUNDS or time.monotonic() < end:
        generator.shuffle(order)
        for arm in order:
            start = time.process_time()
            runs[arm]()
            samples[arm].append((time.process_time() - start) * 1e3)
        rounds += 1


class Work:
    """Makes the files of one network, and measures them."""

    def __init__(self, name: str, seconds: float, folder: Path) -> None:
        self.name, self.seconds, self.folder = name, seconds, folder
        self.model = build(name, 0)
        self.traced = fxprune.trace(self.model, make_inputs(name, 2))
        self.groups = fxprune.find_groups(self.traced)
        self.norm, self.files = weights_norm(self.traced.module), dict[str, Path]()
        self.arms: dict[str, dict[str, Any]] = {}
        self.macs = fxprune.count(self.traced).macs

    def add(self, arm: str, traced: Any, **facts: Any) -> None:
        path = self.folder / f"{arm.replace(' ', '-')}.onnx"
        fxprune.export_onnx(served(traced), path)
        self.files[arm] = path
        kept = weights_norm(traced.module) / self.norm
        self.arms[arm] = {"importance": kept, "macs": fxprune.count(traced).macs / self.macs, **facts}

    def add_plan(self, arm: str, plan: Any, **facts: Any) -> None:
        start = time.perf_counter()
        cut = fxprune.cut(self.traced, plan, self.groups)
        self.add(arm, cut, cut_s=time.perf_counter() - start, round_to=plan.round_to, notes=list(plan.notes), **facts)

    def add_latency(self, arm: str, target: float) -> None:
        start = time.perf_counter()
        found = plan_for_latency(self.traced, target, groups=self.groups, seconds=8.0)
        self.add_plan(
            arm, found.plan, target=target, trials=found.trials, search_s=time.perf_counter() - start,
            predicted=found.predicted,
        )  # fmt: skip

    def attempt(self, arm: str, work: Callable[[], None]) -> None:
        """Make one arm; whatever it raises is its result."""
        try:
            work()
        except Exception as problem:
            self.arms[arm] = {"error": f"{type(problem).__name__}: {' '.join(str(problem).split())[:400]}"}

    def peer(self, arm: str, round_to: int | None) -> None:
        pruned, facts = peer_at_half(self.model, self.name, round_to)
        self.add(arm, fxprune.trace(pruned, make_inputs(self.name, 2)), **facts)

    def run(self) -> dict[str, Any]:
        self.add("dense", self.traced)
        self.attempt("peer", lambda: self.peer("peer", None))
        self.attempt("peer 16", lambda: self.peer("peer 16", 16))
        self.attempt(
            "half MACs",
            lambda: self.add_plan("half MACs", fxprune.make_plan(self.traced, macs=0.5, groups=self.groups)),
        )
        first = measure(self.files, self.seconds / 2)
        rounded = self.arms["peer 16"].get("macs")
        if rounded is not None:
            equal = "MACs of peer 16"
            plan = fxprune.make_plan(self.traced, macs=rounded, groups=self.groups)
            self.attempt(equal, lambda: self.add_plan(equal, plan))
        self.attempt("half latency", lambda: self.add_latency("half latency", 0.5))
        if "peer 16" in first:
            self.attempt(
                "as fast as peer 16",
                lambda: self.add_latency("as fast as peer 16", min(0.99, first["peer 16"]["ratio"])),
            )
        found = measure(self.files, self.seconds)
        for arm, values in found.items():
            self.arms.setdefault(arm, {}).update(values)
        return {"arms": self.arms, "machine": machine()}


def work(name: str, seconds: float) -> None:
    """Measure one network and answer with its record."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="fxprune-bench-") as folder, answering() as answer:
        answer(Work(name, seconds, Path(folder)).run())


# ---------------------------------------------------------------- all of them


def bounded(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one network in a process of its own; a run that fails or takes too long says so in its record."""
    words = ["-m", "tools.bench_latency", "--worker", name, "--seconds", str(options.seconds)]
    worker = run_one(words, Limits(seconds=options.timeout), {"OMP_NUM_THREADS": "1"})
    return {"error": worker.why} if worker.why else worker.answers[-1]


def _ratio(arms: dict[str, Any], arm: str) -> str:
    values = arms.get(arm, {})
    if "ratio" not in values:
        return "failed"
    return f"{values['ratio']:.3f} [{values['low']:.3f}, {values['high']:.3f}]"


def _speed(arms: dict[str, Any], arm: str) -> str:
    values = arms.get(arm, {})
    return f"{1 / values['ratio']:.2f}x ({values['macs']:.1%})" if "ratio" in values else "failed"


def _share(arms: dict[str, Any], arm: str) -> str:
    values = arms.get(arm, {})
    return f"{values['importance']:.3f} at {values['ratio']:.3f}" if "ratio" in values else "failed"


def markdown(records: dict[str, Any]) -> str:
    """Return the three tables."""
    good = {name: record["arms"] for name, record in records.items() if "arms" in record}
    lines = ["| asked: half the latency | measured ratio | trials | search | control |", "|---|---|---|---|---|"]
    for name, arms in good.items():
        half = arms["half latency"]
        spent = f"{len(half['trials'])} | {half['search_s']:.0f} s" if "trials" in half else f"| {half.get('error')}"
        lines.append(f"| {name} | {_ratio(arms, 'half latency')} | {spent} | {_ratio(arms, CONTROL)} |")
    columns = ("half MACs", "peer", "MACs of peer 16", "peer 16")
    lines += [
        "",
        f"| speed-up (MACs kept) | {' | '.join(columns)} |",
        "|---|---|---|---|---|",
        *(f"| {name} | {' | '.join(_speed(arms, arm) for arm in columns)} |" for name, arms in good.items()),
        "",
        "| importance kept at measured ratio | fxprune, as fast as peer 16 | peer 16 |",
        "|---|---|---|",
        *(
            f"| {name} | {_share(arms, 'as fast as peer 16')} | {_share(arms, 'peer 16')} |"
            for name, arms in good.items()
        ),
    ]
    lines += [f"\n{name}: {record['error']}" for name, record in records.items() if "error" in record]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run what has no record yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", metavar="GLOB", action="append")
    parser.add_argument("--out", type=Path, default=Path("results/latency.json"))
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the last, interleaved run of a network")
    parser.add_argument("--timeout", type=float, default=1500.0, help="seconds per network")
    parser.add_argument("--redo", action="store_true", help="measure again what has a record")
    parser.add_argument("--worker", metavar="MODEL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.seconds)
        return 0
    for name in MODELS:
        chosen = any(fnmatch.fnmatchcase(name, pattern) for pattern in options.models or ["*"])
        if not chosen or ("arms" in read(options.out).get(name, {}) and not options.redo):
            continue
        record = bounded(name, options)
        with changed(options.out) as records:
            records[name] = record
        print(f"{name}: {record.get('error', 'done')}", flush=True)
    text = markdown(read(options.out))
    print(text)
    if options.markdown:
        write_text(options.markdown, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
