"""Dense and pruned networks side by side on a runtime, at several batch sizes.

    python tools/bench_runtime.py --runtime torch-cuda [--batch 1 64] [--models 'resnet*'] [--out results/runtime.json]

Each network is asked for half of its multiply-accumulates (MACs), the widths in the step in which the runtime works
(probed first), and timed in turns with the dense one as it is served: batch norms folded. Ratios are medians of paired
ratios with a 95 % interval, on the runtime's clock (CPU time for one thread of a CPU, else wall time). A line that has
a record in the output file is skipped, so that a run can be taken up again.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a script: the checkout itself is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import fxprune
from fxprune.deploy.latency_budget import served, takes_files
from fxprune.deploy.layer_shapes import layer_shapes
from fxprune.deploy.probe import probe
from fxprune.deploy.runtimes import RUNTIMES, get_runtime
from tools._records import changed, read
from tools._zoo_models import build, make_inputs

MODELS = ("resnet50", "mobilenet_v2", "convnext_tiny", "vit_b_16")


def measure(name: str, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one network at one batch size."""
    traced = fxprune.trace(build(name, 0), make_inputs(name, 2))
    shapes = layer_shapes(traced, batch)
    step = probe(shapes.values(), runtime=options.runtime, threads=options.threads).step
    groups = fxprune.find_groups(traced)
    plan = fxprune.make_plan(traced, macs=0.5, step=step, groups=groups)
    models: dict[str, Any] = {"dense": served(traced), "pruned": served(fxprune.cut(traced, plan, groups))}
    with tempfile.TemporaryDirectory(prefix="fxprune-bench-") as folder:
        if takes_files(options.runtime):
            for key, model in models.items():
                models[key] = fxprune.export_onnx(model, Path(folder) / f"{key}.onnx").path
        found = fxprune.measure_latency(
            models["pruned"],
            models["dense"],
            runtime=options.runtime,
            threads=options.threads,
            batch=batch,
            seconds=options.seconds,
            precision=0.005,
        )
    kept = plan.after.macs / plan.before.macs
    return {**found.to_dict(samples=False), "macs": kept, "step": step, "round_to": plan.round_to}


def device(runtime: str) -> str:
    """Return the name of what the runtime computes on."""
    if "cuda" in runtime or "tensorrt" in runtime:
        return torch.cuda.get_device_name() if torch.cuda.is_available() else "a GPU that torch does not see"
    from fxprune.deploy.machine import machine

    return str(machine()["processor"])


def markdown(records: dict[str, Any]) -> str:
    """Return the table."""
    lines = [
        "| runtime | network | batch | dense, ms | pruned, ms | ratio | speed-up | MACs kept | device |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for key, r in records.items():
        runtime, name, batch = key.split("/")
        if "error" in r:
            lines.append(f"| {runtime} | {name} | {batch} | {r['error']} | | | | | |")
            continue
        ratio = f"{r['ratio']:.3f} [{r['ratio_low']:.3f}, {r['ratio_high']:.3f}]"
        lines.append(
            f"| {runtime} | {name} | {batch} | {r['dense_ms']:.2f} | {r['pruned_ms']:.2f} | {ratio} "
            f"| {1 / r['ratio']:.2f}x | {r['macs']:.1%} | {r['device']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run what has no record yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", choices=RUNTIMES, default="onnxruntime-cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", metavar="GLOB", action="append")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path, default=Path("results/runtime.json"))
    options = parser.parse_args()
    missing = get_runtime(options.runtime).available()
    if missing:
        print(f"{options.runtime}: {missing}", file=sys.stderr)
        return 4
    warnings.simplefilter("ignore")
    for name in MODELS:
        for batch in options.batch:
            key = f"{options.runtime}/{name}/{batch}"
            chosen = any(fnmatch.fnmatchcase(name, pattern) for pattern in options.models or ["*"])
            if not chosen or key in read(options.out):
                continue
            try:
                record = {**measure(name, batch, options), "device": device(options.runtime)}
            except Exception as problem:  # out of memory, for one: the others are still worth a line
                record = {"error": f"{type(problem).__name__}: {' '.join(str(problem).split())[:200]}"}
            with changed(options.out) as records:
                records[key] = record
    print(markdown(read(options.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
