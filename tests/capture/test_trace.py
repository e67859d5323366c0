"""A capture is the model: the same numbers, state, gradients and modes, for every construct."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.capture import Traced, trace
from fxprune.channels import find_groups
from fxprune.errors import CaptureError, InputError
from tests.networks import NETWORKS, build, captured, normal

every_network = pytest.mark.parametrize("name", NETWORKS)


def tensors(outputs: Any) -> list[Tensor]:
    """Return the tensors of a nest of outputs, in order."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def assert_same(actual: list[Tensor], expected: list[Tensor], tolerance: float = 1e-6) -> None:
    """Compare relative to the largest entry, and refuse references that prove nothing."""
    assert len(actual) == len(expected) > 0
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.shape == theirs.shape
        assert theirs.isfinite().all()
        scale = float(theirs.abs().max())
        assert scale > 0
        assert float((mine - theirs).abs().max()) <= tolerance * scale


@every_network
@pytest.mark.parametrize("batch", [2, 3])
def test_outputs_equal_the_models_at_every_batch_size(name: str, batch: int) -> None:
    model, traced = captured(name)
    assert traced.batch_is_dynamic
    args, kwargs = traced.inputs(batch=batch, seed=batch)
    assert all(leaf.shape[0] == batch for leaf in tensors((args, kwargs)))
    with torch.no_grad():
        expected = model(*copy.deepcopy(args), **copy.deepcopy(kwargs))
    assert_same(traced.run(args, kwargs), tensors(expected))


@every_network
def test_output_structure_is_the_models(name: str) -> None:
    model, traced = captured(name)
    with torch.no_grad():
        actual = traced.module(*copy.deepcopy(traced.args), **copy.deepcopy(traced.kwargs))
        expected = model(*copy.deepcopy(traced.args), **copy.deepcopy(traced.kwargs))
    assert pytree.tree_structure(actual) == pytree.tree_structure(expected)


@every_network
def test_state_is_the_models(name: str) -> None:
    model, traced = captured(name)
    mine, theirs = traced.module.state_dict(), model.state_dict()
    assert sorted(mine) == sorted(theirs)
    for key, value in theirs.items():
        assert torch.equal(mine[key], value)
    assert sorted(dict(traced.module.named_parameters())) == sorted(dict(model.named_parameters()))


@every_network
def test_parameters_are_shared_and_so_are_their_gradients(name: str) -> None:
    model, traced = captured(name)
    parameters = dict(model.named_parameters())
    for key, value in traced.module.named_parameters():
        assert value.data_ptr() == parameters[key].data_ptr()
    expected = gradients(model, list(parameters.values()), traced)
    mine = dict(traced.module.named_parameters())
    actual = gradients(traced.module, [mine[key] for key in parameters], traced)
    assert any(bool((gradient != 0).any()) for gradient in expected)
    for key, left, right in zip(parameters, actual, expected, strict=True):
        assert float((left - right).abs().max()) <= 1e-5 * max(1.0, float(right.abs().max())), key


def gradients(module: nn.Module, parameters: list[Tensor], traced: Traced) -> list[Tensor]:
    """Return the gradients of a fixed random combination of all outputs."""
    outputs = tensors(module(*copy.deepcopy(traced.args), **copy.deepcopy(traced.kwargs)))
    loss = sum((output * normal(*output.shape, seed=index)).sum() for index, output in enumerate(outputs))
    assert isinstance(loss, Tensor)
    return list(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))


@every_network
def test_capture_leaves_the_model_alone(name: str) -> None:
    model, traced = captured(name)
    fresh, args, kwargs = build(name)
    classes = [[(key, type(value).__name__) for key, value in tree.named_modules()] for tree in (model, fresh)]
    assert classes[0] == classes[1]
    assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in model.state_dict().items())
    given = tensors((traced.args, traced.kwargs))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(given, tensors((args, kwargs)), strict=True))
    assert not model.training


@every_network
@pytest.mark.filterwarnings("ignore:The tensor attributes .*_flat_weights")  # torch, of any recurrent module
def test_captured_module_can_be_exported_again(name: str) -> None:
    _, traced = captured(name)
    exported = torch.export.export(traced.module, traced.args, traced.kwargs)
    with torch.no_grad():
        again = exported.module()(*copy.deepcopy(traced.args), **copy.deepcopy(traced.kwargs))
    assert_same(tensors(again), traced.run(traced.args, traced.kwargs))


