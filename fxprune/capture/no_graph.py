"""Why a module has no graph: what torch said of it, and the line of the model that it said it of."""

from __future__ import annotations

import re
import traceback
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.capture.modules import location_of
from fxprune.capture.untouched import copied, running
from fxprune.errors import CaptureError, FxPruneError, InputError


def reason_of(error: FxPruneError) -> str:
    """Return why a module has no graph: what torch said and the line, or else what the refusal says."""
    return error.why if isinstance(error, _NoGraph) else first_line(error)


def first_line(error: BaseException | None) -> str:
    """Return the first line of what an error says, or its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def explain(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], problem: Exception | None) -> Exception:
    """Tell a model that does not run at all from one that runs and cannot be captured."""
    name = f"{type(model).__name__} ({location_of(type(model))})"
    shapes = ", ".join(
        f"{tuple(x.shape)} {x.dtype}" for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)
    )
    try:
        with running(model):
            given = pytree.tree_map(copied, (args, kwargs))
            model(*given[0], **given[1])
    except Exception as error:
        return InputError(
            f"{name} does not run on inputs {shapes}: {first_line(error)}{_at(error)}; {_remedy(model, args, kwargs)}"
        )
    return _NoGraph(name, f"{first_line(problem)}{_at(problem)}")


def _remedy(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Say what inputs to give; where they are on another device than the model, which."""
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    theirs = sorted({str(leaf.device) for leaf in leaves})
    own = sorted({str(tensor.device) for tensor in [*model.parameters(), *model.buffers()]})
    if own and theirs and own != theirs:
        return f"the model is on {', '.join(own)} and its inputs on {', '.join(theirs)}: bring both to one device"
    return "give inputs of the shape and dtype it was made for"


class _NoGraph(CaptureError):
    """A model runs, and torch has no program of it."""

    def __init__(self, name: str, why: str) -> None:
        self.why = why
        super().__init__(
            f"{name} runs but cannot be captured as one graph: {why}; make that line free of decisions that depend on "
            "the values of tensors, or capture the sub-module without it"
        )


def _at(error: BaseException | None) -> str:
    """Return ``, at file:line``, the innermost place outside torch that an error passed through, or "" for none."""
    chain = error
    while chain is not None:
        place = innermost(traceback.extract_tb(chain.__traceback__))
        if place:
            return f", at {place}"
        chain = chain.__cause__ or chain.__context__
    found = re.search(r'File "([^"]+)", line (\d+)', str(error))
    return f", at {found[1]}:{found[2]}" if found else ""


def innermost(frames: traceback.StackSummary) -> str:
    """Return ``file:line: code`` of the innermost frame outside torch and this library, "" if there is none."""
    inside = ("/torch/", "/fxprune/", "<")  # "<string>" is code made while it runs: no place that one can look at
    outside = [f for f in frames if not any(part in f.filename for part in inside)]
    return f"{outside[-1].filename}:{outside[-1].lineno}: {outside[-1].line}" if outside else ""
