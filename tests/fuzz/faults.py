"""Mistakes that somebody could make in a rule, each as a patch of the table, and networks in which it would show."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import fx, nn

from fxprune.channels.labels import Labels
from fxprune.channels.rules import RULES, Flow, layers, move, recurrent, statistics
from fxprune.channels.rules.table import Entry, key_of, packets

aten = torch.ops.aten
Patch = Callable[[], Any]


@dataclass(frozen=True)
class Fault:
    """A mistake.

    Attributes:
        patch: Makes a context in which the rules have it.
        networks: Names in ``tests/networks/``.
    """

    patch: Patch
    networks: tuple[str, ...]


FAULTS: dict[str, Fault] = {}


def fault(*networks: str) -> Callable[[Patch], Patch]:
    """Register a mistake under the name of the function that makes its patch."""

    def register(patch: Patch) -> Patch:
        FAULTS[patch.__name__] = Fault(patch, networks)
        return patch

    return register


def _shifted(axis: Any) -> Any:
    return None if axis is None else np.roll(axis, 1)


@contextmanager
def _rules(change: Callable[[Any, Flow, fx.Node], Any], *keys: Any) -> Iterator[None]:
    """Give these entries of the table another rule, which is handed the right one."""
    changed = {}
    for key in keys:
        right = RULES[key].flow
        changed[key] = Entry(functools.partial(change, right), RULES[key].held)
    with mock.patch.dict(RULES, changed):
        yield


def _untied(right: Any, flow: Flow, node: fx.Node) -> Any:
    """Run a rule that ties nothing."""
    with mock.patch.object(flow, "meet", lambda one, other, what="": other if one is None else one):
        return right(flow, node)


def _misread(right: Any, flow: Flow, node: fx.Node, d: int = 1) -> Any:
    """Run a rule that takes each channel of its input for the next."""
    found = flow.axes

    def axes(value: Any) -> Any:
        known = list(found(value))
        if value is node.args[0]:
            known[d] = _shifted(known[d])
        return tuple(known)

    with mock.patch.object(flow, "axes", axes):
        return right(flow, node)


def _vector(which: str) -> Callable[..., Any]:
    """Make a rule that takes each entry of one of a layer's vectors for the next."""

    def change(right: Any, flow: Flow, node: fx.Node) -> Any:
        vector, known = getattr(flow.layer(node), which), flow.parameter

        def parameter(tensor: Any, labelled: int | None = None) -> Any:
            axes = known(tensor, labelled)
            return (_shifted(axes[0]), *axes[1:]) if tensor is vector else axes

        with mock.patch.object(flow, "parameter", parameter):
            return right(flow, node)

    return change


def _numpy(module: Any, **functions: Any) -> Any:
    """Give one module of rules other functions of numpy; patching numpy itself would break whatever uses it."""
    return mock.patch.object(module, "np", types.SimpleNamespace(**{**vars(np), **functions}))


CONVS = (nn.Conv2d,)
NORMS = (nn.BatchNorm2d,)

# ---------------------------------------------------------------- element by element


@fault("residual", "squeeze_excite")
def sums_tie_nothing() -> Any:
    return _rules(_untied, *packets("add", "mul"))


@fault("residual", "two_towers")
def sums_are_off_by_one() -> Any:
    return _rules(_misread, *packets("add"))


@fault("layer_scale", "buffer_per_channel")
def scales_are_off_by_one() -> Any:
    return _rules(_misread, *packets("mul", "add", "sub"))


@fault("width_linear", "mixer", "coordinate_channels")
def what_carries_no_channels_is_no_obstacle() -> Any:
    right = Flow.meet

    def meet(self: Flow, one: Any, other: Any, what: str = "") -> Any:
        return (other if one is None else one) if one is None or other is None else right(self, one, other, what)

    return mock.patch.object(Flow, "meet", meet)


# ---------------------------------------------------------------- convolutions


@fault("conv_chain")
def convolutions_forget_their_input() -> Any:
    return _rules(_untied, *CONVS)


