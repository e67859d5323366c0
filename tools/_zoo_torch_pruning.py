"""The peer: Torch-Pruning, with nothing but the output layers named, checked against its own masked original."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from tools import _zoo_check as check
from tools._zoo_models import build, catalog, make_inputs
from tools._zoo_record import Recorder

PRUNING_RATIO = 0.3
"""Share of channels removed from every layer: about half the multiply-accumulates."""

_CLASSES = {"classification": 1000, "segmentation": 21, "video": 400}


def output_layers(model: nn.Module, name: str) -> list[nn.Module]:
    """Return the layers that make the model's outputs; these are all that the peer is told to leave alone."""
    category = catalog()[name]
    if category == "optical flow":
        block: Any = model
        heads = [block.update_block.flow_head.conv2]
        return heads if block.mask_predictor is None else [*heads, block.mask_predictor.conv]
    layers: list[nn.Module] = []
    for module in model.modules():
        width = getattr(module, "out_features", getattr(module, "out_channels", None))
        if width == _CLASSES[category] and isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            layers.append(module)
    return layers


@contextmanager
def recording() -> Iterator[None]:
    """Have every parameter that Torch-Pruning cuts remember, as ``_kept``, which original indices it holds.

    All its layer pruners, whatever the layer, cut through one method, so that this sees exactly what was removed.
    """
    from torch_pruning.pruner.function import BasePruningFunc

    original = BasePruningFunc._prune_parameter_and_grad

    def record(self: Any, weight: Tensor, keep_idxs: Any, pruning_dim: int) -> Tensor:
        dim = pruning_dim % weight.dim()
        kept = dict(getattr(weight, "_kept", {}))
        before = kept.get(dim, torch.arange(weight.shape[dim]))
        kept[dim] = before[torch.as_tensor(keep_idxs, dtype=torch.long)]
        cut: Tensor = original(self, weight, keep_idxs, pruning_dim)
        vars(cut)["_kept"] = kept
        return cut

    BasePruningFunc._prune_parameter_and_grad = record
    try:
        yield
    finally:
        BasePruningFunc._prune_parameter_and_grad = original


def removed_slices(pruned: nn.Module, shapes: dict[str, torch.Size]) -> check.Removed:
    """Read back what was removed; ``shapes`` are those of the original parameters."""
    removed: check.Removed = {}
    for name, parameter in pruned.named_parameters(remove_duplicate=False):
        for dim, kept in getattr(parameter, "_kept", {}).items():
            gone = sorted(set(range(shapes[name][dim])) - set(kept.tolist()))
            if gone:
                removed.setdefault(name, {})[dim] = gone
    return removed


def _maskable(model: nn.Module) -> bool:
    """Whether zeroed parameters can express a cut: not where widths set a softmax's scale or a norm's groups."""
    kinds = {type(module).__name__.lower() for module in model.modules()}
    return not any("attention" in kind or kind in ("softmax", "groupnorm") for kind in kinds)


def _prune(model: nn.Module, inputs: tuple[Tensor, ...], name: str, recorder: Recorder) -> None:
    import torch_pruning as tp

    recorder.set(version=metadata.version("torch-pruning"), pruning_ratio=PRUNING_RATIO)
    with recorder.stage("graph"):
        pruner = tp.pruner.BasePruner(
            model,
            inputs if len(inputs) > 1 else inputs[0],
            importance=tp.importance.MagnitudeImportance(p=2),
            global_pruning=False,
            pruning_ratio=PRUNING_RATIO,
            ignored_layers=output_layers(model, name),
        )
    with recorder.stage("prune"), recording():
        pruner.step()


def run(name: str, seed: int, recorder: Recorder) -> None:
    """Prune one model with Torch-Pruning and record how it went."""
    model = build(name, seed)
    shapes = {key: value.shape for key, value in model.named_parameters(remove_duplicate=False)}
    inputs = make_inputs(name, 1)
    macs = check.count_macs(model, inputs)
    recorder.set(parameters=sum(shape.numel() for shape in shapes.values()), macs=macs)
    recorder.phase("work")
    _prune(model, inputs, name, recorder)
    recorder.phase("check")
    with recorder.stage("next forward"):
        macs_after = check.count_macs(model, inputs)
    removed = removed_slices(model, shapes)
    recorder.set(macs_after=macs_after, macs_kept=macs_after / macs, layers_cut=len(removed))
    if not removed:
        recorder.set(outcome="refused", detail="nothing pruned, no message")
        return
    with recorder.stage("verify"):
        cut_modules = {key.rpartition(".")[0] for key in removed}
        maskable = _maskable(model)
        got = check.outputs(model.double(), make_inputs(name, 2, seed=7, dtype=torch.float64))
        del model
        try:
            error = check.relative_error(got, check.masked_reference(name, seed, removed))
        except check.VacuousCheckError as vacuous:
            recorder.set(outcome="forward only", detail=str(vacuous))
            return
    recorder.set(max_relative_error=error, modules_cut=len(cut_modules))
    if error <= check.TOLERANCE:
        recorder.set(outcome="exact", detail="")
    elif maskable:
        recorder.set(outcome="wrong", detail=f"differs from its masked original by {error:.1e}")
    else:
        recorder.set(outcome="forward only", detail="masked parameters cannot express attention or group norm")
