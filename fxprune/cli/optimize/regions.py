"""What ``optimize`` does for a model that was captured by region: a file for each, compared and measured."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from fxprune.cli.recipes.options import Options
from fxprune.cli.report.facts import PARITY_TOLERANCE
from fxprune.cli.shared.console import Stages
from fxprune.deploy.latency_budget import served
from fxprune.deploy.regions import RegionFile, export_regions

NO_FILE = (
    "There is no model.onnx: the model's own code runs between its regions, and decides by values. Each region is a "
    "file of its own; fxprune.capture.regions.hosted runs the model with sessions of them in place of its sub-modules."
)
_LEAST_SECONDS = 1.0


def deploy_regions(
    options: Options, dense: Any, final: Any, report: dict[str, Any], stages: Stages, folder: Path
) -> None:
    """Export, compare and measure every region, and put the figures into the report."""
    metadata = {"model": options.model, "plan": report["plan"]["hash"], "budget": json.dumps(report["plan"]["budget"])}
    with stages.step("export", "export the regions to ONNX and compare"):
        files = export_regions(final, folder, metadata=metadata)
        rows = [compared(file, options.seed) for file in files]
    report["regions"] = rows
    report["ok"] = report["ok"] and all(row["onnx"]["ok"] for row in rows)
    report["notes"].append(NO_FILE)
    if options.measure:
        with stages.step("latency", "measure latency of the regions beside the dense ones"):
            _measure(options, dense, files, rows)
    report["seconds"] |= stages.seconds


def compared(file: RegionFile, seed: int) -> dict[str, Any]:
    """Return what the report says of a file, compared with its graph."""
    parity = file.check(seed=seed)
    return {
        "name": file.call.name,
        "path": file.call.path,
        "times": file.times,
        "inputs": file.inputs,
        "outputs": file.outputs,
        "onnx": {
            **file.export.to_dict(),
            "max_relative_error": parity.max_relative_error,
            "batches": list(parity.batches),
            "ok": parity.max_relative_error <= PARITY_TOLERANCE,
        },
    }


def _measure(options: Options, dense: Any, files: list[RegionFile], rows: list[dict[str, Any]]) -> None:
    """Measure each region at the sizes of its example; they share the time that there is."""
    seconds = max(_LEAST_SECONDS, options.seconds / len(files))
    with tempfile.TemporaryDirectory() as scratch:
        before = export_regions(served(dense), scratch)
        for file, other, row in zip(files, before, rows, strict=True):
            found = file.measure(
                other, runtime=options.runtime, threads=options.threads, seconds=seconds, seed=options.seed
            )
            row["latency"] = {**found.to_dict(samples=False), "control_holds": found.control_holds}
