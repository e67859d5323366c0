"""What a collapsed network costs beside the pruned one that it came from: their files node by node, and their times."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnx

from fxprune.deploy.latency import measure_latency
from fxprune.deploy.onnx import export_onnx
from fxprune.passes import FuseBatchNorm
from fxprune.pipeline import Pipeline
from tools._recovery_trial import Trial, run_pair

SECONDS = 10.0  # of measuring each pair


def measure(trial: Trial, cache: Path, *, cpu: bool = False) -> dict[str, Any]:
    """Train one network expanded, collapse it, and hold its file to that of the pruned network.

    Args:
        trial: Which; its variant has to expand.
        cache: Folder for the weights of networks before pruning.
        cpu: Train on the CPU also where there is a GPU.

    Returns:
        The trial, whether the two files have the same nodes and the same shapes of weights, and the ratio of their
        times with its interval.
    """
    pruned, collapsed = run_pair(trial, cache, cpu=cpu)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{name}.onnx" for name in ("collapsed", "pruned")]
        for traced, file in zip((collapsed, pruned), files, strict=True):
            export_onnx(Pipeline([FuseBatchNorm()])(traced.with_module(traced.module.eval())).traced, file)
        same = _structure(files[0]) == _structure(files[1])
        found = measure_latency(*files, threads=1, seconds=SECONDS)
    return {
        **{name: value for name, value in vars(trial).items() if name != "ratio"}, "removed": trial.ratio,
        "settings": trial.settings.digest, "same_file": same, "runtime": found.runtime,
        "ratio": found.ratio, "ratio_low": found.ratio_low, "ratio_high": found.ratio_high, "rounds": found.rounds,
    }  # fmt: skip


def table(records: list[dict[str, Any]]) -> list[str]:
    """Return a row for each network that was measured."""
    lines = [
        "| collapsed beside pruned | the same nodes and shapes | ratio of latency, with its interval | rounds |",
        "|---|---|---|---|",
    ]
    for found in records:
        same = "yes" if found["same_file"] else "**no**"
        interval = f"{found['ratio']:.3f} ({found['ratio_low']:.3f} to {found['ratio_high']:.3f})"
        what = f"{found['task']}, {found['net']}, {found['removed']:.0%} of filters removed"
        lines.append(f"| {what} | {same} | {interval} | {found['rounds']} |")
    return lines


def _structure(file: Path) -> Any:
    """Return the operations in order, with their attributes and the shapes of their weights; names are left out."""
    model = onnx.load(file)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return [
        (
            node.op_type,
            sorted(str(attribute) for attribute in node.attribute),
            [shapes.get(name) for name in node.input],
        )
        for node in model.graph.node
    ]
