"""``trace``: capture any module as one graph of calls to its own layers."""

from __future__ import annotations

import contextlib
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.functionalize import (
    functionalize,
    leave_out_state,
    restore_vocabulary,
    spell_copies,
    writes_through_views,
)
from fxprune.capture.inline import inline_wrappers
from fxprune.capture.lift import Lifter, module_path
from fxprune.capture.modules import location_of
from fxprune.capture.propagate import KEY, propagate
from fxprune.capture.scaled import sizes_from_symbols
from fxprune.capture.traced import Traced
from fxprune.errors import CaptureError, FxPruneError, InputError

_NOISE = {
    torch.ops.aten._assert_tensor_metadata.default,
    torch.ops.aten._assert_scalar.default,
    torch.ops.aten.sym_constrain_range_for_size.default,
}


def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_batch: bool = True,
) -> Traced:
    """Capture ``model`` as one ``torch.fx`` graph that calls its layers by their own names.

    The graph is captured in eval mode by ``torch.export`` with a dynamic batch (dimension 0 of every input), and lifted
    back to module calls. It shares its parameters with ``model``; the model itself is left as it was.

    Args:
        model: The module to capture.
        example_inputs: One tensor, or a tuple of inputs. A batch of one is repeated to two, because a size of one
            cannot be made dynamic.
        kwargs: Keyword inputs.
        dynamic_batch: Whether dimension 0 may vary afterwards; where it cannot, the capture is static and says so in
            ``notes``.

    Raises:
        CaptureError: The model cannot be captured; the message names the module and the source line.
        InputError: ``model`` is not a module, or it does not run on the inputs.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"trace takes a torch.nn.Module, and got {type(model).__name__}; if it is a factory, call it first"
        )
    args = tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
    named = dict(kwargs or {})
    if dynamic_batch:
        args, named = _at_least_two(args, named)
    with _quiet_eval(model):
        exported, shapes, notes = _capture(model, args, named, dynamic_batch)
        module, more = _rewritten(model, exported)
        scaled = sizes_from_symbols(module, args, named) if shapes is not None else {}
        propagate(module, args, named)
        for node, sizes in scaled.items():
            node.meta[KEY] = sizes
    return Traced(module, args, named, shapes, type(model).__name__, (*notes, *more))


def _at_least_two(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
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


@contextlib.contextmanager
def _quiet_eval(model: nn.Module) -> Iterator[None]:
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


def _dynamic_shapes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    def batch(leaf: Any) -> Any:
        return {0: torch.export.Dim.AUTO} if isinstance(leaf, Tensor) and leaf.ndim else None

    shapes = pytree.tree_map(batch, (args, kwargs))
    return tuple(shapes[0]) if not kwargs else (*shapes[0], *shapes[1].values())


def _capture(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: bool
) -> tuple[Any, Any, list[str]]:
    """Try the ladder: dynamic export, static export, export of the symbolic trace.

    Returns (program, dynamic shapes or None, notes).
    """
    notes: list[str] = []
    problem: Exception | None = None
    if dynamic:
        try:
            shapes = _dynamic_shapes(args, kwargs)
            program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
            if _batch_is_symbolic(program):
                return program, shapes, notes
            notes.append(f"the batch is static at {_batch_of(args, kwargs)}: the model's code fixes it")
            return program, None, notes
        except Exception as error:  # torch.export raises many kinds; each is reported below
            problem = error
    try:
        program = torch.export.export(model, args, kwargs, strict=False)
        if problem is not None:
            notes.append(f"the batch is static at {_batch_of(args, kwargs)}: {_first_line(problem)}")
        return program, None, notes
    except Exception as error:
        problem = error
    try:
        program = torch.export.export(fx.symbolic_trace(model), args, kwargs, strict=False)
        notes.append(
            f"captured through torch.fx.symbolic_trace with a static batch: torch.export says {_first_line(problem)}"
        )
        return program, None, notes
    except Exception:
        raise _explain(model, args, kwargs, problem) from problem


def _batch_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    return next((int(x.shape[0]) for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.ndim), 0)


def _batch_is_symbolic(program: Any) -> bool:
    users = set(program.graph_signature.user_inputs)
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in users]
    return any(isinstance(v, Tensor) and v.ndim and isinstance(v.shape[0], torch.SymInt) for v in values)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _explain(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], problem: Exception) -> Exception:
    """Tell a model that does not run at all from one that runs and cannot be captured."""
    name = f"{type(model).__name__} ({location_of(type(model))})"
    shapes = ", ".join(
        f"{tuple(x.shape)} {x.dtype}" for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)
    )
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception as error:
        line = _source_line(error)
        return InputError(
            f"{name} does not run on inputs {shapes}: {_first_line(error)}, at {line}; "
            "give inputs of the shape and dtype it was made for"
        )
    return CaptureError(
        f"{name} runs but cannot be captured as one graph: {_first_line(problem)}, at {_source_line(problem)}; "
        "make that line free of decisions that depend on the values of tensors, or capture the sub-module without it"
    )


def _source_line(error: BaseException) -> str:
    """Return the innermost place outside torch that an error passed through."""
    chain: BaseException | None = error
    while chain is not None:
        frames = traceback.extract_tb(chain.__traceback__)
        outside = [f for f in frames if "/torch/" not in f.filename and "/fxprune/" not in f.filename]
        if outside:
            return f"{outside[-1].filename}:{outside[-1].lineno}: {outside[-1].line}"
        chain = chain.__cause__ or chain.__context__
    found = re.search(r'File "([^"]+)", line (\d+)', str(error))
    return f"{found[1]}:{found[2]}" if found else "an unknown line"


def _functional_module(program: Any) -> tuple[fx.GraphModule, list[str]]:
    module = program.module(check_guards=False)
    if not writes_through_views(module.graph):
        return module, []
    module = program.run_decompositions({}).module(check_guards=False)
    restore_vocabulary(module.graph)
    return module, [
        "the model writes through views: made functional by torch, which drops dropout layers from the graph"
    ]


def _rewritten(model: nn.Module, program: Any) -> tuple[fx.GraphModule, list[str]]:
    try:
        return _lift(model, program)
    except FxPruneError:
        raise
    except Exception as error:  # torch raises many kinds on what it exports but cannot take apart
        raise CaptureError(
            f"{type(model).__name__} ({location_of(type(model))}) can be exported, but not rewritten as calls of its "
            f"layers: {_first_line(error)}; capture its sub-modules one by one to find the one that does this"
        ) from error


def _lift(model: nn.Module, program: Any) -> tuple[fx.GraphModule, list[str]]:
    module, notes = _functional_module(program)
    graph = module.graph
    for node in list(graph.nodes):
        noise = node.target in _NOISE or (node.op == "call_module" and str(node.target).startswith("_guards_fn"))
        if noise and not node.users:
            graph.erase_node(node)
    notes += inline_wrappers(module)
    for node in graph.nodes:
        node.meta["path"] = module_path(node)
        node.meta["source"] = _source_of(node)
    notes += leave_out_state(graph)
    functionalize(graph)
    spell_copies(graph)
    lifted = Lifter(model, module).run(type(model).__name__)
    for node in lifted.graph.nodes:
        node.meta = {key: node.meta[key] for key in ("path", "source", "val", "nn_module_stack") if key in node.meta}
    lifted.graph.lint()
    lifted.recompile()
    return lifted, notes


def _source_of(node: fx.Node) -> str:
    """Return ``file:line: code`` of the model's line that made this node."""
    stack = node.meta.get("stack_trace") or ""
    found = re.findall(r'File "([^"]+)", line (\d+), in \S+\s*\n?\s*([^\n]*)', stack)
    return f"{found[-1][0]}:{found[-1][1]}: {found[-1][2].strip()}" if found else ""
