"""One random network through a random pipeline; every step is held to references that share no code with the checks.

At each step:

- the graph in front of the pass is bit for bit what it was;
- outputs are those of the reference (``tools/_pipelines_references.py``) at the example's batch and at another;
- a report with changes goes with a change, and one without with none; a second run changes nothing;
- the sizes that the graph claims for its values are those that they have.

At the end the same passes run again as one pipeline and have to give the same tensors; the result is copied and its
state loaded back; a part of the results goes to ONNX, or into the network's own class.
"""

from __future__ import annotations

import copy
import functools
import io
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import onnxruntime
import torch
from torch import Tensor, fx, nn

from fxprune.capture import Traced, trace
from fxprune.deploy.onnx import export_onnx
from fxprune.eager import apply_to
from fxprune.errors import FxPruneError, VerifyError
from fxprune.passes import LinearizeActivations, RemoveLayers, Reparameterize
from fxprune.pipeline import Keeps, Pipeline, Result
from fxprune.report import PassReport
from tools._fuzz_check import WrongNumber
from tools._fuzz_program import Choices, Program
from tools._pipelines_networks import VALUES, set_values
from tools._pipelines_references import plain, reference, require, run
from tools._pipelines_steps import Step, draw_step

TOLERANCE, SINGLE = 1e-9, 1e-4
BATCH, SEED = 3, 5
EACH = 4
"""Pipelines of one network: to capture it costs as much as several passes."""
_NAMED = (LinearizeActivations, RemoveLayers)
UNPROVED = ("proves nothing", "cannot be checked", "nothing is proved")
"""What a check says that could not have failed: the outputs are a constant, or no numbers."""


class Draws(Protocol):
    """Where the decisions of the steps come from."""

    def steps(self) -> int:
        """Return how many steps there are."""

    def step(self, number: int) -> Choices:
        """Return the decisions of one."""


@dataclass
class Checked:
    """What became of one pipeline.

    Attributes:
        code: The steps that ran, as Python.
        ran: Names of the passes that ran.
        changed: Names of those that changed something.
        held: How often each kind of reference was used.
        refusals: What was refused, and why.
    """

    code: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    held: Counter[str] = field(default_factory=Counter)
    refusals: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Kind:
    """How a pipeline is checked.

    Attributes:
        single: The network is in float32, and what a pass computes is rounded.
        onnx: The result is exported.
        eager: The result is written into the network's own class.
        values: What the weights are (``_pipelines_networks.set_values``).
    """

    single: bool = False
    onnx: bool = False
    eager: bool = False
    values: str = "any"

    @staticmethod
    def of(number: int) -> Kind:
        """Return the kind of a numbered pipeline."""
        network = number // EACH
        return Kind(network % 4 == 3, number % 48 == 13, number % 3 == 1, VALUES[network % len(VALUES)])


@dataclass(frozen=True)
class Subject:
    """A captured network; pipelines share it, as none may change it.

    Attributes:
        program: The network as code.
        model: The network.
        traced: Its capture.
        single: Whether it is in float32.
    """

    program: Program
    model: nn.Module
    traced: Traced
    single: bool


@functools.lru_cache(maxsize=1)
def capture(program: Program, seed: int, single: bool, values: str = "any") -> Subject:
    """Build and capture a network, in float32 where that is asked for and the graph can be widened to compare.

    Raises:
        FxPruneError: It cannot be captured.
    """
    model, example = program.build(seed), program.example()
    set_values(model, values, seed)
    if single:
        small = copy.deepcopy(model).float()
        traced = trace(small, tuple(value.float() for value in example))
        if _can_be_widened(traced, example):
            return Subject(program, small, traced, True)
    return Subject(program, model, trace(model, example), False)


