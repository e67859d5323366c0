"""The reference of a removal: the original graph, whole, in which the layers are silenced instead of taken out.

It shares nothing with the rewiring: every node runs, and only two kinds of values are touched. A sum reads zeros in
place of a branch; a sequence or block gives what it was given.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.capture import Traced
from fxprune.depth.layers import Layer
from fxprune.errors import VerifyError
from fxprune.runner import Runner
from fxprune.surgery import Verification, relative_error

TOLERANCE = 1e-9
Inputs = tuple[tuple[Any, ...], dict[str, Any]]


class Without(Runner):
    """Runs a graph in float64 as if some of its layers did nothing."""

    def __init__(self, module: fx.GraphModule, layers: Iterable[Layer], **options: Any) -> None:
        super().__init__(module, **options)
        layers = list(layers)
        self.silent = {(layer.output, layer.summand) for layer in layers if layer.kind == "branch"}
        self.passing = {layer.output: layer.source for layer in layers if layer.kind != "branch"}
        self.held: dict[str, Any] = {}
        self._sources = set(self.passing.values())

    def value_of(self, n: fx.Node) -> Any:
        """Return what a node gives, with zeros for silenced branches and the input of a layer for its output."""
        if n.name in self.passing:
            value = self.held[self.passing[n.name]]
        elif any((n.name, source.name) in self.silent for source in n.all_input_nodes):
            value = self._without_branches(n)
        else:
            value = super().value_of(n)
        if n.name in self._sources:
            self.held[n.name] = value
        return value

    def _without_branches(self, n: fx.Node) -> Tensor:
        operands: list[Tensor] = []
        for source in n.args[:2]:
            assert isinstance(source, fx.Node)
            value = self.env[source]
            operands.append(torch.zeros_like(value) if (n.name, source.name) in self.silent else value)
        return operands[0] + operands[1]


def verify_removal(
    traced: Traced, removed: Traced, layers: Iterable[Layer], *, tolerance: float = TOLERANCE
) -> Verification:
    """Check in float64 that a graph computes what the original does with some of its layers silenced.

    The inputs are random ones of the example's shapes, with one sample more where the batch is dynamic.

    Args:
        traced: The original.
        removed: The graph without the layers.
        layers: The layers, as found in the original.
        tolerance: The largest relative error allowed.

    Raises:
        VerifyError: It does not (the message names the first node that differs), one of the two does not run, or the
            outputs prove nothing because they are constant or not finite.
    """
    layers = list(layers)
    inputs, reference = _reference(traced, layers)
    try:
        found = Runner(removed.module).run_flat(*inputs)
    except Exception as error:  # a graph raises whatever its operations raise
        raise VerifyError(f"without the layers the model does not run: {error}") from error
    if len(found) != len(reference):
        raise VerifyError(f"without the layers the model has {len(found)} outputs in place of {len(reference)}")
    if all(_proves_nothing(value) for value in reference):
        raise VerifyError(
            "every output of the reference is one constant, or not finite, so that comparing with it proves nothing; "
            "give layers whose weights are all zero (often the last one) trained or random values first"
        )
    errors = [relative_error(a, b) for a, b in zip(found, reference, strict=True)]
    result = Verification(max(errors, default=0.0), "float64", tolerance, len(errors))
    if not result.ok:
        raise VerifyError(
            f"without the layers the model differs from the original with {', '.join(layer.name for layer in layers)} "
            f"silenced by {result.max_relative_error:.3g} of its largest output (allowed: {tolerance:g}); "
            f"{_first_difference(traced, removed, layers, inputs, tolerance)}"
        )
    return result


def _reference(traced: Traced, layers: list[Layer]) -> tuple[Inputs, list[Tensor]]:
    failure: Exception | None = None
    sizes = [(traced.batch + 1, traced.another_size), (traced.batch + 1, 2.0), (traced.batch + 1, None), (None, None)]
    for batch, scale in sizes[0 if traced.another_size is not None else 2 :]:
        inputs = traced.inputs(batch, seed=0, scale=scale)
        try:
            return inputs, Without(traced.module, layers).run_flat(*inputs)
        except Exception as error:  # a size that the model cannot take, or an operation without a float64 kernel
            failure = error
    raise VerifyError(
        f"the original does not run in float64, so that nothing can be compared with it: {failure}; switch the check "
        "off (verify=False) and compare on data of your own"
    ) from failure


def _proves_nothing(output: Tensor) -> bool:
    if output.is_complex():
        output = torch.view_as_real(output)
    values = output.double()
    if not values.numel() or not bool(values.isfinite().all()):
        return True
    return float(values.max() - values.min()) == 0.0 and (values.numel() > 1 or not bool(values.any()))


def _first_difference(traced: Traced, removed: Traced, layers: list[Layer], inputs: Inputs, tolerance: float) -> str:
    """Name the first node of both graphs whose values differ; only called when the check has failed."""
    ones: dict[str, Any] = {}
    others: dict[str, Any] = {}
    Without(traced.module, layers, seen=lambda node, value: ones.update({node.name: value})).run_flat(*inputs)
    Runner(removed.module, seen=lambda node, value: others.update({node.name: value})).run_flat(*inputs)
    for node in removed.module.graph.nodes:
        mine, other = others.get(node.name), ones.get(node.name)
        if node.op == "output" or not isinstance(mine, Tensor) or not isinstance(other, Tensor):
            continue
        if relative_error(mine, other) > tolerance:
            where = node.meta.get("source") or node.meta.get("path") or "unknown place"
            return f"the first node that differs is {node.name} ({node.target}, {where})"
    return "no single node differs"
