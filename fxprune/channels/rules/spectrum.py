"""Complex numbers, and transforms that read every position along a dimension."""

from __future__ import annotations

from typing import Any

from torch import fx

from fxprune.channels.labels import Axes
from fxprune.channels.rules.table import Flow, Held, argument_of, packets, rule

_TRANSFORMS = [f"fft_{kind}fft{n}" for kind in ("", "i", "r", "ir", "h", "ih") for n in ("", "2", "n")]


@rule(*packets(*_TRANSFORMS, "fft_fftshift", "fft_ifftshift"), held=Held.LOST)
def transform(flow: Flow, node: fx.Node) -> Axes:
    """What is transformed over is frozen, because each result reads all of it by position; other dimensions pass."""
    axes = list(flow.axes(node.args[0]))
    dims: Any = argument_of(node, "dim")
    if dims is None:
        sizes: Any = argument_of(node, "s", None) if any(a.name == "s" for a in node.target._schema.arguments) else None  # type: ignore[union-attr]
        dims = range(-len(sizes or axes), 0)
    for d in dims if not isinstance(dims, int) else [dims]:
        flow.freeze(axes[d], "a Fourier transform reads it by position")
        axes[d] = None
    return tuple(axes)


@rule(*packets("view_as_complex"), held=Held.LOST)
def to_complex(flow: Flow, node: fx.Node) -> Axes:
    """The last dimension holds real and imaginary parts, which stay; the others pass."""
    *axes, parts = flow.axes(node.args[0])
    flow.freeze(parts, "its two entries are the parts of a complex number")
    return tuple(axes)


@rule(*packets("view_as_real"), held=Held.LOST)
def to_real(flow: Flow, node: fx.Node) -> Axes:
    """Real and imaginary parts become a dimension of their own; the others pass."""
    return (*flow.axes(node.args[0]), None)
