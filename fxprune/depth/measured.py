"""Scores of layers that are measured on data: similarity, discrimination, and the loss to first order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.capture import Traced
from fxprune.capture.inputs import inputs_of
from fxprune.capture.propagate import flat_inputs
from fxprune.depth.layers import Layers
from fxprune.errors import FxPruneError, InputError
from fxprune.graph_tools import evaluating, module_of

aten = torch.ops.aten

Loss = Callable[[Any, Any], Tensor]
"""From the model's output (a list where there are several) and a batch's labels to one number."""

_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.MultiheadAttention)
_LAST_OPERATIONS = (aten.linear, aten.layer_norm, aten.rms_norm, aten.addmm)


# ---------------------------------------------------------------- similarity


def cka(traced: Traced, layers: Layers, batches: Sequence[Any], loss: Loss | None = None) -> list[float]:
    """Return 1 - linear CKA of the input and output of each layer, the mean over batches.

    CKA = HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)) over the samples of a batch, features flattened, centred (SGLP, arXiv
    2410.14720, its code [READ]). SGLP compares all layers with each other and chooses by gradient
    norms within segments; that a layer which changes little goes first is a reconstruction.
    """
    total = torch.zeros(len(layers), dtype=torch.float64)
    for values in _values(traced, layers, batches, "cka"):
        pairs = [(values[layer.source], values[layer.output]) for layer in layers]
        total += torch.tensor([1.0 - similarity(_gram(one), _gram(other)) for one, other in pairs])
    return [float(value) for value in total / len(batches)]


def similarity(one: Tensor, other: Tensor) -> float:
    """Return the linear CKA of two centred Gram matrices, (samples, samples) each; 0 where one of them is zero."""
    scale = float(one.norm() * other.norm())
    return float((one * other).sum()) / scale if scale else 0.0


def _gram(value: Tensor) -> Tensor:
    """Return the centred Gram matrix of the samples of a value: (samples, samples), float64."""
    if len(value) < 2:
        raise InputError("the similarity of features is taken over the samples of a batch, and a batch has only one")
    flat = value.flatten(1).double()
    flat = flat - flat.mean(0)
    return flat @ flat.T


def similarities(traced: Traced, layers: Layers, batches: Sequence[Any]) -> Tensor:
    """Return the CKA of the outputs of all layers with each other, the mean over batches: (layers, layers), float64."""
    total = torch.zeros(len(layers), len(layers), dtype=torch.float64)
    for values in _values(traced, layers, batches, "segments"):
        grams = [_gram(values[layer.output]) for layer in layers]
        total += torch.tensor([[similarity(a, b) for b in grams] for a in grams], dtype=torch.float64)
    return total / len(batches)


# ---------------------------------------------------------------- discrimination


def probe(traced: Traced, layers: Layers, batches: Sequence[Any], loss: Loss | None = None) -> list[float]:
    """Return by how much each layer raises the accuracy of a linear probe: behind it, less in front of it.

    The discrimination of DBP (arXiv 1912.10178: blocks whose features a linear classifier tells apart little better go
    [ABS]). How the paper trains its classifiers was not read. Here features are pooled over all places, the probe is a
    ridge regression on one-hot labels in closed form, fitted on all but each fourth sample of a class, and its
    accuracy is that on these.
    """
    layout = channel_dims(traced, layers)
    features: dict[str, list[Tensor]] = {}
    labels: list[Tensor] = []
    for number, values in enumerate(_values(traced, layers, batches, "probe")):
        for name, dim in layout.items():
            features.setdefault(name, []).append(_pooled(values[name], dim))
        labels.append(_classes(batches[number], number))
    classes = torch.cat(labels)
    if any(len(parts) and sum(map(len, parts)) != len(classes) for parts in features.values()):
        raise InputError("importance 'probe' needs a label for each sample: the batches have more or fewer labels")
    accuracy = {name: probe_accuracy(torch.cat(parts), classes) for name, parts in features.items()}
    return [accuracy[layer.output] - accuracy[layer.source] for layer in layers]


def probe_accuracy(features: Tensor, classes: Tensor, ridge: float = 1e-3) -> float:
    """Return the accuracy of a linear classifier on every fourth sample of each class, fitted on the others.

    Args:
        features: (samples, features).
        classes: (samples,), whole numbers.
        ridge: Weight of the penalty, for features of unit variance.
    """
    names, targets = torch.unique(classes, return_inverse=True)
    member = torch.nn.functional.one_hot(targets, len(names))
    held = (member.cumsum(0) * member).sum(1) % 4 == 0
    if int(held.sum()) < 2 or len(names) < 2:
        raise InputError(
            f"importance 'probe' needs at least 4 samples of each of two classes or more, and the batches have "
            f"{len(classes)} of {len(names)}"
        )
    features = features.double()
    mean, spread = features[~held].mean(0), features[~held].std(0)
    features = (features - mean) / torch.where(spread > 1e-12, spread, 1.0)
    features = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], 1)
    wanted = member.double()
    seen = features[~held]
    penalty = ridge * len(seen) * torch.eye(features.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(seen.T @ seen + penalty, seen.T @ wanted[~held])
    return float(((features[held] @ weight).argmax(1) == targets[held]).double().mean())


def channel_dims(traced: Traced, layers: Layers) -> dict[str, int]:
    """Return the channel dimension of the input and output of each layer.

    It is the last one where the first layer that reads the input works on the last (a linear layer, a layer norm), or
    where there are two dimensions; else the second.
    """
    nodes = {node.name: node for node in traced.module.graph.nodes}
    found: dict[str, int] = {}
    for layer in layers:
        inside = set(layer.nodes)
        dim = 1
        for reader in (nodes[name] for name in layer.nodes):
            sources = [source.name for source in reader.all_input_nodes]
            if layer.source in sources or not inside.isdisjoint(sources):
                called = module_of(traced.module, reader) if reader.op == "call_module" else None
                last = isinstance(called, _CHANNELS_LAST)
                if last or getattr(reader.target, "overloadpacket", None) in _LAST_OPERATIONS:
                    dim = -1
                if called is not None or dim == -1:
                    break
        found.setdefault(layer.source, dim)
        found[layer.output] = dim
    return found


def _pooled(value: Tensor, dim: int) -> Tensor:
    """Return the mean over all dimensions but the samples and the channels: (samples, channels)."""
    if value.ndim < 2:
        raise InputError("importance 'probe' needs features with channels, and a layer gives one number per sample")
    value = value.movedim(dim, 1)
    return value.flatten(2).mean(2) if value.ndim > 2 else value


def _classes(batch: Any, number: int) -> Tensor:
    labels = _labels(batch, number, "probe")
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.ndim != 1:
        raise InputError(
            f"importance 'probe' needs a class for each sample, and the labels of batch {number + 1} are not"
        )
    return labels.cpu()


# ---------------------------------------------------------------- the loss, to first order


def taylor(traced: Traced, layers: Layers, batches: Sequence[Any], loss: Loss | None = None) -> list[float]:
    """Return for each layer the squared first-order change of the loss when what it adds goes, the mean over batches.

    With ``t`` what a branch adds to its sum (of a sequence or block: its output less its input) and ``g`` the gradient
    of the loss with respect to that sum, the change is the sum of ``g t``: the gradient of a factor of 1 on ``t``.
    First-order Taylor importance (arXiv 1906.10771), of a whole layer in place of a filter. Reconstruction.
    """
    total = torch.zeros(len(layers), dtype=torch.float64)
    loss = loss or nn.functional.cross_entropy
    for number, batch in enumerate(batches):
        gated = _Gated(traced.module, layers)
        labels = _labels(batch, number, "taylor")
        with evaluating(traced.module), torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(0)
            outputs = _run(gated, traced, batch, f"batch {number + 1} for importance 'taylor'")
            value = loss(outputs, labels)
        if not isinstance(value, Tensor) or value.numel() != 1 or not bool(value.isfinite().all()):
            raise InputError(f"the loss of batch {number + 1} for importance 'taylor' is no single finite number")
        gates = [gated.gates[layer.name] for layer in layers]
        grads = torch.autograd.grad(value, gates, allow_unused=True)
        changes = [0.0 if grad is None else float(grad) for grad in grads]
        total += torch.tensor(changes, dtype=torch.float64) ** 2
    return [float(each) for each in total / len(batches)]


class _Gated(fx.Interpreter):
    """Runs a graph with a factor of 1 on what each layer adds."""

    def __init__(self, module: fx.GraphModule, layers: Layers) -> None:
        super().__init__(module)
        self.garbage_collect_values = False
        self.gates = {layer.name: torch.ones((), requires_grad=True) for layer in layers}
        self.sums = {(layer.output, layer.summand): layer.name for layer in layers if layer.kind == "branch"}
        self.passing = {layer.output: layer for layer in layers if layer.kind != "branch"}
        self.named = {node.name: node for node in module.graph.nodes}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, with the factors that belong to it."""
        gates = [self.sums.get((n.name, source.name)) for source in n.args if isinstance(source, fx.Node)]
        if any(gates):
            operands = [self.env[source] for source in n.all_input_nodes]
            one, other = (
                value if gate is None else value * self.gates[gate].to(value)
                for value, gate in zip(operands, gates, strict=True)
            )
            value = one + other
        else:
            value = super().run_node(n)
        if n.name in self.passing:
            layer = self.passing[n.name]
            source = self.env[self.named[layer.source]]
            value = source + self.gates[layer.name].to(value) * (value - source)
        return value