@every_network
def test_nodes_carry_values_sources_and_modules(name: str) -> None:
    _, traced = captured(name)
    traced.module.graph.lint()
    for node in traced.module.graph.nodes:
        if not node.op.startswith("call"):
            continue
        for leaf in tensors(node.meta["val"]):
            assert all(type(size) is int for size in leaf.shape), "sizes must be concrete"
        assert isinstance(node.meta["path"], str)
    # Whatever a user wrote can be found again by file and line.
    sources = [node.meta.get("source") or "" for node in traced.module.graph.nodes if node.op.startswith("call")]
    assert any("tests/networks/" in source or "torch/nn" in source for source in sources)


@every_network
def test_no_inplace_operation_and_no_dead_code_is_left(name: str) -> None:
    _, traced = captured(name)
    for node in traced.module.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            assert not node.target._schema.is_mutable, node
        assert node.users or node.op in ("output", "placeholder"), node


@every_network
def test_copy_and_saved_state_are_the_same_function(name: str) -> None:
    _, traced = captured(name)
    twin = copy.deepcopy(traced.module)
    buffer = io.BytesIO()
    torch.save(traced.module.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert all(
        mine.data_ptr() != theirs.data_ptr()
        for mine, theirs in zip(twin.parameters(), traced.module.parameters(), strict=True)
    )
    twin.load_state_dict(state)
    assert_same(traced.with_module(twin).run(traced.args, traced.kwargs), traced.run(traced.args, traced.kwargs), 0.0)


# ---------------------------------------------------------------- what lifting must give back


def test_layers_are_modules_under_their_own_names() -> None:
    _, traced = captured("residual")
    called = {node.target for node in traced.module.graph.nodes if node.op == "call_module"}
    assert called == {"stem", "a", "norm", "b", "head"}
    assert isinstance(traced.module.get_submodule("a"), nn.Conv2d)
    assert isinstance(traced.module.get_submodule("norm"), nn.BatchNorm2d)


@pytest.mark.parametrize(
    ("name", "target", "kind"),
    [
        ("layer_norm", "norm", nn.LayerNorm),
        ("group_norm", "norm", nn.GroupNorm),
        ("rms_norm", "norm", nn.RMSNorm),
        ("prelu", "act", nn.PReLU),
        ("conv_transpose", "up", nn.ConvTranspose2d),
        ("text_classifier", "embed", nn.Embedding),
        ("dropout", "drop", nn.Dropout),
        ("lstm", "lstm", nn.LSTM),
        ("bidirectional_gru", "gru", nn.GRU),
        ("conv1d", "0", nn.Conv1d),
        ("conv3d", "1", nn.BatchNorm3d),
    ],
)
def test_layer_is_lifted_to_its_class(name: str, target: str, kind: type[nn.Module]) -> None:
    _, traced = captured(name)
    assert target in {node.target for node in traced.module.graph.nodes if node.op == "call_module"}
    assert isinstance(traced.module.get_submodule(target), kind)


def test_module_called_twice_stays_one_module() -> None:
    _, traced = captured("module_twice")
    calls = [node for node in traced.module.graph.nodes if node.op == "call_module" and node.target == "shared"]
    assert len(calls) == 2


def test_tied_weights_stay_tied() -> None:
    _, traced = captured("tied_weights")
    assert traced.module.get_parameter("embed.weight") is traced.module.get_parameter("out.weight")
    twin = copy.deepcopy(traced.module)
    assert twin.get_parameter("embed.weight") is twin.get_parameter("out.weight")


def test_subclass_of_a_layer_becomes_the_plain_operation() -> None:
    """A subclass does more than its base: lifting it to a call of the subclass would do that twice."""
    model, traced = captured("standardised_weight")
    assert not any(
        node.op == "call_module" and type(traced.module.get_submodule(str(node.target))) not in (nn.Conv2d, nn.Linear)
        for node in traced.module.graph.nodes
    )
    assert traced.module.get_parameter("ws.weight").data_ptr() == model.get_parameter("ws.weight").data_ptr()


def test_training_mode_reaches_batch_norm() -> None:
    model, args, kwargs = build("conv_chain")
    traced = trace(copy.deepcopy(model), args, kwargs=kwargs)
    model.train()
    traced.module.train()
    (x,), _ = traced.inputs(batch=5, seed=7)
    with torch.no_grad():
        assert_same([traced.module(x)], [model(x)])
    state = traced.module.state_dict()
    for key, value in model.state_dict().items():
        assert torch.allclose(state[key], value), key
    assert int(state["1.num_batches_tracked"]) == 1
    before = copy.deepcopy(state)
    traced.module.eval()
    traced.module(x)
    assert all(torch.equal(value, before[key]) for key, value in traced.module.state_dict().items())


def test_capture_of_a_model_in_training_mode_can_be_evaluated() -> None:
    model, args, kwargs = build("conv_chain")
    with torch.no_grad():
        expected = model(*args)
    traced = trace(model.train(), args, kwargs=kwargs)
    traced.module.eval()
    assert_same(traced.run(args, kwargs), [expected])


def test_dropout_drops_in_training_mode_only() -> None:
    _, args, kwargs = build("dropout")
    traced = trace(build("dropout")[0], args, kwargs=kwargs)
    still = [traced.module(*args) for _ in range(2)]
    assert torch.equal(*still)
    traced.module.train()
    moving = [traced.module(*args) for _ in range(4)]
    assert any(not torch.equal(moving[0], other) for other in moving[1:])
    traced.module.eval()
    assert torch.equal(traced.module(*args), still[0])


def test_training_step_changes_the_users_model() -> None:
    model, args, kwargs = build("residual")
    traced = trace(model, args, kwargs=kwargs)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(traced.module.parameters(), 0.1)
    traced.module(*args).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.get_parameter("stem.weight"), before["stem.weight"])