def check_pipeline(program: Program, seed: int, draws: Draws, kind: Kind, found: Checked) -> None:
    """Capture, run random passes, hold each to its references.

    Raises:
        WrongNumber: A reference differs.
        BrokenPromise: A pass did something else than it says.
        VerifyError: The library found a wrong number by itself.
        Exception: Anything else that is no refusal in the library's own words is a crash.
    """
    try:
        subject = capture(program, seed, kind.single, kind.values)
    except FxPruneError as error:
        found.refusals.append(f"capture: {error}")
        return
    case = _Case(program, subject.single, found, [], program.reads)
    was, traced = state_of(subject.model), subject.traced
    for number in range(draws.steps()):
        traced = case.step(draws.step(number), traced)
    require(same_state(was, state_of(subject.model)), "the network itself was changed")
    _again(subject.traced, traced, case.done, verify=kind.onnx or kind.eager)
    _copied(traced, program)
    if kind.onnx and subject.single:  # runtimes have no convolution in float64
        _exported(traced, program, found)
    if kind.eager:
        _written_back(subject.model, traced, case)


def _can_be_widened(traced: Traced, example: tuple[Tensor, ...]) -> bool:
    """Whether a graph runs in float64 once its tensors have it: its code may name a type."""
    try:
        run(plain(traced.module), example)
    except RuntimeError:
        return False
    return True


@dataclass
class _Case:
    program: Program
    single: bool
    found: Checked
    done: list[Step]
    reads: bool

    def step(self, choices: Choices, traced: Traced) -> Traced:
        """Draw one step, carry it out and check it; a refusal leaves the graph as it is."""
        try:
            step = draw_step(choices, traced)
        except FxPruneError as error:
            self.refuse("plan", error)
            return traced
        self.found.code.append(f"traced = {step.code}" if step.edit else step.code)
        before = snapshot(traced.module)
        if step.edit is not None:
            after = step.edit(traced)
        else:
            try:
                after = self._pass(step, traced)
            except FxPruneError as error:
                if isinstance(error, VerifyError) and not any(part in str(error) for part in UNPROVED):
                    raise
                self.refuse(step.name, error)
                self.found.code[-1] = f"# refused: {step.code}"
                after = traced
        difference = first_difference(before, snapshot(traced.module))
        require(not difference, f"{step.name} changed the graph that it was given: {difference}")
        if after is not traced:
            self.done.append(step)
        return after

    def refuse(self, name: str, error: FxPruneError) -> None:
        text = str(error)
        require(len(text) > 20 and "\n" not in text.strip(), f"{name} gives no reason: {text!r}")
        self.found.refusals.append(f"{name}: {type(error).__name__}: {text}")

    def _pass(self, step: Step, traced: Traced) -> Traced:
        assert step.pass_ is not None
        result = Pipeline([step.pass_])(traced)
        (report,) = result.report
        self.found.ran.append(step.name)
        self._says_what_it_did(step, traced, result, report)
        if report.changes:
            self.found.changed.append(step.name)
        self._numbers(step, traced, result.traced, report)
        again = step.pass_(result.traced)
        require(not again.report.changed, f"{step.name}: a second run changes something again: {again}")
        difference = first_difference(snapshot(result.traced.module), snapshot(again.traced.module))
        require(not difference, f"{step.name}: a second run says nothing, and changes {difference}")
        _sizes(result.traced)
        self.reads |= "box sum" in str(report)
        return result.traced

    def _says_what_it_did(self, step: Step, traced: Traced, result: Result, report: PassReport) -> None:
        before, after = snapshot(traced.module), snapshot(result.traced.module)
        difference = first_difference(before, after) or _meta_difference(traced.module, result.traced.module)
        places = {change.place for change in report.changes} | {skip.place for skip in report.skips}
        named = getattr(step.pass_, "layers", None) if isinstance(step.pass_, _NAMED) else None
        missed = set(named) - places if isinstance(named, tuple) else set()
        require(not missed, f"{step.name} was given {sorted(missed)}, and says nothing of it")
        if not isinstance(step.pass_, Reparameterize):  # what it merges takes over the name of one of several layers
            frozen = _grad_difference(traced.module, result.traced.module)
            require(not frozen, f"{step.name} changes whether {frozen} is trained")
        if report.changes:
            require(bool(difference), f"{step.name} says it changed something, and did not: {report}")
        else:
            require(not first_difference(before, after), f"{step.name} says it changed nothing, but {difference}")

    def _numbers(self, step: Step, before: Traced, after: Traced, report: PassReport) -> None:
        assert step.pass_ is not None
        expected = reference(step.pass_, before, after, report, self.reads)
        which = "outputs" if step.pass_.keeps is Keeps.OUTPUTS else step.name
        if expected is None:
            self.found.held[f"{which} (its own check)"] += 1
            _runs_at_another_batch(after, self.program)
            return
        self.found.held[which] += bool(report.changes)
        found = plain(after.module)
        for args in self.inputs(before):
            same(step.name, run(found, args), run(expected, args), SINGLE if self.single else TOLERANCE)

    def inputs(self, traced: Traced) -> list[tuple[Tensor, ...]]:
        """Return inputs at the example's batch, and at others where it may be."""
        sizes = (BATCH, 1) if traced.batch_is_dynamic else ()
        return [self.program.example(), *(self.program.example(size, SEED) for size in sizes)]


