"""What is a removable layer, told by how values flow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxprune.capture import Traced, trace
from fxprune.depth import Layers, find_layers
from fxprune.errors import InputError
from tests.depth.networks import CrossAttention, Parallel, Residual, Shared, Tail, Unet, conv

IMAGE = torch.randn(2, 3, 8, 8)


def found(*parts: nn.Module, example: object = IMAGE, level: str = "layer") -> Layers:
    model = nn.Sequential(*parts) if len(parts) > 1 else parts[0]
    return find_layers(trace(model.eval(), example), level)  # type: ignore[arg-type]


def reasons(layers: Layers) -> dict[str, str]:
    return {skip.place: skip.why for skip in layers.refused}


def test_a_branch_is_what_stands_between_a_value_and_the_sum() -> None:
    layers = found(conv(3, 4), Residual(nn.Sequential(conv(4, 4), nn.Conv2d(4, 4, 1)), nn.ReLU()), Tail(4))
    (layer,) = layers
    assert (layer.name, layer.kind) == ("1.branch", "branch")
    assert layer.parameters == tuple(
        f"1.branch.{n}" for n in ("0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias", "1.weight", "1.bias")
    )
    assert layer.params == 4 * 4 * 9 + 4 + 8 + 4 * 4 + 4
    assert layer.macs == 64 * (4 * 4 * 9 + 4 * 4)
    assert layer.source == "relu"
    assert set(layer.nodes).isdisjoint((layer.source, layer.output))


@pytest.mark.parametrize("swapped", [False, True])
def test_the_order_of_the_summands_does_not_matter(swapped: bool) -> None:
    layers = found(conv(3, 4), Residual(nn.Conv2d(4, 4, 1), swapped=swapped), Tail(4))
    assert layers.names == ["1.branch"]


def test_a_projection_is_no_identity() -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    layers = found(Projected(), Tail(4))
    assert not len(layers)
    assert "none of its summands (0.a, 0.b) is an identity" in reasons(layers)["add"]


def test_a_branch_that_is_read_elsewhere_stays() -> None:
    class Hooked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b, self.head = conv(3, 4), conv(4, 4), nn.Conv2d(4, 4, 1), Tail(4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.stem(x)
            feature = self.a(x)
            return self.head(x + self.b(feature)), feature

    layers = found(Hooked())
    assert not len(layers)
    assert "is also read by the outputs, outside of it" in reasons(layers)["b"]


@pytest.mark.parametrize("order", [0, 1, 2])
def test_parallel_branches_of_one_sum(order: int) -> None:
    layers = found(nn.Linear(5, 6), Parallel(6, order), nn.Linear(6, 2), example=torch.randn(2, 5))
    assert sorted(layers.names) == ["1.one", "1.other"]


def test_what_cross_attention_reads_stays() -> None:
    layers = found(CrossAttention(), example=(torch.randn(2, 3, 8), torch.randn(2, 5, 8)))
    assert layers.names == ["attention.0", "attention.1"]
    assert not any(name.startswith("encoder") for layer in layers for name in layer.parameters)


def test_an_input_that_nothing_else_reads_keeps_its_layer() -> None:
    layers = found(CrossAttention(layers=1), example=(torch.randn(2, 3, 8), torch.randn(2, 5, 8)))
    assert not len(layers)
    assert "nothing else reads the input context" in reasons(layers)["attention.0"]


def test_sequences_of_a_plain_network() -> None:
    layers = found(
        conv(3, 4),
        conv(4, 4),
        conv(4, 8, stride=2),
        conv(8, 8, 1),
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        Tail(8),
    )
    assert [(layer.name, layer.kind) for layer in layers] == [("1.0", "sequence"), ("3.0", "sequence")]
    why = reasons(layers)
    assert "changes the channels from 3 to 4" in why["0.0"]
    assert "padding does not keep the size" in why["4"]
    assert "depthwise" in why["5"]


def test_a_stride_is_no_sequence() -> None:
    assert "stride 2x2" in reasons(found(conv(3, 4), conv(4, 4, stride=2), Tail(4)))["1.0"]


def test_a_layer_beside_another_way_is_no_sequence() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = conv(3, 4), conv(4, 4), conv(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return torch.cat([self.a(x), self.b(x)], 1)

    layers = found(Two(), Tail(8))
    assert not len(layers)
    assert "another way leads around it into cat" in reasons(layers)["0.a.0"]


def test_skips_of_a_unet_are_no_layers_and_what_lies_between_may_go() -> None:
    layers = found(Unet(), example=torch.randn(2, 3, 16, 16))
    assert layers.names == ["keep.0", "deep.0"]


def test_dense_layers_stay() -> None:
    class Dense(nn.Module):
        def __init__(self, inputs: int) -> None:
            super().__init__()
            self.a, self.b = conv(inputs, inputs, 1), conv(inputs, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, self.b(self.a(x))], 1)

    assert not len(found(Dense(3), Dense(7), Tail(11)))


def test_the_sum_of_input_and_output_is_the_whole_network() -> None:
    layers = found(Residual(nn.Sequential(conv(3, 8), conv(8, 8), conv(8, 8), nn.Conv2d(8, 3, 3, padding=1))))
    assert layers.names == ["branch.1.0", "branch.2.0"]
    assert any("nothing would be left" in skip.why for skip in layers.refused)


def test_a_skip_over_many_branches_is_no_layer() -> None:
    body = (Residual(nn.Sequential(conv(4, 4), nn.Conv2d(4, 4, 1))) for _ in range(3))
    layers = found(conv(3, 4), Residual(nn.Sequential(*body, nn.Conv2d(4, 4, 1))), Tail(4))
    assert layers.names == ["1.branch.0.branch", "1.branch.1.branch", "1.branch.2.branch", "1.branch.3"]
    with pytest.raises(InputError, match=r"no removable layer '1\.branch'"):
        layers.named(["1.branch"])


def test_a_position_embedding_cut_to_length_is_no_branch() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.fc = nn.Parameter(torch.randn(16, 6)), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.fc(x)
            return x + self.table[: x.shape[1]]

    assert not len(found(Positions(), nn.Linear(6, 2), example=torch.randn(2, 5, 6)))


def test_a_formula_without_layers_is_no_branch() -> None:
    class Cubic(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.04 * x**3

    assert not len(found(nn.Linear(5, 6), Cubic(), nn.Linear(6, 2), example=torch.randn(2, 5)))


def test_blocks_repeat_and_have_their_modules_names() -> None:
    class Unit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.work = nn.Sequential(nn.Linear(3, 3), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            a, b = x.chunk(2, 1)
            return torch.cat([self.work(b), a], 1)

    layers = found(nn.Linear(4, 6), Unit(), Unit(), Unit(), nn.Linear(6, 2), example=torch.randn(2, 4))
    assert [(layer.name, layer.kind) for layer in layers] == [(n, "block") for n in "123"]


def test_a_block_begins_with_its_layer() -> None:
    def plain(inputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(inputs, 6), nn.ReLU())

    layers = found(plain(4), plain(6), plain(6), plain(6), nn.Linear(6, 2), example=torch.randn(2, 4))
    assert layers.names == ["1", "2", "3"]
    convs = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), *(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()) for _ in range(3))
    )
    assert found(convs, Tail(4)).names == found(convs, Tail(4), level="block").names == [f"0.{n}.0" for n in (2, 3, 4)]


def test_a_residual_block_is_its_branches_or_one() -> None:
    blocks = [
        nn.Sequential(
            Residual(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6))),
            Residual(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 6))),
        )
        for _ in range(3)
    ]
    model = (nn.Linear(5, 6), *blocks, nn.Linear(6, 2))
    example = torch.randn(2, 5)
    small, large = found(*model, example=example), found(*model, example=example, level="block")
    assert len(small) == 6
    assert large.names == ["1", "2", "3"]
    assert [layer.params for layer in large] == [sum(p.numel() for p in block.parameters()) for block in blocks]


def test_each_call_of_a_shared_layer_is_one_and_saves_no_parameters() -> None:
    layers = found(Shared(), example=torch.randn(2, 6))
    assert layers.names == ["layer.branch.1", "layer.branch.1#2", "layer.branch.1#3"]
    assert [layer.params for layer in layers] == [0, 0, 0]


def test_unknown_names_and_levels() -> None:
    traced = trace(nn.Sequential(conv(3, 4), conv(4, 4), Tail(4)).eval(), IMAGE)
    layers = find_layers(traced)
    with pytest.raises(InputError, match=r"no removable layer '1.1'.*Nearest are 1.0"):
        layers.named(["1.1"])
    with pytest.raises(InputError, match=r"0.0 cannot be removed: it changes the channels"):
        layers.named(["0.0"])
    with pytest.raises(InputError, match="level='stage' is not known"):
        find_layers(traced, "stage")  # type: ignore[arg-type]


def test_nothing_is_changed_by_looking() -> None:
    traced: Traced = trace(nn.Sequential(conv(3, 4), conv(4, 4), Tail(4)).eval(), IMAGE)
    before = traced.fingerprint()
    find_layers(traced)
    assert traced.fingerprint() == before
