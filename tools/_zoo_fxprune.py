"""fxprune itself: capture to ONNX, checked by its own reference and by the one that the peers are held to."""

from __future__ import annotations

import copy
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tools import _zoo_check as check
from tools._zoo_models import build, make_inputs
from tools._zoo_record import Recorder

KEEP_MACS = 0.5
TOLERANCE = 1e-9
PARITY_TOLERANCE = 1e-4
"""Float32 on two runtimes: hundreds of layers of rounding, relative to the largest output."""
_PARITY_BATCHES = (1, 3)


def run(name: str, seed: int, recorder: Recorder) -> None:
    """Prune one model with fxprune and record how it went."""
    import fxprune  # before the clock starts

    model = build(name, seed)
    inputs = make_inputs(name, 1)
    macs = check.count_macs(model, inputs)
    recorder.set(parameters=sum(value.numel() for value in model.parameters()), macs=macs, keep_macs=KEEP_MACS)
    recorder.set(version=getattr(fxprune, "__version__", ""))
    recorder.phase("work")
    traced, groups, plan, pruned = _prune(model, inputs, recorder)
    recorder.phase("check")
    macs_after = _count(pruned)
    recorder.set(macs_after=macs_after, macs_kept=macs_after / macs, layers_cut=len(plan.removed))
    _verify(traced, pruned, plan, groups, recorder)
    recorder.phase("export")
    _export(pruned, recorder)
    del traced, groups, model  # the second check builds the original again, in float64
    recorder.phase("second check")
    _second_check(name, seed, plan.removed, pruned, recorder)


def _prune(model: nn.Module, inputs: tuple[torch.Tensor, ...], recorder: Recorder) -> tuple[Any, Any, Any, Any]:
    from fxprune.capture import trace
    from fxprune.channels import find_groups
    from fxprune.planning import count, make_plan
    from fxprune.surgery import cut

    with recorder.stage("capture"):
        traced = trace(model, inputs)
    batch = "dynamic" if traced.batch_is_dynamic else f"static {traced.batch}"
    recorder.set(batch=batch, notes=list(traced.notes), nodes=len(traced.module.graph.nodes))
    with recorder.stage("analysis"):
        groups = find_groups(traced)
        live, families = int(groups.live.sum()), len(groups.families)  # inside the stage, should they be lazy
    recorder.set(families=families, groups=live, frozen=len(groups.live) - live)
    with recorder.stage("plan"):
        plan = make_plan(traced, macs=KEEP_MACS, groups=groups)
    recorder.set(notes=[*traced.notes, *plan.notes], planned_macs_kept=plan.after.macs / plan.before.macs)
    recorder.set(round_to=plan.round_to, counted_macs=plan.before.macs)
    with recorder.stage("surgery"):
        pruned = cut(traced, plan, groups=groups)
    recorder.set(counted_macs_after=count(pruned).macs)
    return traced, groups, plan, pruned


def _count(pruned: Any) -> int:
    """Count the multiply-accumulates of one sample by running the pruned graph."""
    batch = 1 if pruned.batch_is_dynamic else pruned.batch
    args, _ = pruned.inputs(batch=batch)
    return check.count_macs(pruned.module, args) // batch


def _verify(traced: Any, pruned: Any, plan: Any, groups: Any, recorder: Recorder) -> None:
    from fxprune.surgery import verify_cut

    with recorder.stage("verify"):
        verification = verify_cut(traced, pruned, plan, groups=groups)
    error = float(verification.max_relative_error)
    recorder.set(max_relative_error=error)
    if not verification.live:
        recorder.set(outcome="proves nothing", detail="the outputs are the same for all inputs that were tried")
    elif error <= TOLERANCE:
        recorder.set(outcome="exact", detail="")
    else:
        recorder.set(outcome="wrong", detail=f"differs from its masked original by {error:.1e}")


def _export(pruned: Any, recorder: Recorder) -> None:
    """Export and compare; what fails here is on the record, but does not make the pruned model any less exact."""
    from fxprune.deploy.onnx import export_onnx
    from fxprune.deploy.parity import check_parity

    with tempfile.TemporaryDirectory(prefix="zoo-onnx-") as directory:
        path = Path(directory) / "model.onnx"
        try:
            with recorder.stage("export"):
                export_onnx(pruned, path)
            recorder.set(onnx_bytes=sum(file.stat().st_size for file in Path(directory).iterdir()))
            for batch in _PARITY_BATCHES if pruned.batch_is_dynamic else [pruned.batch]:
                with recorder.stage(f"parity at batch {batch}"):
                    parity = check_parity(pruned, path, batches=(batch,))
                recorder.set(**{f"onnx_error_batch_{batch}": float(parity.max_relative_error)})
        except Exception as error:
            where, text = recorder.values["stage"], " ".join(str(error).split())[:300]
            recorder.set(onnx="failed", detail=f"ONNX {where}: {type(error).__name__}: {text}")
            recorder.set(traceback=traceback.format_exc()[-6000:])
            return
    errors = [value for key, value in recorder.values.items() if key.startswith("onnx_error_batch_")]
    recorder.set(onnx="ok" if max(errors) <= PARITY_TOLERANCE else "differs")


def _second_check(name: str, seed: int, removed: check.Removed, pruned: Any, recorder: Recorder) -> None:
    """Compare with the reference that shares no code with fxprune: the eager model with zeroed parameters."""
    inputs = make_inputs(name, pruned.batch if not pruned.batch_is_dynamic else 2, seed=7, dtype=torch.float64)
    module = copy.deepcopy(pruned.module).double()
    try:
        with recorder.stage("second check"):
            got = check.outputs(module, inputs)
            del module
            error = check.relative_error(got, check.masked_reference(name, seed, removed))
    except Exception as problem:
        recorder.set(second_check=f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}")
        recorder.set(second_traceback=traceback.format_exc()[-6000:])
        return
    recorder.set(second_error=error)
    if error > check.TOLERANCE:
        recorder.set(outcome="wrong", detail=f"differs from the eager masked original by {error:.1e}")