def test_printing() -> None:
    _, traced = captured("residual")
    assert "Residual" in str(traced)
    assert "dynamic batch" in str(traced)
    code = traced.module.print_readable(print_output=False)
    assert "self.stem(" in code
    assert "self.norm(" in code


def test_fingerprint_is_of_structure_not_weights() -> None:
    def fingerprint(name: str, seed: int) -> str:
        model, args, kwargs = build(name, seed=seed)
        return str(trace(model, args, kwargs=kwargs).fingerprint())

    assert fingerprint("residual", 0) == fingerprint("residual", 1)
    assert fingerprint("residual", 0) != fingerprint("residual_projection", 0)
    assert fingerprint("flip_channels", 0) != fingerprint("roll_channels", 0)


def test_fresh_inputs_are_seeded_and_valid() -> None:
    _, traced = captured("text_classifier")
    (ids,), _ = traced.inputs(batch=4, seed=3)
    assert ids.dtype == torch.int64
    assert int(ids.max()) < 9
    again, _ = traced.inputs(batch=4, seed=3)
    assert torch.equal(ids, again[0])
    assert traced.inputs(batch=4, seed=4)[0][0].tolist() != ids.tolist()


def test_single_tensor_and_batch_of_one_are_accepted() -> None:
    """An example batch of one would silently make the batch static."""
    model, (x,), _ = build("residual")
    traced = trace(model, x[:1])
    assert traced.batch_is_dynamic
    assert_same(traced.run((normal(5, 3, 8, 8),)), [model(normal(5, 3, 8, 8)).detach()])


class Alone(nn.Module):
    """Takes one sample at a time."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(1, 6) + 1


class Rows(nn.Module):
    """Takes its samples one by one."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([row * (k + 1) for k, row in enumerate(x)])


@pytest.mark.parametrize("kind", [Alone, Rows])
@pytest.mark.parametrize("named", [False, True])
def test_a_single_sample_stays_one_where_the_batch_is_static(kind: type[nn.Module], named: bool) -> None:
    x = normal(1, 6)
    traced = trace(kind(), () if named else x, kwargs={"x": x} if named else {})
    assert not traced.batch_is_dynamic
    assert traced.notes == ("the batch is static at 1: the model's code fixes it",)
    assert_same(traced.run(traced.args, traced.kwargs), [kind()(x)])


