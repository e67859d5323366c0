"""The captured model: one graph, its example inputs, and what may vary."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.capture.fitting import same_kind, same_sizes, sizes_of
from fxprune.capture.regions import Regions, first_size
from fxprune.errors import InputError


@dataclass(frozen=True, eq=False)
class Traced:
    """A captured model. Immutable by convention: whoever changes the graph works on a copy.

    Attributes:
        module: The graph, with module calls under the model's own names. Parameters are shared with the model it came
            from. Called by itself it does not check its inputs: of other sizes than :meth:`run` takes, it may compute
            with those of the example.
        args: Example inputs; tensors carry a batch of at least two where the batch is dynamic.
        kwargs: Example keyword inputs.
        dynamic_shapes: What may vary, in the form that ``torch.export`` takes; None for nothing.
        name: Class name of the model.
        notes: What could not be captured as asked, in plain words.
        regions: Which sub-modules the graph holds side by side, where the model has none as a whole. Their inputs are
            then the graph's, one after the other.
    """

    module: fx.GraphModule
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    dynamic_shapes: Any = None
    name: str = "Model"
    notes: tuple[str, ...] = ()
    regions: Regions | None = None

    @property
    def batch_is_dynamic(self) -> bool:
        """Whether dimension 0 of the inputs may have any size."""
        return self.dynamic_shapes is not None

    @property
    def batch(self) -> int:
        """The batch size of the example inputs (1 where the model takes no tensor with dimensions)."""
        return first_size(pytree.tree_leaves((self.args, self.kwargs)))

    @property
    def another_size(self) -> float | None:
        """A scale for images of a size that the example does not have; None where theirs is fixed, or differ."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        sizes = {
            tuple(x.shape[2:]) for x, dims in zip(leaves, self.open_dimensions(), strict=True) if 2 in dims or 3 in dims
        }
        return 1.5 if self.regions is None and len(sizes) == 1 else None

    def inputs(
        self, batch: int | None = None, seed: int = 0, *, scale: float | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return fresh random inputs of the example's shapes and dtypes.

        Floats are standard normal; integers and booleans are drawn from the values of the example, so that ids stay
        valid.

        Args:
            batch: Size of dimension 0; None keeps the example's. Ignored where the batch is static.
            seed: Seed of the random numbers.
            scale: Of the height and width of images; None keeps the example's. Ignored where these are fixed.
        """
        generator = torch.Generator().manual_seed(seed)

        def fresh(leaf: Any, own: int | None, dims: tuple[int, ...]) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            shape = list(leaf.shape) if batch is None or own is None else [batch, *leaf.shape[1:]]
            shape = [round(n * (scale or 1)) if d in dims and d > 1 else n for d, n in enumerate(shape)]
            return redrawn(leaf, shape, generator)

        leaves, nested = pytree.tree_flatten((self.args, self.kwargs))
        args, kwargs = pytree.tree_unflatten(map(fresh, leaves, self.batches(), self.open_dimensions()), nested)
        return args, kwargs

    def batches(self) -> list[int | None]:
        """Return for each input in flat order the batch that its example is part of; None where dimension 0 is fixed.

        It is the same for all of them, but for the regions of a model that was captured by region.
        """
        leaves = pytree.tree_leaves((tuple(self.args), self.kwargs))
        batches = [self.batch] * len(leaves) if self.regions is None else self.regions.batches(leaves)
        return [b if 0 in dims else None for dims, b in zip(self.open_dimensions(), batches, strict=True)]

    def open_dimensions(self) -> list[tuple[int, ...]]:
        """Return for each input in flat order which of its dimensions may have any size."""
        leaves, nested = pytree.tree_flatten((tuple(self.args), self.kwargs))
        if self.dynamic_shapes is None:
            return [()] * len(leaves)
        given = self.dynamic_shapes
        shapes = tuple(given.values()) if isinstance(given, dict) else tuple(given)
        named = dict(zip(self.kwargs, shapes[len(self.args) :], strict=True))
        specs = nested.flatten_up_to((shapes[: len(self.args)], named))
        return [tuple(_open_dimensions(leaf, spec)) for leaf, spec in zip(leaves, specs, strict=True)]

    def flat(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> list[Any]:
        """Return inputs in the order of the graph's placeholders, whatever the order of the keys that name them.

        Raises:
            InputError: They are nested in another way than the example inputs, or hold another number or string: the
                graph has those of the example in it.
        """
        examples, spec = pytree.tree_flatten((tuple(self.args), self.kwargs))
        try:
            leaves: list[Any] = spec.flatten_up_to((tuple(args), kwargs or {}))
        except ValueError as error:
            what = "the inputs of its regions" if self.regions else "inputs"
            raise InputError(f"{self.name} takes {what}, nested like its example inputs: {error}") from error
        for leaf, example in zip(leaves, examples, strict=True):
            if not isinstance(example, Tensor) and (isinstance(leaf, Tensor) or leaf != example):
                shown = "a tensor" if isinstance(leaf, Tensor) else repr(leaf)
                raise InputError(
                    f"{self.name} was captured with {example!r} where {shown} is given, and its graph computes with "
                    "that; give the same, or trace the model with the other"
                )
        return leaves

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> list[Tensor]:
        """Run the graph without gradients and return its tensor outputs, flattened in order.

        Raises:
            InputError: The inputs are nested in another way than the example inputs, have other sizes where the
                capture left none open, or another dtype (floats may be of any precision): the graph may hold a size or
                a cast of the example's, and would give other numbers.
        """
        leaves = self.flat(args, kwargs)
        self._check(leaves)
        with torch.no_grad():
            outputs = fx.Interpreter(self.module).run(*leaves, enable_io_processing=False)
        return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]

    def _check(self, leaves: list[Any]) -> None:
        examples = pytree.tree_leaves((tuple(self.args), self.kwargs))
        for leaf, example, dims in zip(leaves, examples, self.open_dimensions(), strict=True):
            if not isinstance(leaf, Tensor):
                continue
            if not same_kind(leaf, example):
                raise InputError(
                    f"{self.name} was captured for an input of {example.dtype}, and {leaf.dtype} is given; convert it, "
                    "or trace the model on inputs like these"
                )
            if not same_sizes(leaf, example, dims):
                raise InputError(
                    f"{self.name} was captured for an input of sizes {sizes_of(example, dims)}, and "
                    f"{list(leaf.shape)} is given; trace it on inputs like these, or with dynamic_size=True for images "
                    "of any size"
                )

    def with_module(self, module: fx.GraphModule) -> Traced:
        """Return the same capture around another graph."""
        return dataclasses.replace(self, module=module)

    def fingerprint(self) -> str:
        """Return a hash of the structure: operations, literals, and shapes of parameters, but not their values."""
        digest = hashlib.sha256()
        order: dict[fx.Node, int] = {}
        for node in self.module.graph.nodes:
            order[node] = len(order)
            operands = fx.node.map_arg((node.args, node.kwargs), lambda n: order[n])
            digest.update(repr((node.op, str(node.target), operands)).encode())
        for key, value in sorted(self.module.state_dict().items()):
            digest.update(repr((key, tuple(value.shape))).encode())
        return digest.hexdigest()

    def __str__(self) -> str:
        calls = sum(node.op.startswith("call") for node in self.module.graph.nodes)
        parameters = sum(parameter.numel() for parameter in self.module.parameters())
        batch = "dynamic batch" if self.batch_is_dynamic else f"static batch of {self.batch}"
        lines = [
            f"{self.name}: {calls} calls, {parameters:,} parameters, {batch}",
            *(f"  note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def redrawn(leaf: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return random values of a shape: floats standard normal, others drawn from those of ``leaf``, if it has any."""
    if leaf.is_floating_point() or leaf.is_complex():
        return torch.randn(shape, generator=generator, dtype=leaf.dtype).to(leaf.device)
    values = leaf.flatten().cpu()
    picks = torch.randint(max(values.numel(), 1), tuple(shape), generator=generator)
    return values[picks].to(leaf.device) if values.numel() else leaf


def _open_dimensions(leaf: Any, spec: Any) -> Iterator[int]:
    if isinstance(leaf, Tensor) and leaf.ndim and spec:
        for d, size in spec.items() if isinstance(spec, dict) else enumerate(spec):
            if size is not None and not isinstance(size, int) and size is not torch.export.Dim.STATIC:
                yield d