@fault("conv_chain", "residual")
def convolutions_are_off_by_one() -> Any:
    return _rules(_misread, *CONVS)


@fault("conv_chain", "residual")
def convolutions_have_other_biases() -> Any:
    return _rules(_vector("bias"), *CONVS)


@fault("depthwise", "depthwise_multiplier")
def depthwise_convolutions_are_off_by_one() -> Any:
    return _rules(_misread, *CONVS)


@fault("grouped_conv", "grouped_many", "shuffle_grouped")
def groups_and_members_change_places() -> Any:
    right = Labels.split

    def split(self: Labels, flat: Any, sizes: Any, place: str) -> Any:
        return right(self, flat, tuple(reversed(sizes)), place)[::-1]

    return mock.patch.object(Labels, "split", split)


@fault("depthwise", "grouped_conv")
def groups_are_not_tied() -> Any:
    return _rules(_untied, *CONVS)


@fault("conv_transpose", "grouped_transposed")
def transposed_convolutions_are_off_by_one() -> Any:
    return _rules(_misread, nn.ConvTranspose2d)


@fault("functional_conv", "standardised_weight")
def functional_convolutions_are_off_by_one() -> Any:
    return _rules(_misread, aten.conv2d)


# ---------------------------------------------------------------- linear layers, norms


@fault("linear_chain")
def linear_layers_are_off_by_one() -> Any:
    return _rules(lambda right, flow, node: _misread(right, flow, node, -1), nn.Linear)


@fault("linear_chain")
def linear_layers_have_other_biases() -> Any:
    return _rules(_vector("bias"), nn.Linear)


@fault("residual", "pre_activation")
def batch_norms_forget_their_variance() -> Any:
    def own(flow: Flow, layer: nn.Module, *names: str) -> Any:
        return right(flow, layer, *(name for name in names if name != "running_var"))

    right = statistics._own_vectors
    return mock.patch.object(statistics, "_own_vectors", own)


@fault("residual", "pre_activation")
def batch_norms_have_other_means() -> Any:
    return _rules(_vector("running_mean"), *NORMS)


@fault("layer_norm")
def layer_norms_have_other_scales() -> Any:
    return _rules(_vector("weight"), nn.LayerNorm)


@fault("group_norm")
def group_norms_have_no_groups() -> Any:
    return _rules(lambda right, flow, node: flow.axes(node.args[0]), nn.GroupNorm)


@fault("prelu")
def slopes_are_off_by_one() -> Any:
    return _rules(_vector("weight"), nn.PReLU)


# ---------------------------------------------------------------- channels that move


@fault("concat", "concat_width")
def pieces_are_joined_in_another_order() -> Any:
    right = np.concatenate
    return _numpy(move, concatenate=lambda parts, *rest: right(list(parts)[::-1], *rest))


@fault("split_uneven", "c2f")
def pieces_begin_one_later() -> Any:
    def change(right: Any, flow: Flow, node: fx.Node) -> Any:
        return _misread(right, flow, node)

    return _rules(change, *packets("split", "split_with_sizes", "chunk"))


@fault("slice_constant", "slice_part")
def slices_begin_at_the_front() -> Any:
    def change(right: Any, flow: Flow, node: fx.Node) -> Any:
        axes = list(flow.axes(node.args[0]))
        size = flow.shape(node)
        return tuple(None if axis is None else axis[: size[d]] for d, axis in enumerate(axes))

    return _rules(change, aten.slice)


@fault("flip_add", "flip_channels")
def flips_are_forgotten() -> Any:
    return _rules(lambda right, flow, node: flow.axes(node.args[0]), aten.flip)


@fault("roll_channels", "roll_around")
def rolls_go_the_other_way() -> Any:
    right = np.roll
    return _numpy(move, roll=lambda axis, shift: right(axis, -shift))


@fault("repeat_channels", "tile_channels")
def copies_stand_side_by_side() -> Any:
    return _numpy(move, tile=np.repeat)


