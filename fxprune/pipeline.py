"""Passes as data, and a checked sequence of them.

A pass is a frozen dataclass that says what it keeps and yields what it did. It works on a copy; everything around the
rewriting itself (copying, checking, reporting) is done here, once for all passes.
"""

from __future__ import annotations

import contextlib
import enum
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from fxprune.capture import Traced, propagate
from fxprune.claims import (
    Witness,
    check_nothing_written,
    check_outputs,
    check_signature,
    check_state,
    versions,
    witness,
)
from fxprune.errors import CaptureError, InputError, PreconditionError, VerifyError
from fxprune.graph_tools import copy_module, evaluating, place_new_nodes, tensors_of
from fxprune.report import Change, PassReport, Skip

if TYPE_CHECKING:
    from fxprune.eager import Applied


class Keeps(enum.Enum):
    """What a pass promises to leave as it was."""

    OUTPUTS = "outputs"
    """The same function: every output has the same values."""

    SIGNATURE = "signature"
    """The same number of outputs, with the same dtypes and shapes."""


class Report(tuple[PassReport, ...]):
    """The reports of all passes that ran, in order."""

    __slots__ = ()

    @property
    def changed(self) -> int:
        """How many changes were made in all."""
        return sum(len(report.changes) for report in self)

    def __str__(self) -> str:
        return "\n".join(str(report) for report in self)


