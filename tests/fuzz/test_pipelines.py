"""Random pipelines: a few of them, and passes made wrong on purpose, which the references have to notice."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from fxprune import pipeline
from fxprune.capture import Traced
from fxprune.channels import find_groups
from fxprune.depth import remove as depth_remove
from fxprune.depth import slopes
from fxprune.errors import InputError
from fxprune.linear import basis, split
from fxprune.linear.basis import with_vectors_dropped
from fxprune.passes import PASSES as PASSES_BY_NAME
from fxprune.passes import (
    CalibrateBatchNorm,
    DecomposeBasis,
    FuseBatchNorm,
    LinearizeActivations,
    MergeBasis,
    OverParameterize,
    PruneChannels,
    PruneWeights,
    RemoveIdentity,
    RemoveLayers,
    calibrate_batchnorm,
    fuse_batchnorm,
    over_parameterize,
    prune_channels,
    prune_weights,
    remove_layers,
)
from fxprune.pipeline import Pass
from fxprune.planning import Plan
from fxprune.report import Change
from tools import _pipelines_check, _pipelines_steps, fuzz_pipelines
from tools._fuzz_program import Choices, Program, Seeded
from tools._pipelines_check import Checked, Kind, check_pipeline
from tools._pipelines_networks import OWN, write_network
from tools._pipelines_steps import STEPS, Step

SOURCE = """\
import torch
from torch import nn
from torch.nn import functional as F


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.m = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.tanh(self.n(self.a(x))) * 1.0
        x = x + torch.sigmoid(self.m(self.b(x)))
        return self.head(x.mean((2, 3)))