# ---------------------------------------------------------------- running


class _Watching(fx.Interpreter):
    """Runs a graph and keeps the values of some nodes."""

    def __init__(self, module: fx.GraphModule, names: Iterable[str]) -> None:
        super().__init__(module)
        self.names, self.values = set(names), dict[str, Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, and keep its value where it is wanted."""
        value = super().run_node(n)
        if n.name in self.names:
            self.values[n.name] = value
        return value


def _values(traced: Traced, layers: Layers, batches: Sequence[Any], what: str) -> Iterable[dict[str, Tensor]]:
    """Yield for each batch the inputs and outputs of all layers, samples first."""
    names = {name for layer in layers for name in (layer.source, layer.output)}
    for number, batch in enumerate(batches, 1):
        watching = _Watching(traced.module, names)
        with evaluating(traced.module), torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            _run(watching, traced, batch, f"batch {number} for importance {what!r}")
        for name, value in watching.values.items():
            if not bool(value.isfinite().all()):
                raise InputError(f"{name} is not finite on batch {number} for importance {what!r}")
        yield watching.values


def _run(interpreter: fx.Interpreter, traced: Traced, batch: Any, what: str) -> Any:
    """Run on a batch; return its output, or a list of those where there are several."""
    args, kwargs = inputs_of(traced, batch, what)
    try:
        outputs = interpreter.run(*flat_inputs(args, kwargs), enable_io_processing=False)
    except FxPruneError:
        raise
    except Exception as error:  # a graph raises whatever its operations raise on values that do not fit
        raise InputError(f"the model does not run on {what}: {' '.join(str(error).split())[:300]}") from error
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return leaves[0] if len(leaves) == 1 else leaves


def _labels(batch: Any, number: int, what: str) -> Any:
    if isinstance(batch, dict):
        found = batch.get("labels", batch.get("label"))
    else:
        found = batch[1] if isinstance(batch, (tuple, list)) and len(batch) == 2 else None
    if found is None:
        raise InputError(f"importance {what!r} needs labels, and batch {number + 1} is no pair of inputs and labels")
    return found


SCORES: dict[str, Callable[[Traced, Layers, Sequence[Any], Loss | None], list[float]]] = {
    "cka": cka,
    "probe": probe,
    "taylor": taylor,
}
