"""Estimate the running statistics of batch norms anew.

Pruning, and whatever else changes what flows through a network, leaves batch norms with the means and variances of the
old values. Estimated again on a few batches of training data they fit, without any training. The idea is the "adaptive
batch normalization" of EagleEye (arXiv 2007.02491), which compares pruned networks only after it; the paper's own
settings were not read, and what is here is torch's way of counting batches with ``momentum=None``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxprune.capture import Traced
from fxprune.capture.inputs import inputs_of
from fxprune.capture.propagate import flat_inputs
from fxprune.errors import FxPruneError, InputError
from fxprune.graph_tools import assign, evaluating, module_of, place_of, tensor_uses, why_hooked
from fxprune.pipeline import Keeps, Pass
from fxprune.report import Change, Skip

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class CalibrateBatchNorm(Pass):
    """Estimate the running statistics of batch norms anew, on given batches.

    This is what resetting them and running in training mode with ``momentum=None`` gives: each norm normalises by the
    batch that it sees, and its statistics become the mean over the batches of the batch's mean and unbiased variance,
    all batches alike (leave out a smaller last one). All else is in eval mode meanwhile, dropout off. No weight
    changes, and neither do modes. Statistics are computed in float64 from values in the model's own precision, and
    random numbers that the graph draws are the same in each run: the same data give the same statistics.

    It belongs behind ``PruneChannels`` and in front of ``FuseBatchNorm``, which folds the statistics into weights.

    Attributes:
        batches: A loader or list of batches: an input, a tuple of all positional inputs, a dictionary of inputs by
            name, or a pair of one of these and a target (see :func:`fxprune.capture.inputs.inputs_of`). An iterator
            serves one run, and is used up by it.
        max_batches: Take the first so many batches; None for all.

    Raises:
        InputError: There are no batches, one does not fit the model, gives a norm a single value per channel, or gives
            it values that are not finite. The model is as it was then.
    """

    name: ClassVar[str] = "calibrate-batchnorm"
    keeps: ClassVar[Keeps] = Keeps.SIGNATURE

    batches: Iterable[Any] = field(repr=False, compare=False)
    max_batches: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.batches, Tensor | Mapping | str) or not isinstance(self.batches, Iterable):
            raise InputError(
                f"{self.name}: batches is a {type(self.batches).__name__}; give a loader or a list of batches ([batch] "
                "for a single one)"
            )
        most = self.max_batches
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise InputError(
                f"{self.name}: max_batches is {most!r}; give a whole number of at least 1, or None for all"
            )

    def rewrite(self, traced: Traced) -> Iterator[Change | Skip]:
        """Run all batches, then give each norm that keeps statistics those of the batches."""
        module = traced.module
        norms, skips = _norms(module)
        found = self._statistics(traced, norms) if norms else {}
        for layer, statistics in found.items():
            said = _update(layer, statistics)
            place = norms[layer]
            yield Change(place, said) if said else Skip(place, "its statistics are those of these batches already")
        yield from skips

    def _statistics(self, traced: Traced, norms: dict[nn.Module, str]) -> dict[nn.Module, _Statistics]:
        """Run the graph on all batches; return what the norms saw, in the order of ``norms``."""
        watcher, number = _Watcher(traced.module, norms), 0
        devices = sorted({leaf.device.index or 0 for leaf in traced.module.parameters() if leaf.is_cuda})
        with torch.no_grad(), evaluating(traced.module), torch.random.fork_rng(devices):
            torch.manual_seed(0)
            for number, batch in enumerate(itertools.islice(self.batches, self.max_batches), 1):
                what = f"batch {number} of the calibration data"
                args, kwargs = inputs_of(traced, batch, f"{self.name}: {what}")
                try:
                    watcher.run(*flat_inputs(args, kwargs), enable_io_processing=False)
                except FxPruneError as error:
                    raise type(error)(f"{self.name}: {what} {error}") from error
                except Exception as error:  # a graph raises whatever its operations raise on values that do not fit
                    said = " ".join(str(error).split())[:300]
                    raise InputError(f"{self.name}: the model does not run on {what}: {said}") from error
        if not number:
            raise InputError(
                f"{self.name}: there are no batches: the data are empty, or an iterator that was used up by an earlier "
                "run; give a loader or a list"
            )
        return {layer: watcher.seen[layer] for layer in norms}


@dataclass
class _Statistics:
    """Sums over batches of means and variances, each (channels,) in float64."""

    mean: Tensor
    variance: Tensor
    batches: int = 1

    def add(self, other: _Statistics) -> None:
        self.mean, self.variance = self.mean + other.mean, self.variance + other.variance
        self.batches += other.batches


class _Watcher(fx.Interpreter):
    """Runs a graph with some norms in training mode, so to speak: they see the batch, but write nothing."""

    def __init__(self, module: fx.GraphModule, norms: dict[nn.Module, str]) -> None:
        super().__init__(module)
        self.extra_traceback = False  # it would turn the messages of errors into many lines
        self.norms = norms
        self.seen: dict[nn.Module, _Statistics] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Normalise by the batch and note its statistics."""
        layer = self.fetch_attr(target)
        if layer not in self.norms:
            return super().call_module(target, args, kwargs)
        (value,) = args
        found = _statistics_of(value, self.norms[layer])
        if layer in self.seen:
            self.seen[layer].add(found)
        else:
            self.seen[layer] = found
        return F.batch_norm(value, None, None, layer.weight, layer.bias, training=True, eps=layer.eps)


