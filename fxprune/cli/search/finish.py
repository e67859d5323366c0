"""The end of ``search``: the final network as a file that is checked and measured, and what is reported of it all."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune.cli.report.budget import hold_to_budget
from fxprune.cli.report.facts import PARITY_TOLERANCE
from fxprune.cli.search.report import build_report, file_of

if TYPE_CHECKING:
    from fxprune.capture import Traced
    from fxprune.cli.search.job import Job
    from fxprune.deploy.latency import Latency
    from fxprune.search.search import SearchResult


def finish(job: Job, found: SearchResult, folder: Path, start: float) -> dict[str, Any]:
    """Write all files, and return the report.

    Args:
        job: What was asked for.
        found: What the search found.
        folder: To write to.
        start: When the command began, on the clock of ``time.perf_counter``.

    Raises:
        InputError: The network cannot be exported.
        VerifyError: Something differs from what it was made from.
    """
    from fxprune.passes import FuseBatchNorm, RemoveIdentity
    from fxprune.pipeline import Pipeline
    from fxprune.search.network import load_network
    from fxprune.search.saved import FINAL_WEIGHTS

    options, stages = job.options, job.stages
    with stages.step("rebuild", "rebuild the final network, fold batch norms"):
        dense = job.subject.at(found.space.side)
        network = found.network
        if options.dynamic_size:
            assert found.chosen.trial is not None  # a search without a trained network ends with an error
            network = load_network(job.subject, file_of(job, found.chosen.trial), dynamic_size=True)
        final = Pipeline([RemoveIdentity(), FuseBatchNorm()])(network.traced).traced
    found.network.save(folder, FINAL_WEIGHTS)  # not that with open sizes: its constants may be others
    report = build_report(job, found, dense, network)
    if job.data is not None:
        with stages.step("test", "measure accuracy on the test set"):
            _test(job, found, dense, report)
    if options.onnx:
        _export(job, final, report, folder)
        if options.measure:
            _measure(job, final, dense, report, folder)
    report["seconds"] = {**stages.seconds, "all": time.perf_counter() - start}
    _write(report, folder)
    return report


def _test(job: Job, found: SearchResult, dense: Traced, report: dict[str, Any]) -> None:
    """Measure every trained network on images that neither trained nor chose it."""
    from fxprune.search.network import load_network

    assert job.data is not None  # the caller's condition
    side = found.space.side
    whole = load_network(job.subject, file_of(job, found.measured[0].trial))
    report["accuracy"] = {
        "dense": job.data.test(dense.module, side),
        "whole": job.data.test(whole.traced.module, whole.side),
        "after": job.data.test(found.network.traced.module, found.network.side),
    }
    report["chosen"]["test"] = report["accuracy"]["after"]
    for name, built in found.alternatives.items():
        row = report["alternatives"][name]
        if isinstance(built, str) or built.trial is None or built.result is None or built.result.status != "done":
            continue
        network = load_network(job.subject, file_of(job, built.trial))
        row["test"] = job.data.test(network.traced.module, network.side)


def _export(job: Job, final: Traced, report: dict[str, Any], folder: Path) -> None:
    from fxprune.deploy.onnx import export_onnx
    from fxprune.deploy.parity import check_parity

    path = folder / "model.onnx"
    metadata = {
        "model": job.options.model,
        "budget": json.dumps(report["asked"]["budget"]),
        "resolution": str(report["chosen"]["side"] or ""),
    }
    with job.stages.step("export", "export to ONNX and compare"):
        exported = export_onnx(final, path, metadata=metadata)
        parity = check_parity(final, path, seed=job.options.seed)
    passed = parity.max_relative_error <= PARITY_TOLERANCE
    error = parity.max_relative_error
    report["onnx"] = {
        **exported.to_dict(), "max_relative_error": error, "batches": list(parity.batches), "ok": passed,
        "open_sizes": final.another_size is not None,
    }  # fmt: skip
    report["ok"] = report["ok"] and passed


def _measure(job: Job, final: Traced, dense: Traced, report: dict[str, Any], folder: Path) -> None:
    """Measure the file beside the dense model, each at its own size of images."""
    with job.stages.step("latency", "measure latency beside the dense model at its own size"):
        found = _latency(job, final, dense, folder / "model.onnx")
    report["latency"] = {**found.to_dict(samples=False), "control_holds": found.control_holds}
    if job.options.latency is not None:
        hold_to_budget(report, job.options.latency)


def _latency(job: Job, final: Traced, dense: Traced, path: Path) -> Latency:
    from fxprune.deploy.interleave import Settings
    from fxprune.deploy.latency import compare_latency
    from fxprune.deploy.latency_budget import served, takes_files
    from fxprune.deploy.onnx import export_onnx, size_name

    how = job.asked.measuring
    image = final.args[0].shape
    sizes = {size_name(0, dimension): int(size) for dimension, size in enumerate(image) if dimension}
    settings = Settings(
        how.runtime, how.threads, how.batch, how.seconds, sizes=sizes, seed=job.options.seed, same_inputs=False
    )
    if not takes_files(how.runtime):
        return compare_latency(final, served(dense), settings)
    with tempfile.TemporaryDirectory() as scratch:
        before = export_onnx(served(dense), Path(scratch) / "dense.onnx")
        return compare_latency(path, before.path, settings)


def _write(report: dict[str, Any], folder: Path) -> None:
    from fxprune.cli.search.html import render
    from fxprune.cli.search.md import render_markdown
    from fxprune.cli.shared.files import write_text

    write_text(folder / "report.json", json.dumps(report, indent=2, default=str, allow_nan=False))
    write_text(folder / "report.html", render(report))
    write_text(folder / "report.md", render_markdown(report))