"""
PROGRAM = Program(SOURCE, ((3, 6, 6),), (), reads=False, bakes=False)
Make = Callable[[Traced], Pass | Callable[[Traced], Traced]]


def _plan(traced: Traced) -> Pass:
    groups = find_groups(traced)
    return PruneChannels(Plan(groups.removal([int(groups.families[0][1])]), traced.fingerprint()))


def _prune(fill: Any, form: Any, traced: Traced) -> Pass:
    return PruneWeights(0.5, fill=fill, form=form)


def _drop(traced: Traced) -> Callable[[Traced], Traced]:
    return lambda given: with_vectors_dropped(given, {"a": [0, 2, 5, 6, 7], "b": [1, 2, 3, 4, 5]})


PASSES: dict[str, list[Make]] = {
    "fuse": [lambda _: FuseBatchNorm()],
    "identity": [lambda _: RemoveIdentity()],
    "expand": [lambda _: OverParameterize(rate=2)],
    "channels": [_plan],
    "basis": [lambda _: DecomposeBasis(), _drop, lambda _: MergeBasis()],
    "basis_whole": [lambda _: DecomposeBasis(), _drop, lambda _: MergeBasis(most=0.0)],
    "layers": [lambda _: RemoveLayers(["b"])],
    "activations": [lambda _: LinearizeActivations(["a"], share=0.3, slope=0.5)],
    "statistics": [lambda traced: CalibrateBatchNorm([traced.inputs(6, seed=1)[0]])],
    **{
        f"weights_{fill}_{form}": [functools.partial(_prune, fill, form)]
        for fill in ("zero", "filter", "layer", "sign")
        for form in ("dense", "cheap")
        if (fill, form) != ("sign", "cheap")
    },
}  # fmt: skip


class _Fixed:
    """Draws nothing: the steps are given."""

    def __init__(self, makes: list[Make]) -> None:
        self.makes = makes

    def steps(self) -> int:
        return len(self.makes)

    def step(self, number: int) -> Choices:
        made = Seeded(0)
        made.make = self.makes[number]  # type: ignore[attr-defined]
        return made


def _given(choices: Any, traced: Traced) -> Step:
    made = choices.make(traced)
    if isinstance(made, Pass):
        return Step(made.name, repr(made), made)
    return Step("edit", "edit", edit=made)


def _check(makes: list[Make], *, single: bool = False) -> Checked:
    found = Checked()
    with mock.patch.object(_pipelines_check, "draw_step", _given):
        check_pipeline(PROGRAM, 0, _Fixed(makes), Kind(single=single), found)
    return found


@pytest.mark.parametrize("name", PASSES)
def test_every_pass_has_a_reference_that_it_meets(name: str) -> None:
    for single in (False, True):
        found = _check(PASSES[name], single=single)
        assert not found.refusals
        assert found.changed == found.ran
        assert sum(found.held.values()) == len(found.changed)
        assert not [held for held in found.held if "its own check" in held]


# ---------------------------------------------------------------- passes made wrong


@dataclasses.dataclass(frozen=True)
class Fault:
    """A mistake: which pipeline it is in, and how it is made."""

    name: str
    patch: Callable[[], Any]


FAULTS: dict[str, Fault] = {}


def _fault(name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def register(patch: Callable[[], Any]) -> Callable[[], Any]:
        FAULTS[patch.__name__.strip("_")] = Fault(name, patch)
        return patch

    return register


def _after(module: Any, name: str, change: Callable[[Any], Any]) -> Any:
    """Patch a function so that its result is changed."""
    right = getattr(module, name)
    return mock.patch.object(module, name, lambda *args, **kwargs: change(right(*args, **kwargs)))


@_fault("fuse")
def _shifts_have_the_wrong_sign() -> Any:
    return _after(fuse_batchnorm, "_affine", lambda found: (found[0], -found[1]))


@_fault("fuse")
def _scales_are_off_by_a_millionth() -> Any:
    return _after(fuse_batchnorm, "_affine", lambda found: (found[0] * (1 + 1e-6), found[1]))


@_fault("fuse")
def _weights_are_written_in_place() -> Any:
    right = fuse_batchnorm.assign

    def assign(layer: nn.Module, name: str, value: Tensor) -> None:
        if name == "weight":
            layer.get_parameter(name).data.mul_(1.5)
        right(layer, name, value)

    return mock.patch.object(fuse_batchnorm, "assign", assign)


@_fault("fuse")
def _sizes_are_left_behind() -> Any:
    """The sizes that nodes claim are those of another graph."""
    right = pipeline.propagate

    def propagate(module: Any, *rest: Any) -> None:
        right(module, *rest)
        for node in module.graph.nodes:
            if node.op == "call_module" and not str(node.target).startswith("head"):
                node.meta["val"] = torch.empty(1)

    return mock.patch.object(pipeline, "propagate", propagate)


@_fault("identity")
def _nothing_is_done_and_something_said() -> Any:
    return mock.patch.object(RemoveIdentity, "rewrite", return_value=[Change("mul", "removed")])


@_fault("identity")
def _something_is_done_and_nothing_said() -> Any:
    right = RemoveIdentity.rewrite

    def rewrite(self: RemoveIdentity, traced: Traced) -> Iterator[Any]:
        list(right(self, traced))
        return iter(())

    return mock.patch.object(RemoveIdentity, "rewrite", rewrite)


@_fault("identity")
def _refusals_have_no_reason() -> Any:
    return mock.patch.object(RemoveIdentity, "requires", side_effect=InputError("no"))


@_fault("expand")
def _random_numbers_differ_from_run_to_run() -> Any:
    class _Torch:
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        @staticmethod
        def Generator() -> Any:  # noqa: N802 - torch's name
            return mock.Mock(manual_seed=lambda _: torch.default_generator)

    return mock.patch.object(over_parameterize, "torch", _Torch())


@_fault("channels")
def _biases_stay_where_they_were() -> Any:
    def roll(found: Traced) -> Traced:
        layer: Any = found.module.get_submodule("a")
        layer.bias = nn.Parameter(layer.bias.detach().roll(1))
        return found

    return _after(prune_channels, "cut_with", roll)


@_fault("basis_whole")
def _scales_are_forgotten() -> Any:
    right = basis.affine

    def affine(scale: Any, *rest: Any) -> Any:
        return right(None if scale is None else torch.ones_like(scale), *rest)

    return mock.patch.object(basis, "affine", affine)


@_fault("layers")
def _the_branch_stays_and_the_skip_goes() -> Any:
    right = depth_remove.stand_ins

    def other(node: Any, kept: Any) -> Any:
        return next(each for each in node.all_input_nodes if each is not kept)

    def stand_ins(graph: Any, layers: Any) -> Any:
        return {node: other(node, kept) for node, kept in right(graph, layers).items()}

    return mock.patch.object(depth_remove, "stand_ins", stand_ins)


@_fault("activations")
def _shares_are_those_of_the_activation() -> Any:
    right = slopes.mix
    patched = lambda module, layer, place, share, slope: right(module, layer, place, 1 - share, slope)  # noqa: E731
    from fxprune.passes import linearize_activations

    return mock.patch.object(linearize_activations, "mix", patched)


@_fault("statistics")
def _variances_are_biased() -> Any:
    def biased(found: Any) -> Any:
        found.variance = found.variance * 0.99
        return found

    return _after(calibrate_batchnorm, "_statistics_of", biased)


@_fault("weights_filter_dense")
def _means_are_of_all_weights() -> Any:
    right = prune_weights.filled
    whole = lambda weight, mask, fill: torch.where(mask, weight.mean(), right(weight, mask, fill))  # noqa: E731
    return mock.patch.object(prune_weights, "filled", whole)


@_fault("weights_sign_dense")
def _signs_are_lost() -> Any:
    return _after(prune_weights, "filled", torch.abs)


@_fault("weights_zero_dense")
def _the_largest_go() -> Any:
    right = prune_weights.smallest
    return mock.patch.object(prune_weights, "smallest", lambda weight, *rest: right(1 / (1e-9 + weight.abs()), *rest))


@_fault("weights_zero_dense")
def _one_too_many_goes() -> Any:
    right = prune_weights.smallest
    return mock.patch.object(prune_weights, "smallest", lambda weight, count, gone: right(weight, count + 1, gone))


@_fault("weights_filter_cheap")
def _what_is_kept_is_not_lowered() -> Any:
    return mock.patch.object(
        split, "difference", lambda weight, pruned, _: torch.where(pruned, torch.zeros_like(weight), weight)
    )


@pytest.fixture
def _blind() -> Iterator[None]:
    """Take the library's own checks away."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(pipeline, "check_outputs", return_value=True))
        stack.enter_context(mock.patch.object(pipeline, "check_nothing_written"))
        stack.enter_context(mock.patch.object(prune_channels, "verify_with"))
        stack.enter_context(mock.patch.object(remove_layers, "verify_removal"))
        stack.enter_context(mock.patch("fxprune.passes.linearize_activations.verify_mixture"))
        yield