@dataclass(frozen=True)
class Result:
    """A rewritten model, and what was done to it."""

    traced: Traced
    report: Report

    def apply_to(self, model: nn.Module, *, training: bool = True) -> Applied:
        """Write the result into the eager model that was captured; see :func:`fxprune.eager.apply_to`."""
        from fxprune.eager import apply_to

        return apply_to(self.traced, model, training=training)

    def __str__(self) -> str:
        return str(self.report)


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of a graph. Subclasses are frozen dataclasses whose fields are their options.

    Attributes:
        name: What reports and errors call it, in kebab case.
        keeps: What it promises; a :class:`Pipeline` holds it to that.
    """

    name: ClassVar[str]
    keeps: ClassVar[Keeps]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "rewrite" not in cls.__dict__:
            return
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", getattr(cls, "name", "")):
            raise TypeError(f"{cls.__name__} needs a class attribute name in kebab case, like 'fuse-batchnorm'")
        if not isinstance(getattr(cls, "keeps", None), Keeps):
            raise TypeError(f"{cls.__name__} needs a class attribute keeps: Keeps.OUTPUTS or Keeps.SIGNATURE")

    def requires(self, traced: Traced) -> None:  # noqa: B027 - most passes have no precondition
        """Raise ``PreconditionError``, with what to do about it, where the pass cannot run on this graph at all."""

    @abstractmethod
    def rewrite(self, traced: Traced) -> Iterator[Change | Skip]:
        """Rewrite ``traced.module`` and yield what was done, and what was left alone and why.

        The module is a copy whose graph and modules are the pass's own. Its tensors are shared with the model that it
        came from: assign new ones (:func:`fxprune.graph_tools.assign`). These may be float64, and are rounded to the
        model's precision after they were checked. On its own result the pass finds nothing left to change.
        """

    def check(self, before: Traced, after: Traced) -> None:  # noqa: B027 - what a pass keeps is checked without it
        """Raise ``VerifyError`` where more than ``keeps`` can be checked, and does not hold; a Pipeline calls it.

        New weights are still as exact as the pass made them, and shapes not propagated.
        """

    def __call__(self, traced: Traced) -> Result:
        """Return the rewritten model and the report; numbers are checked by a :class:`Pipeline` only."""
        draft, report = _rewritten(self, traced)
        _settle(traced, draft)
        return Result(draft, Report([report]))


@dataclass(frozen=True)
class Pipeline:
    """Passes run in order, each held to what it claims to keep. It can be used wherever a pass can.

    Attributes:
        passes: Passes or pipelines.
        verify: Whether to check numbers after each pass. Structure is checked in any case.
    """

    passes: Sequence[Pass | Pipeline]
    verify: bool = True

    name: ClassVar[str] = "pipeline"

    def __post_init__(self) -> None:
        object.__setattr__(self, "passes", tuple(self.passes))
        for step in self.passes:
            if not isinstance(step, Pass | Pipeline):
                what = f"the class {step.__name__}: write {step.__name__}()" if isinstance(step, type) else repr(step)
                raise InputError(f"a Pipeline takes passes, and got {what}")

    @property
    def keeps(self) -> Keeps:
        """The least that any of its passes keeps."""
        kept = {step.keeps for step in self.passes}
        return Keeps.SIGNATURE if Keeps.SIGNATURE in kept else Keeps.OUTPUTS

    def requires(self, traced: Traced) -> None:
        """Raise ``PreconditionError`` where the first pass cannot run; those after it see what it leaves."""
        for step in self.passes[:1]:
            step.requires(traced)

    def __call__(self, traced: Traced) -> Result:
        """Run all passes.

        Raises:
            PreconditionError: A pass cannot run on what it was given.
            VerifyError: A pass did not keep what it claims to; the message names it, those before it, and the first
                node that differs.
        """
        return self._run(traced, Report())

    def _run(self, traced: Traced, earlier: Report) -> Result:
        done, known = Report(), None
        for step in self.passes:
            history = Report([*earlier, *done])
            if isinstance(step, Pipeline):
                result, known = step._run(traced, history), None
            else:
                with _naming(step, history):
                    result, known = _checked(step, traced, known) if self.verify else (step(traced), None)
            traced, done = result.traced, Report([*done, *result.report])
        return Result(traced, done)


@contextlib.contextmanager
def _naming(step: Pass, history: Report) -> Iterator[None]:
    """Say in every error which pass it was, and which passes had run before it."""
    before = ", ".join(report.name for report in history)
    before = f"Passes that ran before it: {before}." if before else "No pass ran before it."
    try:
        yield
    except (PreconditionError, VerifyError) as error:
        text = str(error)
        text = text if text.startswith(step.name) else f"{step.name}: {text}"
        raise type(error)(f"{text.rstrip('.')}. {before}") from error
    except Exception as error:
        error.add_note(f"in the pass {step.name}. {before}")
        raise


def _checked(step: Pass, traced: Traced, known: Witness | None) -> tuple[Result, Witness | None]:
    """Run one pass and hold it to what it claims.

    Outputs are compared before new weights are rounded to the model's precision, which would hide a small mistake.

    Args:
        step: The pass.
        traced: What it is given.
        known: The outputs of that, where they are known already: a forward in float64 is what costs here.

    Returns:
        The result, and its outputs where nothing but this check has to vouch for them.
    """
    was = (known or witness(traced)) if step.keeps is Keeps.OUTPUTS else None
    draft, report = _rewritten(step, traced)
    changed = bool(report.changes)
    compared = was is not None and was.double and check_outputs(traced, draft, was, changed=changed)
    step.check(traced, draft)
    rounded = _settle(traced, draft)
    check_signature(traced, draft)
    if was is not None and not compared:
        was = witness(traced, double=False) if was.double else was
        check_outputs(traced, draft, was, changed=changed)
    return Result(draft, Report([report])), None if rounded else was


def _rewritten(step: Pass, traced: Traced) -> tuple[Traced, PassReport]:
    """Run the rewriting on a copy; new weights are not rounded yet, and shapes not propagated."""
    step.requires(traced)
    draft = traced.with_module(copy_module(traced.module))
    were = versions(traced.module)
    said = tuple(step.rewrite(draft))
    check_nothing_written(were)
    try:
        draft.module.graph.lint()
    except Exception as error:  # lint raises many kinds
        raise VerifyError(f"left an invalid graph: {error}") from error
    place_new_nodes(draft.module)
    draft.module.recompile()
    check_state(traced.module, draft.module)
    changes = tuple(item for item in said if isinstance(item, Change))
    return draft, PassReport(step.name, changes, tuple(item for item in said if isinstance(item, Skip)))


def _settle(before: Traced, draft: Traced) -> bool:
    """Round new float64 weights to the precision of the model, and set the shapes of every node.

    Returns:
        Whether there was anything to round.
    """
    shared = {id(tensor) for tensor in tensors_of(before.module)}
    old = before.module.state_dict(keep_vars=True)
    rounded: dict[int, Tensor] = {}
    for path, layer in draft.module.named_modules():
        for name, tensor in [*layer._parameters.items(), *layer._buffers.items()]:
            key = f"{path}.{name}" if path else name
            if tensor is None or tensor.dtype != torch.float64 or id(tensor) in shared:
                continue
            if id(tensor) not in rounded:
                rounded[id(tensor)] = _round(tensor, _precision(key, old), key)
            setattr(layer, name, rounded[id(tensor)])
    try:
        with evaluating(draft.module):
            propagate(draft.module, draft.args, draft.kwargs)
    except CaptureError as error:
        raise VerifyError(f"left a graph in which {error}") from error
    return bool(rounded)


def _precision(key: str, old: dict[str, Tensor]) -> torch.dtype:
    """Return the dtype that a tensor of this name had, or else the commonest in its layer, or in what holds that."""
    if key in old:
        return old[key].dtype
    floats = {name: tensor.dtype for name, tensor in old.items() if tensor.is_floating_point()}
    path = key
    while path:  # "a.b.weight" may be new, made from what was "a.weight"
        path = path.rpartition(".")[0]
        near = [dtype for name, dtype in floats.items() if not path or name.startswith(f"{path}.")]
        if near:
            return Counter(near).most_common(1)[0][0]
    return torch.float64


def _round(tensor: Tensor, dtype: torch.dtype, key: str) -> Tensor:
    small = tensor.detach().to(dtype)
    if not torch.equal(small.isfinite(), tensor.isfinite()):
        raise VerifyError(f"made {key} too large for {dtype}")
    return nn.Parameter(small, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else small


__all__ = ["Keeps", "Pass", "Pipeline", "Report", "Result"]
