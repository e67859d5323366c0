"""Networks that people write by hand: each cuts, exactly, and what stays says why."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from tools._oddity_table import ODDITIES
from tools.oddities import check, markdown

WORDS = {
    "attention": "is nn.MultiheadAttention, which has one width",
    "computes": "computes something else than the graph",
    "width": "A width is written into the code there",
}


@dataclass(frozen=True)
class Expected:
    """What has to come of a network.

    Attributes:
        units: How many units it has at least.
        macs: The share of its multiply-accumulates that is left at most, when half of the units go.
        eager: Why its own code does not take the cut weights ("" where it does); a key of ``WORDS``.
        stays: Dimensions of which nothing can be removed, with words of the reason.
    """

    units: int
    macs: float
    eager: str = ""
    stays: dict[str, str] = field(default_factory=dict)


EXPECTED = {
    "patches": Expected(20, 0.43),
    "windows": Expected(15, 0.31, "width"),
    "groups_as_batch": Expected(22, 0.32, "width"),
    "space_to_depth": Expected(6, 0.39),
    "involution": Expected(24, 0.44),
    "unfold_fold": Expected(36, 0.33),
    "spatial_transformer": Expected(24, 0.43, "", {"where.bias:0": "its entries are coordinates of an affine map"}),
    "deformable": Expected(36, 0.39, "", {"offset.weight:0": "coordinate"}),
    "deformable_groups": Expected(19, 0.33, "", {"mask.weight:0": "coordinate"}),
    "style_gan": Expected(46, 0.29, "", {"start:2": "a space dimension"}),
    "style_scaled": Expected(46, 0.29, "", {"start:2": "a space dimension"}),
    "dcgan": Expected(24, 0.37),
    "unet_concat": Expected(80, 0.28),
    "unet_add": Expected(56, 0.29),
    "net1d": Expected(28, 0.29),
    "net3d": Expected(30, 0.4),
    "hyper_network": Expected(22, 0.49, "width", {"head.weight:1": "another factor"}),
    "hyper_linear": Expected(10, 0.6, "width", {"first.bias:0": "another factor"}),
    "dynamic_conv": Expected(32, 0.29),
    "standardised": Expected(24, 0.29),
    "standardised_by_batch_norm": Expected(36, 0.29, "computes"),
    "weight_norm": Expected(36, 0.29),
    "weight_norm_by_hook": Expected(36, 0.29),
    "spectral_norm": Expected(36, 0.29),
    "spectral_norm_by_hook": Expected(36, 0.29),
    "orthogonal": Expected(
        12, 0.52, "", {"2.parametrizations.weight.original:0": "no rule for aten.matrix_exp.default"}
    ),
    "symmetric": Expected(12, 0.37),
    "lora": Expected(32, 0.2),
    "listed": Expected(28, 0.36),
    "scales": Expected(24, 0.43),
    "joined": Expected(26, 0.36),
    "joined_attention": Expected(15, 0.23, "width"),
    "tied_autoencoder": Expected(24, 0.36),
    "tied_conv": Expected(20, 0.3),
    "shared_depth": Expected(24, 0.27),
    "subclasses": Expected(36, 0.36),
    "mixed_kernels": Expected(20, 0.47, "width"),
    "split_attention": Expected(38, 0.29, "width"),
    "positions_of_rows": Expected(22, 0.45, "width", {"layer.rows:1": "another factor"}),
    "channel_conv": Expected(8, 0.89, "", {"stem.weight:0": "a space dimension"}),
    "response_norm": Expected(36, 0.35),
    "point_net": Expected(36, 0.35),
    "point_segmentation": Expected(20, 0.39),
    "graph_convolution": Expected(20, 0.43),
    "message_passing": Expected(28, 0.29),
    "slot_attention": Expected(43, 0.14, "width"),
    "perceiver": Expected(
        42,
        0.32,
        "attention",
        {"latents:0": "a reshape from (4, 2, 3, 4) to (8, 12) moves it elsewhere at other batch sizes"},
    ),
    "encoder_decoder": Expected(57, 0.47, "attention"),
    "couplings": Expected(32, 0.51),
    "glow": Expected(16, 0.53),
    "variational": Expected(32, 0.51, "", {"latent.bias:0": "a random number is drawn for each of its indices"}),
    "codebook": Expected(32, 0.34, "", {"codes.weight:0": "the position of the extreme value has a meaning"}),
    "diffusion": Expected(22, 0.37, "computes"),
    "capsules": Expected(
        16, 0.37, "width", {"votes:2": "one of its indices is picked by number", "votes:3": "another factor"}
    ),
    "unpooled": Expected(8, 0.41),
    "sinc": Expected(20, 0.3),
    "hyena": Expected(26, 0.42),
    "complex_recurrence": Expected(18, 0.37),
    "retention": Expected(11, 0.3, "width"),
    "conformer": Expected(20, 0.31),
    "highway": Expected(12, 0.3),
    "octave": Expected(44, 0.3),
    "projected": Expected(
        5, 0.53, "", {"lstm.weight_ih_l0:0": "a projected cell keeps its units; its projection can be cut"}
    ),
    "bahdanau": Expected(18, 0.34),
    "keep_largest": Expected(8, 0.69, "", {"up.bias:0": "aten.topk.default depends on the order of the indices"}),
    "masked_autoencoder": Expected(65, 0.27, "attention"),
    "lstm": Expected(20, 0.27),
    "gru": Expected(12, 0.29, "", {"start:0": "a layer, direction or sample of a recurrent layer"}),
    "bidirectional": Expected(8, 0.37),
    "gru_cells": Expected(18, 0.28),
    "rnn_cells": Expected(18, 0.31),
    "lstm_cells": Expected(18, 0.31),
    "lstm_by_hand": Expected(10, 0.35, "width"),
    "selective_scan": Expected(23, 0.39, "width"),
    "attention_kdim_vdim": Expected(49, 0.27, "attention"),
    "attention_bias_kv": Expected(31, 0.27, "attention"),
    "attention_zero": Expected(36, 0.34, "attention"),
    "rotary": Expected(13, 0.22, "width"),
    "rotary_complex": Expected(13, 0.22, "width"),
    "g_mlp": Expected(20, 0.33),
    "mixer": Expected(44, 0.36),
    "experts_einsum": Expected(24, 0.16),
    "experts_bmm": Expected(24, 0.15, "width"),
    "experts_list": Expected(44, 0.28, "", {"router.bias:0": "a single channel is picked by number"}),
    "experts_topk": Expected(
        20,
        0.31,
        "",
        {"up:0": "indexed by a tensor", "router.bias:0": "aten.topk.default depends on the order of the indices"},
    ),
    "mixtral": Expected(
        42,
        0.29,
        "width",
        {
            "model.layers.0.mlp.experts.gate_up_proj:0": "which expert a row goes to is known only at run time",
            "model.embed_tokens.weight:0": "its rows are looked up by id",
            "model.layers.0.mlp.gate.weight:0": "aten.topk.default depends on the order of the indices",
        },
    ),
    "qwen3_moe": Expected(
        30,
        0.3,
        "width",
        {
            "model.layers.0.self_attn.q_norm.weight:0": "another factor",
            "model.layers.0.mlp.experts.gate_up_proj:0": "which expert a row goes to is known only at run time",
            "model.embed_tokens.weight:0": "its rows are looked up by id",
            "model.layers.0.mlp.gate.weight:0": "aten.topk.default depends on the order of the indices",
        },
    ),
    "embedding_bag_sum": Expected(20, 0.34, "", {"bag.weight:0": "its rows are looked up by id"}),
    "embedding_bag_mean": Expected(20, 0.34, "", {"bag.weight:0": "its rows are looked up by id"}),
    "embedding_bag_max": Expected(20, 0.34, "", {"bag.weight:0": "its rows are looked up by id"}),
    "embedding_bag_offsets": Expected(20, 0.35, "", {"bag.weight:0": "its rows are looked up by id"}),
    "embedding_bag_weighted": Expected(20, 0.34, "", {"bag.weight:0": "its rows are looked up by id"}),
    "speech": Expected(38, 0.3),
    "wave_net": Expected(50, 0.27),
    "kan": Expected(15, 0.26),
    "nerf": Expected(27, 0.22),
    "bilinear": Expected(30, 0.19),
    "fourier": Expected(20, 0.35, "", {"weight:2": "its two entries are the parts of a complex number"}),
    "f_net": Expected(16, 0.59, "", {"embed.bias:0": "a Fourier transform reads it by position"}),
}


def test_the_table_names_every_network() -> None:
    assert list(EXPECTED) == list(ODDITIES)
    assert all(expected.units > 0 and expected.macs < 1 for expected in EXPECTED.values())


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.filterwarnings("ignore")
def test_an_oddity(name: str) -> None:
    expected, oddity = EXPECTED[name], ODDITIES[name]
    if oddity.needs:
        pytest.importorskip(oddity.needs, reason="the network is built with it")
    torch.set_num_threads(1)
    found = check(oddity)
    assert found.units >= expected.units
    assert found.macs <= expected.macs
    assert found.error <= 1e-9
    if expected.eager:
        assert found.eager is None
        assert WORDS[expected.eager] in found.refused
    else:
        assert found.eager is not None, found.refused
        assert found.eager <= 1e-4  # in float32, where the code cannot run in float64
    reasons = {place: why for why, places in found.stays.items() for place in places}
    for place, words in expected.stays.items():
        assert words in reasons[place]


def test_the_page_says_what_stays_and_whose_code_does_not_take_the_weights() -> None:
    names = ("bilinear", "lstm_by_hand", "attention_zero")
    page = markdown({name: check(ODDITIES[name]) for name in names})
    assert "3 of 3 can be cut" in page
    assert "| `nn.Bilinear` | 30 | 18% |" in page
    assert "a width in its code: `i, f, g, o = self.gates" in page
    assert "`nn.MultiheadAttention` has one width for all of its parts" in page