@fault("repeat_interleave")
def copies_follow_as_a_whole() -> Any:
    return _numpy(move, repeat=np.tile)


@fault("permute_linear", "transpose_tokens", "channel_shuffle")
def permutations_are_forgotten() -> Any:
    return _rules(lambda right, flow, node: flow.axes(node.args[0]), *packets("permute", "transpose"))


@fault("index_select", "index_list")
def positions_are_ignored() -> Any:
    right = move._picked

    def picked(flow: Flow, axis: Any, index: Any) -> Any:
        found = right(flow, axis, index)
        return found if found is None else axis[np.arange(len(found)) % len(axis)]

    return mock.patch.object(move, "_picked", picked)


@fault("option_a_pad", "pad_channels")
def zeros_are_added_at_the_other_end() -> Any:
    right = np.concatenate
    return _numpy(move, concatenate=lambda parts, *rest: right(list(parts)[::-1], *rest))


@fault("pixel_shuffle")
def taps_and_channels_change_places() -> Any:
    def change(right: Any, flow: Flow, node: fx.Node) -> Any:
        *lead, channels, _, _ = flow.axes(node.args[0])
        taps = int(node.args[1]) ** 2  # type: ignore[arg-type]
        spread, kept = flow.labels.split(channels, (taps, flow.shape(node)[-3]), flow.place)  # type: ignore[arg-type]
        flow.freeze(spread, "pixel shuffle spreads it over space")
        return (*lead, kept, None, None)

    return _rules(change, aten.pixel_shuffle)


@fault("channel_shuffle_module", "shuffle_unit")
def shuffled_channels_stay_where_they_were() -> Any:
    right = Labels.merge

    def merge(self: Labels, factors: Any, sizes: Any, place: str) -> Any:
        return right(self, list(factors)[::-1], list(sizes)[::-1], place)

    return mock.patch.object(Labels, "merge", merge)


@fault("flatten_nchw", "flatten_nhwc", "einops_reshape")
def flattened_channels_are_off_by_one() -> Any:
    right = Flow.reshape

    def reshape(self: Flow, source: fx.Node, node: fx.Node) -> Any:
        return tuple(_shifted(axis) for axis in right(self, source, node))

    return mock.patch.object(Flow, "reshape", reshape)


@fault("glu", "swi_glu_packed")
def gates_are_off_by_one() -> Any:
    def change(right: Any, flow: Flow, node: fx.Node) -> Any:
        axes = list(flow.axes(node.args[0]))
        d = int(move.argument(node, 1, "dim", -1))
        half = axes[d].size // 2  # type: ignore[union-attr]
        flow.labels.tie(axes[d][:half], np.roll(axes[d][half:], 1))  # type: ignore[index]
        axes[d] = axes[d][:half]  # type: ignore[index]
        return tuple(axes)

    return _rules(change, *packets("glu"))


@fault("stack_branches")
def stacked_pieces_are_not_tied() -> Any:
    return _rules(_untied, aten.stack)


# ---------------------------------------------------------------- attention, recurrence


@fault("lstm", "bidirectional_gru")
def gates_are_mixed_up() -> Any:
    return _numpy(recurrent, tile=np.repeat)


@fault("bidirectional_gru")
def recurrent_layers_are_off_by_one() -> Any:
    return _rules(lambda right, flow, node: _misread(right, flow, node, -1), nn.GRU)


@fault("bilinear", "gram", "attention_separate")
def products_tie_nothing() -> Any:
    return _rules(_untied, *packets("matmul", "bmm", "mm"))


@fault("attention_sdpa", "attention_packed")
def attention_mixes_heads_and_widths() -> Any:
    def change(right: Any, flow: Flow, node: fx.Node) -> Any:
        found = right(flow, node)
        return (*found[:-3], found[-1], found[-2], found[-3])

    return _rules(change, aten.scaled_dot_product_attention)


@fault("einsum_conv", "einsum_attention")
def letters_are_off_by_one() -> Any:
    right = Flow.meet
    return mock.patch.object(Flow, "meet", lambda self, one, other, what="": right(self, one, _shifted(other), what))