# ---------------------------------------------------------------- refusals


class Branches(nn.Module):
    """Control flow that depends on data, in a leaf."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        """Return one of two results."""
        if float((x * self.weight).sum()) > 0:
            return x * 2
        return x - 1


def message(call: Callable[[], Any], kind: type[InputError]) -> str:
    """Return the text of the error that a call raises."""
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert "\n\n" not in text, "one paragraph"
    return text


def test_model_that_cannot_be_captured_names_module_and_line() -> None:
    text = message(lambda: trace(Branches(), (normal(2, 3),)), CaptureError)
    assert "Branches" in text
    assert "test_trace.py:" in text
    assert "(x * self.weight).sum()" in text


def test_wrong_shape_names_module_and_line() -> None:
    model, _, _ = build("residual")
    text = message(lambda: trace(model, (normal(2, 5, 8, 8),)), InputError)
    assert "stem" in text
    assert "tests/networks/chains.py:" in text
    assert "5" in text


def test_wrong_number_of_inputs() -> None:
    model, _, _ = build("residual")
    text = message(lambda: trace(model, (normal(2, 3, 8, 8), normal(2, 3))), InputError)
    assert "Residual" in text


@pytest.mark.parametrize("thing", [lambda x: x, nn.Linear, "model", None], ids=["function", "class", "text", "none"])
def test_what_is_not_a_module_is_refused(thing: Any) -> None:
    text = message(lambda: trace(thing, (normal(2, 3),)), InputError)
    assert "nn.Module" in text


# ---------------------------------------------------------------- state, names and what a layer's call leaves out


class Adaptive(nn.Module):
    """A batch norm that goes by the batch in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(6, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.norm.running_mean, self.norm.running_var
        return F.batch_norm(self.layer(x), mean, var, self.norm.weight, self.norm.bias, training=True)


def test_batch_norm_by_the_batch_in_eval_mode_stays_that() -> None:
    model = Adaptive().eval()
    traced = trace(model, normal(4, 6))
    before = copy.deepcopy(model.state_dict())
    x = normal(5, 6, seed=1) * 3 + 2
    with torch.no_grad():
        assert_same(traced.run((x,)), [F.batch_norm(model.layer(x), None, None, training=True)])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert any("norm.running_mean" in note for note in traced.notes)
    assert sorted(traced.module.state_dict()) == sorted(before)


class Counting(nn.Module):
    """Keeps count of its calls, and uses that or not."""

    count: Tensor

    def __init__(self, used: bool) -> None:
        super().__init__()
        self.used, self.layer = used, nn.Linear(6, 5)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        y: Tensor = self.layer(x)
        return y * self.count if self.used else y


def test_a_model_that_depends_on_how_often_it_was_called_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"count at .*test_trace\.py.*keeps no state"):
        trace(Counting(used=True), normal(2, 6), regions=False)


def test_state_that_nothing_depends_on_is_left_out_and_said() -> None:
    model = Counting(used=False)
    traced = trace(model, normal(2, 6))
    assert any("writes into count" in note for note in traced.notes)
    with torch.no_grad():
        assert_same(traced.run(traced.args), [model.layer(*traced.args)])


class Spelled(nn.Module):
    """Constants and a buffer whose names are the same once their dots are gone."""

    a_b_c: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.a, self.a_b = nn.Linear(6, 5), nn.Module(), nn.Module()
        self.a.b_c, self.a_b.c = torch.full((5,), 2.0), torch.full((5,), 3.0)
        self.register_buffer("a_b_c", torch.full((5,), 5.0))

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.a.b_c, self.a_b.c
        assert isinstance(one, Tensor)
        assert isinstance(other, Tensor)
        y: Tensor = (self.layer(x) + self.a_b_c) * one + other * one
        return y


def test_constants_of_like_names_stay_apart() -> None:
    model = Spelled()
    traced = trace(model, normal(2, 6))
    with torch.no_grad():
        assert_same(traced.run(traced.args), [model(*traced.args)])
    assert sorted(traced.module.state_dict()) == sorted(model.state_dict())