def _statistics_of(value: Tensor, place: str) -> _Statistics:
    count = value.numel() // max(value.shape[1], 1)
    if count < 2:
        raise InputError(
            f"gives {place} {count} value{'s' * (count != 1)} per channel, and a variance takes two: give larger "
            "batches"
        )
    variance, mean = torch.var_mean(value.double(), [dim for dim in range(value.ndim) if dim != 1])
    if not (mean.isfinite().all() and variance.isfinite().all()):
        raise InputError(f"gives {place} values that are not finite: look at the data, or at what comes before it")
    return _Statistics(mean, variance)


# ---------------------------------------------------------------- which norms, and what they get


def _norms(module: fx.GraphModule) -> tuple[dict[nn.Module, str], list[Skip]]:
    """Return the norms whose statistics can be estimated anew with their places, and all others with a reason."""
    norms, skips = dict[nn.Module, str](), []
    uses = tensor_uses(module)
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target is torch.ops.aten.batch_norm.default:
            skips.append(Skip(place_of(node), "it is no module of its own: its weights or statistics are computed"))
        layer = module_of(module, node) if node.op == "call_module" else None
        if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
            continue
        reason = _why_not(module, layer, uses)
        if not reason:
            norms.setdefault(layer, place_of(node))  # one that is called again sees more, under its first name
        else:
            skips.append(Skip(place_of(node), reason))
    return norms, skips


def _why_not(module: fx.GraphModule, layer: Any, uses: dict[int, list[str]]) -> str:
    if type(layer) not in _NORMS:
        return f"it is a {type(layer).__name__}, which may do more than {_NORMS[1].__name__}"
    if layer.running_mean is None or layer.running_var is None:
        return "it has no running statistics, and normalises by the batch that it sees"
    if hooked := why_hooked(layer):
        return hooked
    paths = [path for path, child in module.named_modules(remove_duplicate=False) if child is layer]
    own = {f"{path}.{name}" for path in paths for name in layer._buffers}
    others = {use for name in ("running_mean", "running_var") for use in uses[id(getattr(layer, name))]} - own
    return f"{', '.join(sorted(others))} has or reads the same statistics" if others else ""


def _update(layer: Any, found: _Statistics) -> str:
    """Give a norm new statistics; return in words by how much they moved, empty if they did not."""
    new = {"running_mean": found.mean / found.batches, "running_var": found.variance / found.batches}
    if layer.num_batches_tracked is not None:
        new["num_batches_tracked"] = torch.full_like(layer.num_batches_tracked, found.batches)
    old = {name: getattr(layer, name) for name in new}
    if all(torch.equal(value.to(old[name].dtype), old[name]) for name, value in new.items()):
        return ""
    spread = (old["running_var"].double() + layer.eps).sqrt()
    moved = float(((new["running_mean"] - old["running_mean"]).abs() / spread).max())
    ratio = (new["running_var"] + layer.eps) / (old["running_var"].double() + layer.eps)
    for name, value in new.items():
        assign(layer, name, value)
    return (
        f"statistics of {found.batches} batches: means moved by at most {moved:.3g} of the old standard deviations, "
        f"variances are {float(ratio.min()):.3g} to {float(ratio.max()):.3g} times the old ones"
    )
