"""``optimize``: the whole way from a model to a smaller, verified ONNX file with a report."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

from fxprune.cli.loading import capture, load_model, parse_fraction
from fxprune.cli.optimize.report import build_report
from fxprune.cli.optimize.steps import Run, run_steps, width_step
from fxprune.cli.recipes.flow import plan_source
from fxprune.cli.recipes.options import BUDGETS, NOWHERE, PLAN, Options, merge
from fxprune.cli.recipes.recipe import read_recipe, write_recipe
from fxprune.cli.recipes.script import write_script
from fxprune.cli.report.budget import hold_to_budget
from fxprune.cli.report.facts import PARITY_TOLERANCE
from fxprune.cli.report.summary import show
from fxprune.cli.shared.console import Stages
from fxprune.cli.shared.output import staging
from fxprune.cli.shared.requirements import require_packages, require_runtime
from fxprune.cli.shared.training import TRAINING, input_of
from fxprune.errors import InputError, VerifyError

COMPACT = "model.compact.safetensors"
"""File in the output folder: the weights without those that are pruned, where single weights are."""
_GAIN_SECONDS = 3.0


def run_or_print(recipe: Path | None, given: dict[str, Any], *, print_recipe: bool, print_script: bool) -> None:
    """Run what a recipe and the options of the command line ask for, where an output folder is given; print it."""
    options = merge(read_recipe(recipe) if recipe else {}, given)
    runs = options.out != NOWHERE
    if not runs and not (print_recipe or print_script):
        raise InputError("give --out FOLDER for the results, or --print-recipe or --print-script to see what would run")
    _budget(options)
    if runs:
        run(options)
    for wanted, write in ((print_recipe, write_recipe), (print_script, write_script)):
        if wanted:
            print(write(options))


def run(options: Options) -> None:
    """Carry the command out; files appear in the output folder only when everything has passed.

    Raises:
        FxPruneError: With the exit code of the design: input, budget, check or environment.
    """
    budget = _budget(options)
    if options.compensate not in (None, "constant"):
        raise InputError(
            f"--compensate {options.compensate} is not known here; use constant. The mean over calibration data is for "
            "Python: make_plan(..., compensate='mean') and PruneChannels(plan, calibration=batches)"
        )
    if options.measure or options.latency is not None:
        require_runtime(options.runtime)
    if options.trains:
        from fxprune.cli.optimize.training import check_one_process

        require_packages()
        check_one_process()
    stages = Stages()
    try:
        with staging(options.out) as folder:
            report = _optimize(options, budget, stages, folder)
    except KeyboardInterrupt as stop:
        raise _goes_on(options, stop) from stop
    show(report, options.out)
    if not report["ok"]:
        raise VerifyError(f"a check did not pass; see {options.out / 'report.html'}")


def _goes_on(options: Options, stop: KeyboardInterrupt) -> KeyboardInterrupt:
    """Return the interruption with what it means: trainings that were begun are not lost."""
    folder = options.out / TRAINING
    if not (options.trains and folder.is_dir()):
        return stop
    return KeyboardInterrupt(*stop.args, f"the same command goes on from {folder}")


def _budget(options: Options) -> dict[str, Any]:
    """Return what the plan is to keep; nothing where no plan is made under a budget."""
    source = plan_source(options.passes)
    if source != "budget":
        usual = {field.name: field.default for field in dataclasses.fields(Options)}
        given = [name for name in PLAN if getattr(options, name) != usual[name]]
        if given:
            why = "a training makes the plan" if source == "training" else "there is no prune-channels"
            raise InputError(f"--{given[0].replace('_', '-')} is for a plan under a budget, and in this recipe {why}")
        return {}
    found = {
        name: getattr(options, name) for name in BUDGETS if parse_fraction(name, getattr(options, name)) is not None
    }
    if len(found) != 1:
        raise InputError(
            "give exactly one budget: --macs, --params, --channels or --latency, each the share to keep: --macs 0.5"
        )
    return found


def _optimize(options: Options, budget: dict[str, Any], stages: Stages, folder: Path) -> dict[str, Any]:
    run = _begin(options, budget, stages)
    captured = run.traced
    run_steps(run)
    report = {**build_report(run, captured), "seconds": {**dict.fromkeys(("export", "latency"), 0.0), **stages.seconds}}
    _deploy(options, captured, run.traced, report, stages, folder)
    _write(folder, run, report)
    return report


def _begin(options: Options, budget: dict[str, Any], stages: Stages) -> Run:
    """Load data and model, and capture."""
    splits = None
    if options.data is not None:
        from fxprune.cli.optimize.training import check_lengths, load_splits

        splits = load_splits(options)
        assert splits is not None
        check_lengths(options, splits)
        options = dataclasses.replace(options, inputs=options.inputs or (input_of(splits),))
    with stages.step("load", f"load {options.model}"):
        model = load_model(options.model, list(options.model_args), options.weights, options.seed)
    with stages.step("capture", "capture the graph"):
        captured = capture(model, list(options.inputs), options.seed)
    return Run(options, budget, stages, splits, captured, captured, captured)


def _deploy(options: Options, dense: Any, final: Any, report: dict[str, Any], stages: Stages, folder: Path) -> None:
    """Export, compare and measure what was asked for, and put the figures into the report."""
    if not options.onnx:
        return
    if dense.regions is not None:
        from fxprune.cli.optimize.regions import deploy_regions

        deploy_regions(options, dense, final, report, stages, folder)
        return
    from fxprune.deploy.gain import explain_gain
    from fxprune.deploy.latency import measure_latency
    from fxprune.deploy.latency_budget import served, takes_files
    from fxprune.deploy.onnx import export_onnx
    from fxprune.deploy.parity import check_parity

    plan = report["plan"] or {"hash": "", "budget": {}}
    metadata = {"model": options.model, "plan": plan["hash"], "budget": json.dumps(plan["budget"])}
    path = folder / "model.onnx"
    with stages.step("export", "export to ONNX and compare"):
        exported = export_onnx(final, path, metadata=metadata)
        parity = check_parity(final, path, seed=options.seed)
    passed = parity.max_relative_error <= PARITY_TOLERANCE
    report["onnx"] = {
        **exported.to_dict(),
        "max_relative_error": parity.max_relative_error,
        "batches": list(parity.batches),
        "ok": passed,
    }
    report["ok"] = report["ok"] and passed
    report["seconds"] |= stages.seconds
    if not options.measure:
        return
    dense = served(dense)
    with tempfile.TemporaryDirectory() as scratch:
        candidate: Any = final
        baseline: Any = dense
        with stages.step("latency", "measure latency beside the dense model"):
            if takes_files(options.runtime):
                before = export_onnx(dense, Path(scratch) / "dense.onnx")
                candidate, baseline = path, before.path
            found = measure_latency(
                candidate, baseline, runtime=options.runtime, threads=options.threads, seconds=options.seconds,
                seed=options.seed,
            )  # fmt: skip
        if takes_files(options.runtime):
            with stages.step("gain", "explain the gain layer by layer"):
                gain = explain_gain(
                    (dense, before), (final, exported), step=width_step(options), runtime=options.runtime,
                    threads=options.threads, seconds=min(options.seconds, _GAIN_SECONDS),
                )  # fmt: skip
            report["gain"] = gain.to_dict()
    report["latency"] = {**found.to_dict(samples=False), "control_holds": found.control_holds}
    if options.latency is not None:
        hold_to_budget(report, options.latency)
    report["seconds"] |= stages.seconds


def _write(folder: Path, run: Run, report: dict[str, Any]) -> None:
    from fxprune.cli.report.html import render
    from fxprune.cli.report.md import render_markdown
    from fxprune.cli.shared.files import write_text
    from fxprune.results import write_weights

    write_weights(folder, run.stored.module)
    _write_compact(folder, run, report)
    if run.cut is not None:
        write_text(folder / "plan.json", run.cut.plan.to_json(indent=2))
    write_text(folder / "report.json", json.dumps(report, indent=2, default=str))
    write_text(folder / "report.html", render(report))
    write_text(folder / "report.md", render_markdown(report))


def _write_compact(folder: Path, run: Run, report: dict[str, Any]) -> None:
    """Write the weights once more without those that are pruned, if any are, and see that all come back."""
    from fxprune.deploy.compact import first_change, save_compact
    from fxprune.linear.sparsity import pruned_of

    if not pruned_of(run.stored.module).masks:
        return
    written = save_compact(folder / COMPACT, run.stored.module)
    changed = first_change(written.path, run.stored.module)
    if changed is not None:
        raise VerifyError(f"{changed} does not come back from {COMPACT} as it was written; nothing was kept")
    plain = (folder / "model.safetensors").stat().st_size
    report["compact"] = {"path": COMPACT, "bytes": written.bytes, "plain_bytes": plain, "ratio": written.bytes / plain}
    report["notes"].append(
        f"{COMPACT} has the same weights without the pruned ones: {written.bytes:,} bytes, "
        f"{written.bytes / plain:.1%} of the {plain:,} of model.safetensors. It was read back bit for bit, and "
        "--weights takes it"
    )
