"""Recurrent layers and cells: hidden units repeat once per gate along the rows of every weight."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from fxprune.channels.labels import Axes, Axis
from fxprune.channels.rules.table import Flow, Held, argument_of, packets, rule

_FEED = "reads an input that carries no channels"


@rule(nn.LSTM, nn.GRU, nn.RNN, held=Held.LOST)
def recurrent(flow: Flow, node: fx.Node) -> Any:
    """Hidden units repeat once per gate along the rows of every weight; layers read what the layer below gives."""
    layer: Any = flow.layer(node)
    source, state = node.args[0], node.args[1] if len(node.args) > 1 else None
    gates = {"LSTM": 4, "GRU": 3}.get(layer.mode, 1)
    axes = flow.axes(source)
    for axis in axes[:-1]:
        flow.freeze(axis, "a step or sample of a recurrent layer")
    feed, directions = axes[-1], 2 if layer.bidirectional else 1
    outs: list[Axis] = []
    for depth in range(layer.num_layers):
        outs = [_cell(flow, layer, f"_l{depth}{'_reverse' if k else ''}", gates, feed) for k in range(directions)]
        feed = np.concatenate(outs)
        _meet_state(flow, state, outs, layer)
    return [(*[None] * (len(axes) - 1), feed), _final_state(node, outs[0], layer)]


def _final_state(node: fx.Node, out: Axis, layer: Any) -> Any:
    """The final state of every layer and direction is as wide as the hidden units, which all shrink in step."""
    value = node.meta["val"][1]
    units = out if not layer.proj_size else None  # with a projection the cell state is wider than what the layer gives
    if isinstance(value, Tensor):
        return (*[None] * (value.ndim - 1), out)
    lead = [None] * (value[0].ndim - 1)
    return [(*lead, out), (*lead, units)]


def _cell(flow: Flow, layer: Any, suffix: str, gates: int, feed: Axis | None) -> Axis:
    def weight(name: str) -> Axes | None:
        tensor = getattr(layer, name + suffix, None)
        return flow.parameter(tensor) if isinstance(tensor, Tensor) else None

    inputs, hidden, projection = weight("weight_ih"), weight("weight_hh"), weight("weight_hr")
    assert inputs is not None
    assert hidden is not None
    units = flow.labels.fresh(layer.hidden_size)
    rows = np.tile(units, gates)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        found = weight(name)
        if found is not None:
            flow.meet(rows, found[0])
    flow.meet(feed, inputs[1], _FEED)
    result = units
    if projection is not None:
        flow.freeze(units, "a projected cell keeps its units; its projection can be cut")
        flow.meet(projection[1], units)
        result = projection[0] if projection[0] is not None else units
    flow.meet(hidden[1], result)
    if layer.num_layers > 1 or layer.bidirectional:
        # All layers and directions of one module share one hidden size, so their units can only shrink in step.
        flow.labels.tie(result, flow.labels.shared_units(id(layer), result))
    return result


def _meet_state(flow: Flow, state: Any, outs: list[Axis], layer: Any) -> None:
    """The initial state is as wide as the hidden units; beside a projection that of the cell is wider, and stays."""
    states = state if isinstance(state, (list, tuple)) else [state]
    for index, value in enumerate(states):
        if not flow.is_tensor(value):
            continue
        *lead, axis = flow.axes(value)
        for other in lead:
            flow.freeze(other, "a layer, direction or sample of a recurrent layer")
        for out in outs:
            flow.meet(axis, None if layer.proj_size and index else out)


@rule(*packets("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), held=Held.LOST)
def cell(flow: Flow, node: fx.Node) -> Any:
    """One step of a recurrent layer: input, state and result are tied as those of a whole layer."""
    source, state = node.args[:2]
    states: Any = state if isinstance(state, (list, tuple)) else [state]
    inputs, hidden = (flow.axes(value) for value in node.args[2:4])
    size = flow.shape(node.args[3])[1]
    units = hidden[1]
    rows = [inputs[0], hidden[0]]
    rows += [flow.axes(bias)[0] for name in ("b_ih", "b_hh") if flow.is_tensor(bias := argument_of(node, name))]
    for axis in rows:
        if units is None:
            flow.freeze(axis, "the gates of a single unit")
        elif axis is None:
            flow.freeze(units, "meets a vector of values that stay")
        else:
            flow.labels.tie(np.tile(units, axis.size // size), axis)
    flow.meet(flow.axes(source)[-1], inputs[1], _FEED)
    lead = flow.axes(source)[:-1]
    for value in states:
        *samples, axis = flow.axes(value)
        units = flow.meet(units, axis)
        lead = tuple(flow.meet(*pair) for pair in zip(lead, samples, strict=True))
    return [(*lead, units)] * 2 if len(states) > 1 else (*lead, units)