def same(what: str, found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Hold outputs to others.

    Raises:
        WrongNumber: They differ.
    """
    if len(found) != len(expected):
        raise WrongNumber(f"{what}: {len(found)} outputs, expected {len(expected)}")
    sizes = [float(value[value.isfinite()].abs().max()) if value.isfinite().any() else 0.0 for value in expected]
    for index, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        if mine.shape != theirs.shape:
            raise WrongNumber(f"{what}: output {index} is {tuple(mine.shape)}, expected {tuple(theirs.shape)}")
        finite = theirs.isfinite()
        if not torch.equal(mine.isfinite(), finite):
            raise WrongNumber(f"{what}: output {index} is not finite where it was, or the other way round")
        if not finite.any():
            continue
        error = float((mine - theirs)[finite].abs().max())
        scale = sizes[index] or max(sizes) or 1.0  # one that is zero everywhere has no size of its own
        if not error <= tolerance * scale:
            raise WrongNumber(f"{what}: output {index} differs by {error / scale:.1e} of the largest entry")


# ---------------------------------------------------------------- what a graph is, bit for bit


def snapshot(module: fx.GraphModule) -> tuple[list[str], str, dict[str, Tensor], dict[str, bool]]:
    """Return a copy of all that a graph consists of: nodes, layers, tensors, modes."""
    nodes = [f"{n.name} = {n.op} {n.target} {n.args} {n.kwargs}" for n in module.graph.nodes]
    tensors = state_of(module)
    modes = {name: child.training for name, child in module.named_modules(remove_duplicate=False)}
    return nodes, repr(module), tensors, modes


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of all tensors of a module: parameters, buffers of all kinds, and plain attributes."""
    found = {}
    for path, child in module.named_modules(remove_duplicate=False):
        for store in (child._parameters, child._buffers, vars(child)):
            for name, value in store.items():
                if isinstance(value, Tensor):
                    found[f"{path}.{name}"] = value.detach().clone()
    return found


def same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two states have the same names, types and bits."""
    return not _tensor_difference(one, other)


def _tensor_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> str:
    if one.keys() != other.keys():
        return f"the tensors {sorted(one.keys() ^ other.keys())[:4]}"
    for name, value in one.items():
        new = other[name]
        if value.dtype != new.dtype or value.shape != new.shape or not torch.equal(_bits(value), _bits(new)):
            return f"the tensor {name}"
    return ""


def _bits(value: Tensor) -> Tensor:
    return torch.nan_to_num(value) if value.is_floating_point() else value


def first_difference(one: Any, other: Any) -> str:
    """Return where two snapshots differ, in words; empty where they do not."""
    for mine, theirs in zip(one[0], other[0], strict=False):
        if mine != theirs:
            return f"the node {mine!r}, now {theirs!r}"
    if len(one[0]) != len(other[0]):
        return f"the number of nodes: {len(one[0])}, now {len(other[0])}"
    if one[1] != other[1]:
        return "a layer's options or name"
    return _tensor_difference(one[2], other[2]) or ("the mode of a layer" if one[3] != other[3] else "")


def _meta_difference(one: fx.GraphModule, other: fx.GraphModule) -> str:
    return "" if _alike(dict(one.meta), dict(other.meta)) else "its records"


def _grad_difference(one: fx.GraphModule, other: fx.GraphModule) -> str:
    was = {name: parameter.requires_grad for name, parameter in one.named_parameters(remove_duplicate=False)}
    now = {name: parameter.requires_grad for name, parameter in other.named_parameters(remove_duplicate=False)}
    return next((name for name in was if name in now and was[name] != now[name]), "")


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(value, other[key]) for key, value in one.items())
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    return bool(one == other)


def _sizes(traced: Traced) -> None:
    """Hold the sizes and types that nodes claim to those of the values that they have."""

    class Looking(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            claimed = n.meta.get("val")
            require("path" in n.meta and "source" in n.meta, f"the node {n.name} does not say where it comes from")
            if n.op != "output" and isinstance(value, Tensor):
                require(isinstance(claimed, Tensor), f"the node {n.name} does not say what it gives")
                assert isinstance(claimed, Tensor)
                require(
                    claimed.shape == value.shape and claimed.dtype == value.dtype,
                    f"the node {n.name} claims {claimed.dtype}{list(claimed.shape)}, and gives "
                    f"{value.dtype}{list(value.shape)}",
                )
            return value

    with torch.no_grad():
        Looking(copy.deepcopy(traced.module)).run(*traced.flat(traced.args, traced.kwargs), enable_io_processing=False)


def _runs_at_another_batch(traced: Traced, program: Program) -> None:
    if traced.batch_is_dynamic:
        outputs = run(plain(traced.module), program.example(BATCH, SEED))
        require(all(len(output) == BATCH for output in outputs), "another batch gives outputs of another size")


# ---------------------------------------------------------------- at the end


def _again(start: Traced, end: Traced, done: list[Step], *, verify: bool) -> None:
    """Run the same passes as one pipeline, checked or not; it has to give the same graph and the same bits."""
    traced, passes = start, []
    for step in [*done, None]:
        if step is not None and step.pass_ is not None:
            passes.append(step.pass_)
            continue
        if passes:
            traced, passes = Pipeline(passes, verify=verify)(traced).traced, []
        if step is not None and step.edit is not None:
            traced = step.edit(traced)
    difference = first_difference(snapshot(end.module), snapshot(traced.module))
    require(not difference, f"as one pipeline, the same passes give another {difference}")


def _copied(traced: Traced, program: Program) -> None:
    """Copy the graph, write its state and load it into a copy with other values."""
    expected = run(plain(traced.module), program.example())
    twin = copy.deepcopy(traced.module)
    require(not _meta_difference(traced.module, twin), "a copy has other records")
    stream = io.BytesIO()
    torch.save(twin.state_dict(), stream)
    with torch.no_grad():
        for value in twin.state_dict().values():
            value.zero_()
    stream.seek(0)
    twin.load_state_dict(torch.load(stream, weights_only=True))
    same("a loaded state", run(plain(twin), program.example()), expected, 0.0)


def _exported(traced: Traced, program: Program, found: Checked) -> None:
    """Export to ONNX, and compare what onnxruntime gives with the graph."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            export_onnx(traced, path)
        except FxPruneError as error:
            found.refusals.append(f"onnx: {error}")
            return
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    for args in [program.example(), *([program.example(BATCH, SEED)] * traced.batch_is_dynamic)]:
        leaves = [value.float() for value in traced.flat(args)]
        given = session.run(None, dict(zip(names, [value.numpy() for value in leaves], strict=True)))
        expected = run(plain(traced.module), tuple(leaves))
        same("ONNX", [torch.from_numpy(value).double() for value in given], expected, SINGLE * 10)
    found.held["ONNX"] += 1


def _written_back(model: nn.Module, traced: Traced, case: _Case) -> None:
    """Write the result into a copy of the network, whose own code has to give the same then."""
    twin = copy.deepcopy(model)
    try:
        apply_to(traced, twin)
    except FxPruneError as error:
        case.found.refusals.append(f"write back: {error}")
        require(same_state(state_of(model), state_of(twin)), "a refused writing back leaves the network changed")
        return
    for args in case.inputs(traced):
        tolerance = SINGLE if case.single else TOLERANCE
        same("its own class", run(copy.deepcopy(twin).double(), args), run(plain(traced.module), args), tolerance)
    case.found.held["its own class"] += 1
