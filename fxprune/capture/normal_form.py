"""The normal form of an exported program: nothing in place, nothing wrapped, calls of the model's own layers."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from fxprune.capture.functionalize import (
    functionalize,
    leave_out_state,
    notes_of_written_inputs,
    restore_vocabulary,
    spell_constants,
    spell_copies,
    writes_through_views,
)
from fxprune.capture.inline import casts, inline_wrappers
from fxprune.capture.lift import Lifter, module_path
from fxprune.capture.modules import location_of
from fxprune.capture.no_graph import first_line
from fxprune.errors import CaptureError, FxPruneError

_NOISE = {
    torch.ops.aten._assert_tensor_metadata.default,
    torch.ops.aten._assert_scalar.default,
    torch.ops.aten.sym_constrain_range_for_size.default,
}


@contextlib.contextmanager
def _rewriting(model: nn.Module) -> Iterator[None]:
    try:
        yield
    except FxPruneError:
        raise
    except Exception as error:  # torch raises many kinds on what it exports but cannot take apart
        raise CaptureError(
            f"{type(model).__name__} ({location_of(type(model))}) can be exported, but not rewritten as calls of its "
            f"layers: {first_line(error)}; capture its sub-modules one by one to find the one that does this"
        ) from error


def normalised(program: Any, model: nn.Module) -> tuple[fx.GraphModule, list[str]]:
    """Return the program's graph with nothing in place, nothing wrapped and no state; and notes of what that took.

    Every node knows the module that it came from (``meta["path"]``) and its line (``meta["source"]``).

    Raises:
        CaptureError: There is no such graph.
    """
    with _rewriting(model):
        module, notes = _functional_module(program)
        graph = module.graph
        for node in list(graph.nodes):
            noise = node.target in _NOISE or (node.op == "call_module" and str(node.target).startswith("_guards_fn"))
            if noise and not node.users:
                graph.erase_node(node)
        inline_wrappers(module)
        for node in graph.nodes:
            node.meta["path"] = module_path(node)
            node.meta["source"] = _source_of(node)
        notes += [*leave_out_state(graph), *notes_of_written_inputs(graph)]
        functionalize(graph)
        spell_copies(graph)
    return module, notes


def as_layers(model: nn.Module, module: fx.GraphModule) -> fx.GraphModule:
    """Return a normal form of the model's graph, which is used up, as calls of the model's layers.

    Raises:
        CaptureError: It holds parts of the model that it chooses or repeats while it runs.
    """
    with _rewriting(model):
        lifted = Lifter(model, module).run(type(model).__name__)
        for node in lifted.graph.nodes:
            kept = ("path", "source", "val", "nn_module_stack")
            node.meta = {key: node.meta[key] for key in kept if key in node.meta}
        lifted.graph.lint()
        lifted.recompile()
    return lifted


def _functional_module(program: Any) -> tuple[fx.GraphModule, list[str]]:
    module = program.module(check_guards=False)
    spell_constants(module.graph)
    autocast = casts(module)
    if not autocast and not writes_through_views(module.graph):
        return module, []
    module = program.run_decompositions({}).module(check_guards=False)
    restore_vocabulary(module.graph)
    what = "the model computes under autocast" if autocast else "the model writes through views"
    return module, [f"{what}: made functional by torch, which drops dropout layers from the graph"]


def _source_of(node: fx.Node) -> str:
    """Return ``file:line: code`` of the model's line that made this node."""
    stack = node.meta.get("stack_trace") or ""
    found = re.findall(r'File "([^"]+)", line (\d+), in \S+\s*\n?\s*([^\n]*)', stack)
    return f"{found[-1][0]}:{found[-1][1]}: {found[-1][2].strip()}" if found else ""
