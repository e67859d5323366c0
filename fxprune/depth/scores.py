"""How much each removable layer matters: one number each, the lower the sooner it goes.

==============  ======================================================================================  =============
score           what it is                                                                              data
==============  ======================================================================================  =============
``l1``          mean absolute weight, as a share of what initialisation gives a layer of that fan-in    none
``bn_scale``    mean absolute scale of the branch's last batch norm                                     none
``random``      uniform random numbers                                                                  none
``cka``         1 - linear CKA of what goes in and what comes out                                       inputs
``probe``       what the layer adds to the accuracy of a linear classifier on pooled features           with labels
``taylor``      the squared change of the loss, to first order, when what it adds becomes zero          with labels
==============  ======================================================================================  =============

Those from data are in :mod:`fxprune.depth.measured`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from fxprune.capture import Traced
from fxprune.depth import measured
from fxprune.depth.layers import Layer, Layers
from fxprune.depth.measured import Loss
from fxprune.errors import InputError
from fxprune.graph_tools import module_of

Importance = str | Callable[[Traced, Layers], Any]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def score_layers(
    traced: Traced,
    layers: Layers,
    importance: Importance = "l1",
    *,
    batches: Sequence[Any] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Return the score of each layer by name; a layer without one has none and stays.

    Args:
        traced: The captured model.
        layers: Its removable layers.
        importance: A name of the table above, or a function from the model and the layers to one number each (NaN for
            those that stay).
        batches: For scores from data.
        loss: For ``taylor``.
        seed: For ``random``.

    Raises:
        InputError: The name is not known, no layer gets a score, data are missing or do not fit, or the function gives
            something else.
    """
    check_importance(importance)
    if callable(importance):
        values = _of_function(importance, traced, layers)
    elif importance in _FROM_WEIGHTS:
        values = [_FROM_WEIGHTS[importance](traced, layer) for layer in layers]
    elif importance == "random":
        values = list(np.random.default_rng(seed).random(len(layers)))
    else:
        if not batches:
            raise InputError(
                f"Importance {importance!r} is measured on data, and there are no batches: give batches=, a list of "
                f"{'inputs' if importance == 'cka' else 'pairs of inputs and labels'}."
            )
        values = measured.SCORES[importance](traced, layers, batches, loss)
    scores = {layer.name: float(value) for layer, value in zip(layers, values, strict=True) if not math.isnan(value)}
    if not scores:
        why = "no removable layer has a batch norm" if importance == "bn_scale" else "every score is NaN"
        raise InputError(
            f"Importance {importance!r} gives no removable layer a score: {why}; use another, such as 'l1'."
        )
    return scores


def check_importance(importance: Importance) -> None:
    """Raise an ``InputError`` unless it is a function, or a name of the table above."""
    names = [*_FROM_WEIGHTS, "random", *measured.SCORES]
    if callable(importance) or importance in names:
        return
    near = get_close_matches(str(importance), names, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise InputError(
        f"There is no importance {importance!r} of layers.{hint} Use one of {', '.join(names)}, or a function."
    )


def bn_scale(traced: Traced, layer: Layer) -> float:
    """Return the mean absolute scale of the last batch norm in a layer, NaN where there is none.

    The channel criterion of network slimming (arXiv 1708.06519) taken over a whole branch: behind the last norm, what a
    residual branch adds is proportional to its scales. Reconstruction: how *Accelerate CNNs from
    Three Dimensions* (arXiv 2010.04879) ranks layers was not found.
    """
    scales = [weight for node in _nodes(traced, layer) if (weight := _scale_of(traced.module, node)) is not None]
    return float(scales[-1].detach().double().abs().mean()) if scales else math.nan


def l1(traced: Traced, layer: Layer) -> float:
    """Return the mean over a layer's matrices of their mean absolute weight times the root of their fan-in.

    The factor makes layers of different widths comparable: weights are initialised, and stay on the whole, in
    proportion to one over that root. [DESIGN]; where a layer has parameters but no matrix, the mean absolute parameter.
    """
    state = dict(traced.module.named_parameters())
    tensors = [state[name].detach().double() for name in layer.parameters]
    matrices = [tensor for tensor in tensors if tensor.ndim > 1]
    if matrices:
        return float(np.mean([float(w.abs().mean()) * math.sqrt(w.numel() / max(w.shape[0], 1)) for w in matrices]))
    return float(np.mean([float(tensor.abs().mean()) for tensor in tensors])) if tensors else math.nan


_FROM_WEIGHTS: dict[str, Callable[[Traced, Layer], float]] = {"l1": l1, "bn_scale": bn_scale}


def _nodes(traced: Traced, layer: Layer) -> list[fx.Node]:
    wanted = set(layer.nodes)
    return [node for node in traced.module.graph.nodes if node.name in wanted]


def _scale_of(module: fx.GraphModule, node: fx.Node) -> Tensor | None:
    if node.op != "call_module":
        return None
    called = module_of(module, node)
    return called.weight if isinstance(called, _NORMS) and called.affine else None


def _of_function(function: Callable[[Traced, Layers], Any], traced: Traced, layers: Layers) -> list[float]:
    """Return a user's scores, or say what is wrong with them."""
    found = function(traced, layers)
    name = getattr(function, "__name__", "the importance function")
    if isinstance(found, Tensor):
        found = found.detach().cpu()
    try:
        values = np.asarray(found, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"Importance {name} must return one number per layer: {error}.") from error
    if values.shape != (len(layers),):
        raise InputError(
            f"Importance {name} must return one number per layer, shape ({len(layers)},), and returned {values.shape}."
        )
    if np.isinf(values).any():
        raise InputError(f"Importance {name} returned infinite scores; use NaN for layers that stay.")
    return [float(value) for value in values]


__all__ = ["Importance", "Loss", "bn_scale", "check_importance", "l1", "score_layers"]
