"""A pass is held to what it claims: those that lie are caught, and named."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, fx, nn

from fxprune.capture import Traced, trace
from fxprune.errors import FxPruneError, InputError, PreconditionError, VerifyError
from fxprune.graph_tools import assign
from fxprune.passes import PASSES, FuseBatchNorm, RemoveIdentity
from fxprune.pipeline import Keeps, Pass, Pipeline
from fxprune.report import Change, Skip
from fxprune.testing import _check_outputs, check_pass

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
aten = torch.ops.aten


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.b, self.d, self.f = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Linear(4, 5)
        self.unused = nn.Linear(2, 2)
        self.register_buffer("wide", torch.ones(2, dtype=torch.float64), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.f(self.d(self.b(self.c(x)).relu()).mean((2, 3)))
        return x.tanh(), x.argmax(1)


@pytest.fixture
def traced() -> Traced:
    return trace(Net(), X)


@dataclass(frozen=True)
class Doing(Pass):
    """Does anything at all to the module that it is given, and claims to have kept the outputs."""

    name: ClassVar[str] = "doing"
    keeps: ClassVar[Keeps] = Keeps.OUTPUTS

    what: Callable[[fx.GraphModule], object]
    told: tuple[Change | Skip, ...] = (Change("f", "something"),)

    def rewrite(self, traced: Traced) -> Iterator[Change | Skip]:
        self.what(traced.module)
        yield from self.told


@dataclass(frozen=True)
class DoingSignature(Doing):
    """The same, and claims less."""

    name: ClassVar[str] = "doing-signature"
    keeps: ClassVar[Keeps] = Keeps.SIGNATURE


def node(module: fx.GraphModule, name: str) -> fx.Node:
    (found,) = (node for node in module.graph.nodes if node.name == name)
    assert isinstance(found, fx.Node)
    return found


def retarget(name: str, target: Any, *args: Any) -> Callable[[fx.GraphModule], None]:
    def change(module: fx.GraphModule) -> None:
        changed = node(module, name)
        changed.target, changed.args = target, (changed.args[0], *args)

    return change


def weight(name: str, value: Callable[[Tensor], Tensor]) -> Callable[[fx.GraphModule], None]:
    def change(module: fx.GraphModule) -> None:
        layer, _, part = name.rpartition(".")
        assign(module.get_submodule(layer), part, value(module.get_parameter(name)))

    return change


def drop_output(module: fx.GraphModule) -> None:
    output = module.graph.output_node()
    output.args = (output.args[0][:1],)  # type: ignore[index]


def cast_output(module: fx.GraphModule) -> None:
    output = module.graph.output_node()
    first, second = output.all_input_nodes
    with module.graph.inserting_before(output):
        output.args = ((module.graph.call_function(aten.to.dtype, (first, torch.float16)), second),)


def write_in_place(module: fx.GraphModule) -> None:
    with torch.no_grad():
        module.get_parameter("unused.weight").add_(1)


def dangle(module: fx.GraphModule) -> None:
    node(module, "linear").target = "nowhere"


def forget(name: str) -> Callable[[fx.GraphModule], None]:
    return lambda module: delattr(module, name)


LIES: dict[str, tuple[Callable[[fx.GraphModule], object], str]] = {
    "a wrong function": (
        retarget("relu", aten.abs.default),
        r"output 0 differs by \S+ of.*first node that differs is relu",
    ),
    "a slightly wrong weight": (
        weight("f.weight", lambda w: w.double() * (1 + 1e-7)),
        r"output 0 differs by \S+e-0\d.*float64.*first node that differs is linear \(f, ",
    ),
    "one output less": (drop_output, "gives 1 in place of 2"),
    "an output in another place": (retarget("argmax", aten.argmin.default, 1), "output 1 differs in . of 2 values"),
    "not a number": (weight("f.weight", lambda w: w * torch.nan), "not finite where it was"),
    "a write in place": (write_in_place, "wrote into 1 parameters or buffers"),
    "a call of nothing": (dangle, "left an invalid graph"),
    "a key that is not its own": (forget("unused"), "removed unused.weight, unused.bias from the state_dict"),
    "a key for nothing": (
        lambda module: module.add_submodule("extra", nn.Linear(2, 2)),
        "added extra.weight, extra.bias to the state_dict",
    ),
    "shapes that do not fit": (weight("f.weight", lambda w: w[:, :3]), "left a graph in which shapes do not fit at l"),
    "another dtype": (cast_output, r"output 0 is torch.float16\[2, 5\] in place of torch.float32\[2, 5\]"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_pass_that_lies_is_named(traced: Traced, lie: str) -> None:
    what, message = LIES[lie]
    with pytest.raises(VerifyError, match=f"doing.*{message}") as caught:
        Pipeline([RemoveIdentity(), FuseBatchNorm(), Doing(what)])(traced)
    assert str(caught.value).startswith("doing: ")
    assert str(caught.value).endswith("Passes that ran before it: remove-identity, fuse-batchnorm.")


def test_a_change_that_is_not_reported_is_checked_too(traced: Traced) -> None:
    with pytest.raises(VerifyError, match="doing: says it keeps the outputs"):
        Pipeline([Doing(retarget("relu", aten.abs.default), told=())])(traced)


def test_outputs_are_computed_anew_after_they_may_have_changed(traced: Traced) -> None:
    """The third pass lies about what the second, which may, left."""
    lie = Doing(retarget("abs_1", aten.relu.default))
    honest = [RemoveIdentity(), DoingSignature(retarget("relu", aten.abs.default)), FuseBatchNorm()]

    def rename(module: fx.GraphModule) -> None:
        node(module, "relu").name = "abs_1"

    Pipeline([*honest, Doing(rename, told=())])(traced)
    with pytest.raises(
        VerifyError, match="before it: remove-identity, doing-signature, fuse-batchnorm, doing-signature"
    ):
        Pipeline([*honest, DoingSignature(rename), lie])(traced)


def test_a_claim_that_is_less_is_held_to_less(traced: Traced) -> None:
    result = Pipeline([DoingSignature(retarget("relu", aten.abs.default))])(traced)
    assert result.report.changed == 1
    with pytest.raises(VerifyError, match=r"doing-signature: .*gives 1 outputs in place of 2. No pass ran before it"):
        Pipeline([DoingSignature(drop_output)])(traced)
    with pytest.raises(VerifyError, match=r"doing-signature: .*output 0 is torch.float16"):
        Pipeline([DoingSignature(cast_output)])(traced)


def test_numbers_are_not_checked_if_told_so(traced: Traced) -> None:
    Pipeline([Doing(retarget("relu", aten.abs.default))], verify=False)(traced)
    with pytest.raises(VerifyError, match="left an invalid graph"):
        Pipeline([Doing(dangle)], verify=False)(traced)


def test_zeros_as_the_example_hide_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU())
    with pytest.raises(VerifyError, match="doing: says it keeps the outputs"):
        Pipeline([Doing(retarget("relu", aten.sigmoid.default))])(trace(model, torch.zeros(2, 3, 6, 6)))


def test_a_check_that_could_not_fail_is_refused(traced: Traced) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Dropout(), head := nn.Linear(4, 2))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    zero = trace(model, X[:, 0, 0])
    with pytest.raises(VerifyError, match=r"remove-identity: cannot be checked.*proves nothing"):
        Pipeline([RemoveIdentity()])(zero)
    Pipeline([FuseBatchNorm()])(zero)  # nothing to fold, so nothing to prove
    Pipeline([RemoveIdentity()], verify=False)(zero)


def test_a_model_that_has_no_float64_is_compared_in_its_own() -> None:
    @torch.library.custom_op("fxprune_tests::halve", mutates_args=())
    def halve(x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError("float32 only")
        return x / 2

    halve.register_fake(torch.empty_like)

    class Halved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return halve(x * 1).relu()  # type: ignore[no-any-return]

    halved = trace(Halved(), X)
    assert Pipeline([RemoveIdentity()])(halved).report.changed == 1
    with pytest.raises(VerifyError, match=r"in the model's own precision\); the first node that differs is relu"):
        Pipeline([Doing(retarget("relu", aten.abs.default))])(halved)

    def narrow(module: fx.GraphModule) -> None:
        relu = node(module, "relu")
        with module.graph.inserting_before(relu):
            relu.args = (module.graph.call_function(torch.ops.fxprune_tests.halve.default, relu.args),)

    with pytest.raises(VerifyError, match="in the model's own precision"):
        Pipeline([Doing(narrow)])(trace(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), X[:, 0, 0]))


# ---------------------------------------------------------------- pipelines


def test_new_nodes_say_where_they_are(traced: Traced) -> None:
    """Of what they read, and where that is nothing but a tensor, of what reads them."""

    def scale(module: fx.GraphModule) -> None:
        module.register_parameter("one", nn.Parameter(torch.ones(1)))
        relu = node(module, "relu")
        with module.graph.inserting_after(relu):
            one = module.graph.get_attr("one")
        with module.graph.inserting_after(one):
            product = module.graph.call_function(aten.mul.Tensor, (relu, one))
        relu.replace_all_uses_with(product, delete_user_cb=lambda user: user is not product)

    module = Pipeline([Doing(scale)])(traced).traced.module
    assert all({"val", "path", "source"} <= each.meta.keys() for each in module.graph.nodes)
    line = node(module, "relu").meta["source"]
    assert "relu()" in line
    assert node(module, "mul_tensor").meta["source"] == node(module, "one").meta["source"] == line


def test_pipelines_nest(traced: Traced) -> None:
    nested = Pipeline([Pipeline([RemoveIdentity()]), Pipeline([FuseBatchNorm(), Pipeline([])])])
    result = nested(traced)
    assert [report.name for report in result.report] == ["remove-identity", "fuse-batchnorm"]
    assert str(result).splitlines()[0] == "remove-identity: 1 changed, 0 skipped"
    assert nested.keeps is Keeps.OUTPUTS
    assert Pipeline([nested, DoingSignature(print)]).keeps is Keeps.SIGNATURE
    lying = Pipeline([RemoveIdentity(), Pipeline([Doing(drop_output)])])
    with pytest.raises(VerifyError, match=r"^doing: .* Passes that ran before it: remove-identity\.$"):
        lying(traced)


def test_a_precondition_names_the_passes_before(traced: Traced) -> None:
    traced.module.train()
    pipeline = Pipeline([RemoveIdentity(), FuseBatchNorm()])
    pipeline.requires(traced)
    with pytest.raises(
        PreconditionError, match=r"^fuse-batchnorm: b is in training.*ran before it: remove-identity\.$"
    ):
        pipeline(traced)
    with pytest.raises(PreconditionError):
        Pipeline([FuseBatchNorm()]).requires(traced)


def test_an_accident_inside_a_pass_says_which(traced: Traced) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        Pipeline([Doing(lambda module: 1 / 0)])(traced)
    assert caught.value.__notes__ == ["in the pass doing. No pass ran before it."]


def test_only_passes_are_taken() -> None:
    with pytest.raises(InputError, match=r"the class FuseBatchNorm: write FuseBatchNorm\(\)"):
        Pipeline([FuseBatchNorm])  # type: ignore[list-item]
    with pytest.raises(FxPruneError, match="got 'fuse'"):
        Pipeline(["fuse"])  # type: ignore[list-item]


@pytest.mark.parametrize("attributes", [{}, {"name": "Bad_Name", "keeps": Keeps.OUTPUTS}, {"name": "good-name"}])
def test_a_pass_has_to_say_its_name_and_what_it_keeps(attributes: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="needs a class attribute"):
        type("Nameless", (Pass,), {**attributes, "rewrite": Doing.rewrite})


def test_passes_are_known_by_name() -> None:
    assert PASSES["fuse-batchnorm"] is FuseBatchNorm
    assert all(cls.name == name for name, cls in PASSES.items())


def test_passes_cannot_be_imported_as_a_folder() -> None:
    with pytest.raises(ImportError, match=r"import this package as fxprune\.passes"):
        __import__("passes")


# ---------------------------------------------------------------- weights


def test_the_model_is_untouched(traced: Traced) -> None:
    model = Net()
    before = {key: (value, value.clone()) for key, value in model.state_dict(keep_vars=True).items()}
    Pipeline([RemoveIdentity(), FuseBatchNorm()])(trace(model, X))
    after = model.state_dict(keep_vars=True)
    assert all(after[key] is value and torch.equal(value, old) for key, (value, old) in before.items())


def test_unchanged_doubles_in_a_single_model_stay(traced: Traced) -> None:
    module = Pipeline([FuseBatchNorm()])(traced).traced.module
    assert module.get_buffer("wide").dtype == torch.float64
    assert module.get_parameter("c.weight").dtype == torch.float32


def test_a_weight_too_large_for_its_dtype_is_caught(traced: Traced) -> None:
    with pytest.raises(VerifyError, match=r"doing-signature: made f\.weight too large for torch\.float32"):
        Pipeline([DoingSignature(weight("f.weight", lambda w: w.double() * 0 + 1e300))])(traced)


def test_check_pass_says_what_is_wrong() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Dropout())
    with pytest.raises(AssertionError, match="expected changes at"):
        check_pass(RemoveIdentity(), model, X[:, 0, 0])
    with pytest.raises(AssertionError, match="expected skips at"):
        check_pass(RemoveIdentity(), model, X[:, 0, 0], changed=["1"], skipped={"0": "x"})
    again = Doing(lambda module: None)
    with pytest.raises(AssertionError, match="a second run changed something again"):
        check_pass(again, model, X[:, 0, 0], changed=["f"])


class Barred(nn.Module):
    """Its last output is infinite, as those are that a mask takes out."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(torch.arange(4) < 3, self.f(x), float("-inf"))


