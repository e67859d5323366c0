"""Sizes at a batch that nothing fits by chance: from the exporter's symbols, and from running the graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxprune.capture import Scaled, Traced, propagate, trace
from fxprune.capture.propagate import KEY
from fxprune.capture.scaled import TIMES
from fxprune.channels import find_groups
from tests.networks import captured

SOME = [
    "linear_chain",
    "concat_width",
    "slice_part",
    "index_buffer",
    "width_linear",
    "pixel_shuffle",
    "grouped_conv",
    "grouped_transposed",
    "swi_glu_packed",
    "group_norm_shared",
    "prelu",
    "attention_sdpa",
    "attention_grouped_expand",
    "shared_head",
    "pad_channels",
    "two_towers",
    "repeat_channels",
    "einsum_ellipsis",
    "lstm",
    "upsample",
    "softmax_channels",
    "matrix_inverse",
    "inplace_copy",
    "triplet_attention",
    "std_and_norm_over_channels",
    "low_rank_update",
    "bilinear_layer",
    "temporal_shift",
    "repeat_to_size",
    "lstm_cell",
    "instance_norm_of_tokens",
    "modulated",
    "attention_rotary_complex",
    "attention_windowed",
    "cross_attention",
]  # of every family


def noted(traced: Traced) -> dict[str, tuple[int, ...]]:
    """Return what every node notes of its sizes."""
    return {node.name: node.meta[KEY] for node in traced.module.graph.nodes if KEY in node.meta}


@pytest.mark.parametrize("name", SOME)
def test_symbols_and_a_run_agree(name: str) -> None:
    _, traced = captured(name)
    if not traced.batch_is_dynamic:
        pytest.skip("static")
    nodes = [node for node in traced.module.graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    before = noted(traced)
    propagate(traced.module, traced.args, traced.kwargs)
    assert set(noted(traced)) <= {node.name for node in traced.module.graph.find_nodes(op="placeholder")}
    (found,) = Scaled(traced).sizes(*nodes)
    after = dict(zip([node.name for node in nodes], found, strict=True))
    assert {key: after[key] for key in before} == before
    assert any(size % TIMES == 0 for sizes in found for size in sizes if size)


class Segments(nn.Module):
    """Samples in groups of eight: no other batch is possible, and the example has a single group."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = x.view(x.shape[0] // 8, 8, *x.shape[1:])
        y = torch.cat([y[:, 1:], y[:, :1]], 1)
        return self.head(y.reshape(x.shape))  # type: ignore[no-any-return]


@pytest.mark.parametrize("batch", [8, 16])
def test_samples_in_groups_do_not_freeze_channels(batch: int) -> None:
    traced = trace(Segments(), torch.randn(batch, 3, 4, 4))
    assert find_groups(traced).live.sum() == 8


def test_a_static_batch_has_the_sizes_of_the_example() -> None:
    traced = trace(Segments(), torch.randn(8, 3, 4, 4), dynamic_batch=False)
    node = traced.module.graph.find_nodes(op="placeholder")[0]
    assert list(Scaled(traced).sizes(node)) == [((8, 3, 4, 4),)]


def test_a_graph_that_does_not_run_at_another_batch_has_no_sizes() -> None:
    traced = trace(Segments(), torch.randn(16, 3, 4, 4))
    node = traced.module.graph.find_nodes(op="call_module")[0]
    for other in traced.module.graph.nodes:
        other.meta.pop(KEY, None)
    traced.module.get_submodule("a").weight.data = torch.zeros(8, 5, 1, 1)  # type: ignore[union-attr]
    assert not list(Scaled(traced).sizes(node))


class Scales(nn.Module):
    """Takes a number beside a tensor."""

    def forward(self, x: Tensor, factor: float) -> Tensor:
        return x * factor


def test_inputs_that_are_no_tensors_have_no_batch() -> None:
    traced = trace(Scales(), (torch.randn(2, 3), 2.0))
    assert traced.batch_is_dynamic