@pytest.mark.usefixtures("_blind")
@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_pass_is_noticed_without_the_library_s_own_checks(name: str) -> None:
    with FAULTS[name].patch(), pytest.raises((_pipelines_check.WrongNumber, fuzz_pipelines.BrokenPromise)):
        _check(PASSES[FAULTS[name].name])


# ---------------------------------------------------------------- the tool


def test_the_grammar_draws_every_pass_and_a_number_makes_one_pipeline() -> None:
    sources = [write_network(Seeded(number)).source for number in range(200)]
    assert sources == [write_network(Seeded(number)).source for number in range(200)]
    assert len(set(sources)) > 190
    used = {name for number in range(200) for name in write_network(Seeded(number)).operations}
    assert used >= set(OWN)
    assert len(STEPS) == 1 + len(PASSES_BY_NAME)  # and vectors that are dropped between two


def test_a_few_random_pipelines() -> None:
    records = fuzz_pipelines.shard(list(range(4)))
    assert [record["outcome"] for record in records] == ["right"] * 4, records
    assert len({name for record in records for name in record["ran"]}) > 3


@pytest.mark.usefixtures("_blind")
def test_what_fails_is_made_smaller_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: STEPS[name] for name in ("fuse_batchnorm", "remove_identity")}
    monkeypatch.setattr(_pipelines_steps, "STEPS", few)
    monkeypatch.setattr(fuzz_pipelines, "TRIES", 15)
    with FAULTS["scales_are_off_by_a_millionth"].patch():
        records = (fuzz_pipelines.run(number) for number in range(0, 80, 4))
        wrong = next(record for record in records if record["outcome"] == "wrong")
    kind, *steps = wrong["steps"]
    assert kind.startswith("# Kind(")
    assert steps == ["FuseBatchNorm()"]
    assert "Norm" in wrong["source"]
    assert wrong["smallest"].startswith("fuse-batchnorm: output")


def test_a_run_that_goes_on_and_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, page = tmp_path / "pipelines.json", tmp_path / "page.md"
    page.write_text("before\n<!-- pipelines:start -->\nold\n<!-- pipelines:end -->\nafter\n")
    assert fuzz_pipelines.main(["--pipelines", "1", "--out", str(out)]) == 0
    assert fuzz_pipelines.main(["--pipelines", "2", "--out", str(out), "--markdown", str(page)]) == 0
    assert [record["pipeline"] for record in json.loads(out.read_text())["networks"]] == [0, 1]
    text = page.read_text()
    assert "| random pipelines | 2 |" in text
    assert "| wrong numbers | 0 |" in text
    assert text.startswith("before\n")
    assert text.endswith("<!-- pipelines:end -->\nafter\n")


def test_a_pipeline_is_shown_as_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz_pipelines.show(0) == 0
    shown = capsys.readouterr().out
    assert "class Network" in shown
    assert '"outcome": "right"' in shown
