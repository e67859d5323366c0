"""What a removed channel leaves behind: a constant, folded into the layers that read it.

Cutting a channel is masking it with zero. A constant is a better guess: ``"constant"`` takes what the channel holds
when its layer's weights (or the scale of the norm behind them) are zero, carried through activations and pooling;
``"mean"`` takes the mean of the channel over calibration batches, measured where it is read. A convolution or linear
layer that reads the channel then gets ``weight * constant`` added to its bias, or taken from the running mean of the
batch norm behind it, so that no parameter is new where none has to be.

A convolution or mean pooling that pads reads the constant in its padding too: otherwise what it gives would differ at
the borders, and no bias could hold it. The masked reference holds exactly these constants.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.capture import Traced
from fxprune.capture.regions import require_whole
from fxprune.errors import InputError
from fxprune.graph_tools import assign, calls_of, evaluating, module_of, place_of, tensor_uses
from fxprune.surgery.constants import Constant, channel_dim, constants
from fxprune.surgery.kept import Kept

READERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Compensation:
    """What the removed channels hold where they are read.

    Attributes:
        constants: Node name of a convolution or linear layer -> one value per input channel; zero for those that stay.
        skipped: Layers that read removed channels as zero, with the reason.
    """

    constants: dict[str, Constant]
    skipped: tuple[tuple[str, str], ...] = ()


def compensation_of(traced: Traced, plan: Any, kept: Kept, batches: Iterable[Any] | None = None) -> Compensation:
    """Return what a plan asks for; nothing for a plain removal, whose channels leave zero behind."""
    mode = getattr(plan, "compensate", None)
    return Compensation({}) if mode is None else compensation(traced, kept, mode, batches)


def compensation(traced: Traced, kept: Kept, mode: str, batches: Iterable[Any] | None = None) -> Compensation:
    """Find the constants of a removal.

    Args:
        traced: The model before the cut.
        kept: The removal.
        mode: ``"constant"`` or ``"mean"``.
        batches: Inputs to calibrate on, for ``"mean"``: a tensor, or a tuple of all positional inputs, per batch.

    Raises:
        InputError: ``"mean"`` without batches, or with a batch that does not fit the model.
    """
    readers, skipped = _readers(traced.module, kept)
    if mode == "constant":
        known = constants(traced, kept)
        found = {node: known.get(_source(node)) for node in readers}
    else:
        found = dict(_means(traced, readers, batches))
    held: dict[str, Constant] = {}
    for node, vector in found.items():
        if vector is None:
            skipped[node] = "what it reads has no constant there: it meets data, or differs from place to place"
        elif (masked := np.where(kept.gone[_channels(kept, node)], vector, 0.0)).any():
            held[node.name] = masked
    return Compensation(held, tuple((place_of(node), reason) for node, reason in skipped.items()))


def shift_biases(
    before: Traced, after: Traced, kept: Kept, held: Mapping[str, Constant]
) -> list[tuple[nn.Module, str, torch.dtype]]:
    """Add what the removed channels gave to the biases of the cut model, in float64.

    Returns:
        The layer, the name of the tensor there, and the dtype that it should have in the end.
    """
    nodes = {node.name: node for node in after.module.graph.nodes}
    shifted = []
    for old in before.module.graph.nodes:
        if old.name not in held:
            continue
        layer: Any = module_of(before.module, old)
        weight = layer.weight.detach().double()
        groups = int(getattr(layer, "groups", 1))
        by_group = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).sum(-1)
        values = torch.from_numpy(held[old.name]).to(weight.device).reshape(groups, 1, -1)
        shift = (by_group * values).sum(-1).flatten()
        rows = kept.groups.axis(f"{old.target}.weight", 0)
        if rows is not None:
            shift = shift[torch.from_numpy(np.flatnonzero(kept.mask(rows))).to(shift.device)]
        shifted.append(_shift(after.module, nodes[old.name], shift))
    return shifted


def _shift(module: fx.GraphModule, node: fx.Node, shift: Tensor) -> tuple[nn.Module, str, torch.dtype]:
    """Add to what a layer gives: in its own bias, or where it has none in the batch norm that alone reads it."""
    layer: Any = module_of(module, node)
    norm = _batch_norm_of(module, node)
    if layer.bias is None and norm is not None:
        dtype = norm.running_mean.dtype
        assign(norm, "running_mean", norm.running_mean.double() - shift)
        return norm, "running_mean", dtype
    dtype = layer.weight.dtype if layer.bias is None else layer.bias.dtype
    assign(layer, "bias", shift if layer.bias is None else layer.bias.detach().double() + shift)
    return layer, "bias", dtype


def _batch_norm_of(module: fx.GraphModule, node: fx.Node) -> Any:
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_module":
        return None
    norm = module_of(module, users[0])
    fits = type(norm) in BATCH_NORMS and norm.running_mean is not None and len(calls_of(module, norm)) == 1
    # Behind a linear layer on tokens a norm's channels are the tokens.
    return norm if fits and channel_dim(module_of(module, node), node.meta["val"].ndim) == 1 else None


# ---------------------------------------------------------------- who reads


def _source(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _channels(kept: Kept, node: fx.Node) -> Any:
    axes = kept.axes(_source(node))
    return axes[channel_dim(module_of(kept.groups.traced.module, node), len(axes))]


def _readers(module: fx.GraphModule, kept: Kept) -> tuple[list[fx.Node], dict[fx.Node, str]]:
    """Return the layers that read removed channels and can take a constant, and those that cannot, with the reason."""
    uses = tensor_uses(module)
    found: list[fx.Node] = []
    skipped: dict[fx.Node, str] = {}
    for node in module.graph.find_nodes(op="call_module"):
        layer: Any = module_of(module, node)
        transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
        if type(layer) not in READERS and not transposed:
            continue
        axis = _channels(kept, node)
        if axis is None or not kept.gone[axis].any() or _all_rows_gone_with(kept, node, axis):
            continue
        own = [tensor for tensor in (layer.weight, layer.bias) if tensor is not None]
        if transposed:
            skipped[node] = "a transposed convolution covers its borders unevenly"
        elif len(calls_of(module, layer)) > 1:
            skipped[node] = "the layer is called more than once"
        elif any(len(uses[id(tensor)]) > 1 for tensor in own):
            skipped[node] = "its weights are shared"
        else:
            found.append(node)
    return found, skipped


def _all_rows_gone_with(kept: Kept, node: fx.Node, axis: Any) -> bool:
    """Whether each removed input takes the outputs that read it along, as in a depthwise convolution."""
    layer: Any = module_of(kept.groups.traced.module, node)
    groups = int(getattr(layer, "groups", 1))
    rows = kept.groups.axis(f"{node.target}.weight", 0)
    if groups == 1 or rows is None:
        return False
    gone_in = kept.gone[axis].reshape(groups, -1).any(1)
    gone_out = kept.gone[rows].reshape(groups, -1).all(1)
    return bool((gone_in <= gone_out).all())


# ---------------------------------------------------------------- "mean"


class _Watched(fx.Interpreter):
    """Runs a graph and sums what chosen layers read, per channel."""

    def __init__(self, module: fx.GraphModule, readers: list[fx.Node]) -> None:
        super().__init__(module)
        self.readers = set(readers)
        self.sums: dict[fx.Node, Tensor] = {}
        self.counts: dict[fx.Node, int] = dict.fromkeys(readers, 0)

    def run_node(self, n: fx.Node) -> Any:
        if n in self.readers:
            value = self.env[_source(n)].detach().double()
            d = channel_dim(self.fetch_attr(str(n.target)), value.ndim)
            total = value.sum([k for k in range(value.ndim) if k != d])
            self.sums[n] = self.sums[n] + total if n in self.sums else total
            self.counts[n] += value.numel() // value.shape[d]
        return super().run_node(n)


def _means(
    traced: Traced, readers: list[fx.Node], batches: Iterable[Any] | None
) -> Iterable[tuple[fx.Node, Constant | None]]:
    if batches is None:
        raise InputError(
            "compensate='mean' takes the mean of each removed channel over calibration batches, and none were given; "
            "pass calibration=, or use compensate='constant', which needs no data"
        )
    require_whole(traced, "compensate='mean'", "use compensate='constant', which needs no data")
    watched, number = _Watched(traced.module, readers), 0
    with torch.no_grad(), evaluating(traced.module):
        for number, batch in enumerate(batches, 1):
            args = batch if isinstance(batch, tuple) else (batch,)
            try:
                watched.run(*traced.flat(args, traced.kwargs), enable_io_processing=False)
            except Exception as error:  # a graph raises whatever its operations raise on inputs that do not fit
                raise InputError(f"calibration batch {number} does not fit the model: {error}") from error
    if not number:
        raise InputError(
            "compensate='mean' got no calibration batches: the iterable is empty, as a generator is once read"
        )
    for node, total in watched.sums.items():
        mean = (total / watched.counts[node]).cpu().numpy()
        if not np.isfinite(mean).all():
            raise InputError(f"the calibration batches give values that are not finite at {place_of(node)}")
        yield node, mean