class TwoHeads(nn.Module):
    """One of its heads is zero, as before a training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(6, 8)
        nn.init.zeros_(self.b.weight)
        nn.init.zeros_(self.b.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), self.b(x)


def test_rounding_of_an_output_that_is_zero_is_no_difference() -> None:
    traced = trace(TwoHeads().double(), torch.randn(2, 6, dtype=torch.float64))

    def shifted(by: float) -> Doing:
        return Doing(lambda module: assign(module.get_submodule("b"), "bias", torch.full((8,), by)))

    assert Pipeline([shifted(1e-17)])(traced).report.changed
    with pytest.raises(VerifyError, match="output 1 differs by"):
        Pipeline([shifted(1e-7)])(traced)


def test_a_model_of_zeros_is_refused_for_that() -> None:
    model = TwoHeads().double()
    nn.init.zeros_(model.a.weight)
    nn.init.zeros_(model.a.bias)
    traced = trace(model, torch.randn(2, 6, dtype=torch.float64))
    tiny = Doing(lambda module: assign(module.get_submodule("b"), "bias", torch.full((8,), 1e-17)))
    with pytest.raises(VerifyError, match="cannot be checked: every output of the model is a constant"):
        Pipeline([tiny])(traced)


def test_an_infinite_output_hides_no_other() -> None:
    model, other = Barred().double(), Barred().double()
    before, after = (trace(each, X[:, 0, 0].double()) for each in (model, other))
    _check_outputs(model, before, before, None)
    with pytest.raises(AssertionError, match="an output differs by"):
        _check_outputs(model, before, after, None)


def test_the_pass_on_the_page_works() -> None:
    page = Path(__file__).resolve().parent.parent / "docs" / "how-to-write-a-pass.md"
    code = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)[0]
    names: dict[str, Any] = {"__name__": __name__}
    exec(code, names)

    class Abs(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.relu().abs().exp(), x.sin().abs()

    check_pass(names["RemoveAbsOfRelu"](), Abs(), X, changed=["abs_1"], skipped={"abs_2": "sin before it is no relu"})
