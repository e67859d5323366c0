"""An exported program of a module: the inputs that it is exported with, and the ladder that leads to it."""

from __future__ import annotations

import contextlib
import inspect
import io
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from fxprune.capture.no_graph import explain, first_line
from fxprune.capture.untouched import Warmed, apart, running, warm

# ---------------------------------------------------------------- inputs


def at_least_two(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Repeat a batch of one to two in every tensor, where all of them share that batch."""
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim]
    if not leaves or any(leaf.shape[0] != 1 for leaf in leaves):
        return args, kwargs

    def twice(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.ndim:
            return leaf
        second = torch.randn_like(leaf) if leaf.is_floating_point() else leaf
        return torch.cat([leaf, second])

    doubled: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(twice, (args, kwargs))
    return doubled


def open_shapes(args: tuple[Any, ...], kwargs: dict[str, Any], *, size: bool = False) -> Any:
    """Return what ``torch.export`` takes to leave batches (dimension 0) open, and the height and width of images."""

    def shape(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.ndim:
            return None
        return dict.fromkeys([0, 2, 3] if size and is_images(leaf) else [0], torch.export.Dim.AUTO)

    return in_order(pytree.tree_map(shape, (args, kwargs)))


def is_images(leaf: Any) -> bool:
    """Whether an input is a batch of images: floats of batch x channels x height x width."""
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim == 4


def in_order(shapes: Any) -> Any:
    """Return (shapes of positional inputs, shapes of keyword inputs) as ``torch.export`` takes them."""
    return tuple(shapes[0]) if not shapes[1] else (*shapes[0], *shapes[1].values())


@contextlib.contextmanager
def quiet_eval(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode without the attention fast path (which hides operations); put all back afterwards."""
    modes = {module: module.training for module in model.modules()}
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module, mode in modes.items():
            module.training = mode


# ---------------------------------------------------------------- the ladder


def export_program(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any
) -> tuple[Any, Any, Warmed]:
    """Try the ladder: dynamic export, static export, export of the symbolic trace.

    Returns:
        (program, dynamic shapes or None where it is static, notes and what the model itself returned).

    Raises:
        CaptureError: None of them leads to a program.
        InputError: The model does not run on these inputs.
    """
    before = warm(model, args, kwargs)
    notes = before.notes
    problem: Exception | None = None
    if shapes is not None:
        try:
            program = _export(model, args, kwargs, shapes)
            if any(0 in dims for dims in open_dimensions(program)):
                shapes, more = _really_open(program, args, kwargs, shapes)
                notes += more
                return program, shapes, before
            notes.append(f"the batch is static at {_batch_of(args, kwargs)}: {_why_static(args, kwargs)}")
            return program, None, before
        except Exception as error:  # torch.export raises many kinds; each is reported below
            problem = error
    if not _depends_on_values(problem):  # a fixed batch settles sizes, and no values
        try:
            program = _export(model, args, kwargs, None)
            if problem is not None:
                notes.append(f"the batch is static at {_batch_of(args, kwargs)}: {first_line(problem)}")
            return program, None, before
        except Exception as error:
            problem = error
    try:
        with running(model):  # with its own tensors, which it may write into
            symbolic = fx.symbolic_trace(model)
        program = _export(symbolic, args, kwargs, None)
        notes.append(
            f"captured through torch.fx.symbolic_trace with a static batch: torch.export says {first_line(problem)}"
        )
        return program, None, before
    except Exception:
        raise explain(model, args, kwargs, problem) from problem


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> Any:
    """Export without what torch prints before it raises: the whole graph as far as it got."""
    args, kwargs = distinct(args, kwargs)
    shapes = _by_parameter(model, args, kwargs, shapes)
    swallowed = io.StringIO()
    swallowed.rich_proxied_file = getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # type: ignore[attr-defined]
    with contextlib.redirect_stderr(swallowed):
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)