@fault("text_classifier")
def embeddings_are_off_by_one() -> Any:
    def change(right: Any, flow: Flow, node: fx.Node) -> Any:
        found = right(flow, node)
        return (*found[:-1], _shifted(found[-1]))

    return _rules(change, nn.Embedding)


# ---------------------------------------------------------------- what has to stay


@fault("conv_chain", "linear_chain")
def outputs_may_go() -> Any:
    right = Flow._visit
    return mock.patch.object(Flow, "_visit", lambda self, node: None if node.op == "output" else right(self, node))


@fault("unknown_op", "matrix_inverse", "sort_channels")
def what_is_unknown_passes() -> Any:
    right = Flow._visit

    def visit(self: Flow, node: fx.Node) -> Any:
        missing = node.op in ("call_function", "call_module") and key_of(node, self.module) not in RULES
        if missing or getattr(node.target, "overloadpacket", None) is aten.sort:
            axes = self.axes(node.args[0])
            return [axes, axes] if isinstance(node.meta["val"], (tuple, list)) else axes
        return right(self, node)

    return mock.patch.object(Flow, "_visit", visit)


@fault("argmax_channels")
def positions_of_extremes_may_shift() -> Any:
    return _rules(lambda right, flow, node: flow.opaque(node.meta["val"]), *packets("argmax", "argmin"))


@fault("select_channel", "unbind_channels")
def channels_picked_by_number_may_go() -> Any:
    return mock.patch.object(Flow, "freeze", return_value=None)


# ---------------------------------------------------------------- layers with several operands, other statistics


@fault("recurrent_cell", "lstm_cell", "slot_cell")
def gates_of_cells_are_mixed_up() -> Any:
    return _numpy(recurrent, tile=np.repeat)


@fault("recurrent_cell", "lstm_cell")
def cells_forget_what_they_remember() -> Any:
    return _rules(_untied, *packets("gru_cell", "lstm_cell"))


@fault("bilinear_layer")
def second_operands_are_off_by_one() -> Any:
    def change(right: Any, flow: Flow, node: fx.Node) -> Any:
        found = flow.axes

        def axes(value: Any) -> Any:
            known = found(value)
            return (*known[:2], _shifted(known[2])) if value is node.args[2] else known

        with mock.patch.object(flow, "axes", axes):
            return right(flow, node)

    return _rules(change, aten.bilinear)


@fault("deformable")
def offsets_may_go() -> Any:
    return mock.patch.object(Flow, "freeze", return_value=None)


@fault("deformable")
def deformable_convolutions_are_off_by_one() -> Any:
    return _rules(_misread, "torchvision.deform_conv2d")


@fault("modulated")
def convolutions_of_samples_are_off_by_one() -> Any:
    return _rules(_misread, aten.conv2d)


@fault("bag")
def bags_are_off_by_one() -> Any:
    def change(right: Any, flow: Flow, node: fx.Node) -> Any:
        (lead, axis), *rest = right(flow, node)
        return [(lead, _shifted(axis)), *rest]

    return _rules(change, aten.embedding_bag)


@fault("triangular_weight")
def triangles_tie_nothing() -> Any:
    return _rules(lambda right, flow, node: flow.axes(node.args[0]), *packets("triu", "tril"))


@fault("global_filter")
def transforms_pass_what_they_read() -> Any:
    return _rules(lambda right, flow, node: flow.axes(node.args[0])[::-1], *packets("fft_rfft", "fft_irfft"))


@fault("convolution_along_channels")
def every_convolution_is_pointwise() -> Any:
    return mock.patch.object(layers, "_moves", lambda sizes, stride, padding: [False] * len(sizes))


@fault("instance_norm_of_tokens", "group_norm_of_tokens", "batch_norm_of_tokens")
def norms_read_only_channels() -> Any:
    return mock.patch.object(statistics, "_of_layer", return_value={1})