def test_inputs_go_by_their_names_in_any_order() -> None:
    class Named(nn.Module):
        def forward(self, x: dict[str, Tensor], *, scale: Tensor, shift: Tensor) -> Tensor:
            return (x["a"] - 2 * x["b"]) * scale + shift

    model, (a, b, scale, shift) = Named(), (normal(2, 3, seed=seed) for seed in range(4))
    traced = trace(model, ({"a": a, "b": b},), kwargs={"shift": shift, "scale": scale})
    expected = model({"a": a, "b": b}, scale=scale, shift=shift)
    assert_same(traced.run(({"b": b, "a": a},), {"scale": scale, "shift": shift}), [expected])
    with pytest.raises(InputError, match="nested like its example inputs"):
        traced.run(({"a": a},), {"scale": scale, "shift": shift})


def test_another_dtype_than_the_graph_is_for_is_refused() -> None:
    class Pixels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float() / 255 if x.dtype == torch.uint8 else x

    traced = trace(Pixels(), torch.arange(12, dtype=torch.uint8).reshape(2, 6))
    for other in (torch.float32, torch.int64, torch.bool):
        with pytest.raises(InputError, match=rf"an input of torch.uint8, and {other} is given"):
            traced.run((torch.ones(2, 6, dtype=other),))
    traced = trace(Pixels(), normal(2, 6))
    assert traced.run((normal(3, 6).double(),))[0].dtype == torch.float64


def test_another_number_than_the_graph_has_is_refused() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, factor: float, mode: str = "up") -> Tensor:
            return x * factor if mode == "up" else x / factor

    x = torch.ones(2, 3)
    traced = trace(Scaled(), (x, 0.5), kwargs={"mode": "up"})
    assert torch.equal(traced.run((x, 0.5), {"mode": "up"})[0], x / 2)
    for args, mode, said in (
        ((x, 0.7), "up", "captured with 0.5 where 0.7 is given"),
        ((x, 0.5), "down", "'up' where"),
    ):
        with pytest.raises(InputError, match=said):
            traced.run(args, {"mode": mode})
    with pytest.raises(InputError, match="where a tensor is given"):
        traced.run((x, x), {"mode": "up"})


class Scaling(nn.Module):
    """Constants in the code, and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop, self.head = nn.Linear(6, 4), nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.drop(self.layer(x)) * torch.tensor([0.5, 1.0, 2.0, 4.0])
        return self.head(y) / torch.tensor(3.0)


def test_constants_in_the_code_cost_no_dropout() -> None:
    model = Scaling()
    traced = trace(model, normal(2, 6))
    assert not traced.notes
    assert isinstance(traced.module.get_submodule("drop"), nn.Dropout)
    with torch.no_grad():
        assert_same(traced.run(traced.args), [model.eval()(*traced.args)])
    assert find_groups(traced).explain("layer.weight").units == 4


class HalfCast(nn.Module):
    """Computes its first layers under autocast, with gradients off in a part of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.head = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            y = self.norm(self.layer(x)).relu()
        found: Tensor = self.head(y.float())
        return found


def test_autocast_is_written_out_as_the_casts_that_it_is() -> None:
    model = HalfCast().eval()
    traced = trace(model, normal(2, 6))
    assert traced.regions is None
    with torch.no_grad():
        assert_same(traced.run(traced.args), [model(*traced.args)], 0.0)
    assert sorted(traced.module.state_dict()) == sorted(model.state_dict())
    assert find_groups(traced).explain("layer.weight").units == 8


class Choosing(nn.Module):
    """Control flow that is part of the graph."""

    def forward(self, x: Tensor) -> Tensor:
        chosen: Tensor = torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))
        return chosen


class Mapped(nn.Module):
    """A function transform, whose values have no memory of their own."""

    def forward(self, x: Tensor) -> Tensor:
        mapped: Tensor = torch.vmap(lambda row: row.add(1).sum())(x)
        return mapped


@pytest.mark.parametrize(("model", "said"), [(Choosing(), "cond"), (Mapped(), "Mapped")])
def test_what_cannot_be_rewritten_is_refused(model: nn.Module, said: str) -> None:
    with pytest.raises(CaptureError, match=said):
        trace(model, normal(2, 6))