def distinct(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return inputs with a copy of each tensor that is given again: an exporter takes one for the other ever after.

    So are objects that hold state, which a forward may change.
    """
    seen: set[int] = set()

    def own(leaf: Any) -> Any:
        again = isinstance(leaf, Tensor) and id(leaf) in seen
        seen.add(id(leaf))
        return leaf.clone() if again else apart(leaf)

    copied: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(own, (args, kwargs))
    return copied


def _by_parameter(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> Any:
    """Return the shapes under the names of the parameters of ``forward`` that take the inputs.

    ``torch.export`` wants what ``*args`` and ``**kwargs`` take in containers of their own, and the rest in the order of
    the signature, which may not be that of the call.
    """
    if shapes is None:
        return None
    try:
        signature = inspect.signature(model.forward)
        return dict(
            signature.bind(*shapes[: len(args)], **dict(zip(kwargs, shapes[len(args) :], strict=True))).arguments
        )
    except (TypeError, ValueError):  # no signature, or one that does not fit: the model says more when it runs
        return shapes


def _depends_on_values(problem: Exception | None) -> bool:
    return type(problem).__name__ == "GuardOnDataDependentSymNode"


def _batch_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    return next((int(x.shape[0]) for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.ndim), 0)


def _why_static(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Return why an exporter left no batch open that it was asked to."""
    alone = _batch_of(args, kwargs) == 1 and at_least_two(args, kwargs)[1] is kwargs
    if alone:
        return "a size of one cannot be left open, and not all inputs have it; give two samples"
    return "the model's code fixes it"


def _really_open(program: Any, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> tuple[Any, list[str]]:
    """Return the open dimensions without the heights and widths that the model's code fixes, and notes of these."""
    given = iter(open_dimensions(program))
    notes: list[str] = []

    def keep(leaf: Any) -> Any:
        opened = next(given)
        if not isinstance(leaf, Tensor) or not leaf.ndim:
            return None
        asked = [0, 2, 3] if is_images(leaf) else [0]
        found = [d for d in asked if d in opened]
        for d, name in ((2, "height"), (3, "width")):
            if d in asked and d not in found and _asks(shapes, d):
                notes.append(f"the {name} of images is fixed at {leaf.shape[d]}: the model's code fixes it")
        return dict.fromkeys(found, torch.export.Dim.AUTO)

    if not (_asks(shapes, 2) or _asks(shapes, 3)):
        return shapes, notes
    return in_order(pytree.tree_map(keep, (args, kwargs))), notes


def _asks(shapes: Any, dimension: int) -> bool:
    """Whether some input is asked to be open in a dimension."""
    if isinstance(shapes, dict):
        return dimension in shapes or any(_asks(part, dimension) for part in shapes.values())
    return isinstance(shapes, (tuple, list)) and any(_asks(part, dimension) for part in shapes)


def open_dimensions(program: Any) -> tuple[tuple[int, ...], ...]:
    """Return for each input of an exported program, in flat order, the dimensions that may have any size."""
    return tuple(tuple(d for d, size in enumerate(shape) if is_open(size)) for shape in _shapes(program))


def batch_symbols(program: Any) -> tuple[frozenset[Any], ...]:
    """Return for each input of an exported program which symbols its dimension 0 depends on, none where it is fixed.

    Inputs that share none have sizes that the program holds for independent of each other.
    """
    firsts: list[Any] = [next(iter(shape), None) for shape in _shapes(program)]
    return tuple(frozenset(size.node.expr.free_symbols if is_open(size) else ()) for size in firsts)


def _shapes(program: Any) -> list[Any]:
    pairs = zip(program.graph.find_nodes(op="placeholder"), program.graph_signature.input_specs, strict=True)
    values = [node.meta.get("val") for node, spec in pairs if spec.kind is InputKind.USER_INPUT]
    return [value.shape if isinstance(value, Tensor) else () for value in values]


def numbers_in_guards(program: Any) -> set[int]:
    """Return the whole numbers that an exported program compares its open sizes with: the 4 of ``s > 4``."""
    values = [node.meta.get("val") for node in program.graph.find_nodes(op="placeholder")]
    sizes: list[Any] = [n for value in values if isinstance(value, Tensor) for n in value.shape if is_open(n)]
    guards = sizes[0].node.shape_env.guards if sizes else ()
    return {int(atom) for guard in guards for atom in guard.expr.atoms() if atom.is_Integer}


def is_open(size: Any) -> bool:
    """Whether a size in an exported program may vary; one that the model's code fixed may still be a symbol's value."""
    return isinstance(size, torch.SymInt) and not size.node.expr.is_number
