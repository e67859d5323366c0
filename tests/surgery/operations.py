"""A call of every operation that the rule table knows, as data: what one-operation networks are built from.

``$h $g $k`` are images with 8 channels, ``$s`` a sequence, ``$v`` a volume, ``$t $u`` tokens and their transpose,
``$z`` one number per channel, ``$m $n`` masks, ``$x`` the input, ``$B`` the batch; ``$p:8,6`` is a parameter of that
shape, ``$f:8`` a buffer of positive numbers, ``$i:5,1`` one of positions. A tuple that begins with ``!name`` is a call
of its own. What is not listed is tried on one, two or three images, and on an image and a number.
"""

from __future__ import annotations

from typing import Any

from torch import nn

Call = tuple[Any, ...]
IMAGE = ["$B", 8, 4, 4]
ONE, OTHER = ("!select", "$t", 1, 0), ("!select", "$a", 1, 1)  # a token of each sample
LOW = ("!argsort", ("!slice", "$g", 2, 0, 3), 2)  # places in the first three rows
STATE = ("!linear", OTHER, "$p:5,8")
DIM = [("$h", 1), ("$h", 2)]
DIMS = [("$h", [1]), ("$h", [2, 3]), ("$h", [1], True), ("$h", [1, 2, 3])]
SHAPES = [
    ("$h", ["$B", 8, 16]),
    ("$h", ["$B", 2, 4, 4, 4]),
    ("$h", ["$B", -1]),
    ("$h", [-1, 4, 4]),
    ("$t", ["$B", 40]),
]
SWAP = [("$h", 1, 2), ("$h", 0, 1)]
MASKS = [("$m", "$n")]
PADS = [(f"${'shv'[n - 1]}", [1, 1] * n) for n in (1, 2, 3)]


def each(names: str, calls: list[Call]) -> dict[str, list[Call]]:
    """Return the same calls for several operations."""
    return dict.fromkeys(names.split(), calls)


def space(names: str, *rest: Any, sizes: tuple[int, int, int]) -> dict[str, list[Call]]:
    """Return calls of 1d, 2d and 3d operations with one size per dimension of space."""
    found = {}
    for name in names.split():
        for n in (1, 2, 3):
            if f"{n}d" in name or "{}" in name:
                found[name.format(n)] = [(f"${'shv'[n - 1]}", [sizes[n - 1]] * n, *rest)]
    return found


CALLS: dict[str, list[Call]] = {
    **each("cumsum softmax log_softmax softmin unbind glu sort argsort", DIM),
    **each("any all", [("$m", 1), ("$m", 2), ("$m",)]),
    **each("mean sum amax amin var std logsumexp", DIMS),
    **each("prod", [("$h", 1), ("$h", 2, True)]),
    **each("norm", [("$h", 2, [1]), ("$h", 2, [2, 3], True)]),
    **each("linalg_vector_norm", [("$h", 2, [1]), ("$h", float("inf"), [1, 2])]),
    **each("max min", [("$h",), ("$h", "$g"), ("$h", 2)]),
    **each("argmax argmin", [("$h", 2), ("$h", 1), ("$h",)]),
    "_softmax": [("$h", 1, False)],
    "topk": [("$h", 2, 1)],
    "acosh": [(("!add", "$h", 1.0),)],
    **each("dropout feature_dropout alpha_dropout feature_alpha_dropout native_dropout", [("$h", 0.5, False)]),
    "rrelu": [(("!sub", "$h", 0.5),)],
    "threshold": [("$h", 0.3, 0.1)],
    "masked_fill": [("$h", "$m", 0.5)],
    "where": [("$m", "$h", "$g")],
    "bitwise_not": [("$m",)],
    **each("bitwise_and bitwise_or bitwise_xor __and__ __or__ __xor__", MASKS),
    "conv1d": [("$s", "$p:6,8,3"), ("$s", "$p:6,4,3", "$p:6", [1], [0], [1], 2)],
    "conv2d": [
        ("$h", "$p:6,8,1,1", "$p:6"),
        ("$h", "$p:8,1,1,1", "$p:8", [1, 1], [0, 0], [1, 1], 8),
        ("$h", "$p:6,4,1,1", None, [1, 1], [0, 0], [1, 1], 2),
    ],
    "conv3d": [("$v", "$p:6,8,1,1,1"), ("$v", "$p:6,4,1,1,1", None, [1, 1, 1], [0, 0, 0], [1, 1, 1], 2)],
    "conv_transpose1d": [("$s", "$p:8,6,2"), ("$s", "$p:8,3,2", "$p:6", [1], [0], [0], 2)],
    "conv_transpose2d": [("$h", "$p:8,6,2,2"), ("$h", "$p:8,3,2,2", "$p:6", [1, 1], [0, 0], [0, 0], 2)],
    "conv_transpose3d": [("$v", "$p:8,6,1,1,1"), ("$v", "$p:8,3,1,1,1", None, [1] * 3, [0] * 3, [0] * 3, 2)],
    "linear": [("$t", "$p:6,8", "$p:6"), ("$t", "$p:6,8")],
    "embedding": [("$p:9,8", "$i:1,4,2")],
    "_weight_norm": [("$p:8,6", "$p:8,1", 0), ("$p:8,6", "$p:1,6", 1), ("$p:8,6", ("!select", "$p:1", 0, 0), -1)],
    "matmul": [("$t", "$p:8,6"), ("$t", "$u"), ("$u", "$t"), ("$h", "$g")],
    "bmm": [("$t", "$u"), ("$u", "$t")],
    "mm": [("$p:5,8", "$p:8,6")],
    "mv": [("$p:5,8", "$p:8")],
    **each("dot vdot", [("$p:8", "$p:8")]),
    "bilinear": [("$t", "$a", "$p:7,8,8", "$p:7"), ("$t", "$t", "$p:7,8,8")],
    **each("gru_cell", [(ONE, STATE, "$p:15,8", "$p:15,5", "$p:15", "$p:15"), (ONE, STATE, "$p:15,8", "$p:15,5")]),
    **each("rnn_tanh_cell rnn_relu_cell", [(ONE, STATE, "$p:5,8", "$p:5,5", "$p:5", "$p:5")]),
    "lstm_cell": [(ONE, [STATE, ("!linear", OTHER, "$p:5,8")], "$p:20,8", "$p:20,5", "$p:20", "$p:20")],
    "embedding_bag": [("$p:9,8", "$i:1,4,2,2", "$i:0,2", False, mode) for mode in (0, 1, 2)],
    "addmm": [("$p:6", "$p:5,8", "$p:8,6")],
    **each("baddbmm", [("$p:5", "$t", "$u"), ("$p:8,8", "$u", "$t")]),
    "addbmm": [("$p:5,5", "$t", "$u")],
    "einsum": [("btc,dc->btd", ["$t", "$p:6,8"]), ("bchw,bcij->bhwij", ["$h", "$g"]), ("bchw,bchw->bc", ["$h", "$g"])],
    "scaled_dot_product_attention": [("$h", "$g", "$k"), ("$t", "$t", "$t")],
    "reshape": SHAPES,
    **each("view _unsafe_view", [(("!contiguous", source), sizes) for source, sizes in SHAPES]),
    "view_as": [("$h", "$g")],
    "reshape_as": [("$h", ("!reshape", "$g", ["$B", 8, 16]))],
    "flatten": [("$h", 1), ("$h", 1, 2), ("$h", 2), ("$h", 0, 1)],
    "unflatten": [("$h", 1, [2, 4]), ("$h", 1, [-1, 4]), ("$h", 2, [2, 2])],
    "squeeze": [("$z",), ("$z", -1), ("$z", [2, 3]), ("$h", 1)],
    "unsqueeze": [("$h", 1), ("$h", -1)],
    "permute": [("$h", [0, 2, 3, 1]), ("$h", [1, 0, 2, 3])],
    **each("transpose swapaxes swapdims movedim moveaxis", SWAP),
    **each("t numpy_T", [("$p:8,6",)]),
    **each("mT mH adjoint", [("$t",)]),
    **each("triu tril", [("$p:8,8",), ("$p:8,8", 1), ("$p:8,8", -1), ("$p:8,8", 2), ("$p:6,8",), ("$h",)]),
    **each("complex polar", [("$h", "$g")]),
    **each("view_as_real imag resolve_conj _conj conj", [(("!complex", "$h", "$g"),)]),
    "view_as_complex": [(("!contiguous", ("!reshape", "$h", ["$B", 8, 8, 2])),)],
    **each("fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft", [("$h", None, 2), ("$h", None, 1), ("$h",)]),
    **each("fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_hfft2 fft_ihfft2", [("$h",), ("$h", None, [1, 2])]),
    **each("fft_fftn fft_ifftn fft_rfftn fft_irfftn fft_hfftn fft_ihfftn", [("$h", None, [2]), ("$h", [4, 4], None)]),
    **each("fft_fftshift fft_ifftshift", [("$h", [2]), ("$h",)]),
    "affine_grid_generator": [(("!expand", "$p:1,2,3", ["$B", 2, 3]), ["$B", 8, 4, 4], False)],
    "expand": [("$z", IMAGE), ("$z", [-1, -1, 4, 4]), ("$p:1,8,1", ["$B", 8, 5]), ("$p:1,1,5", ["$B", 8, 5])],
    "expand_as": [("$z", "$h"), ("$p:8,1,1", "$h")],
    **each("repeat tile", [("$h", [1, 2, 1, 1]), ("$h", [1, 1, 2, 1]), ("$p:1,8", ["$B", 1])]),
    "repeat_interleave": [("$h", 2, 1), ("$h", 2, 2)],
    **each("cat concat concatenate", [(["$h", "$g"], 1), (["$h", "$x"], 1), (["$h", "$g"], 2), (["$h", "$g"], 0)]),
    "stack": [(["$h", "$g"], 1), (["$h", "$g"], 2)],
    **each("chunk split tensor_split", [("$h", 2, 1), ("$h", 3, 1), ("$h", 2, 2)]),
    "split_with_sizes": [("$h", [3, 5], 1), ("$h", [1, 3], 2)],
    "select": [("$h", 1, 3), ("$h", 2, 1)],
    "slice": [("$h", 1, 2, 7), ("$h", 1, 1, 8, 2), ("$h", 2, 1, 3), ("$h", 1, -3)],
    "narrow": [("$h", 1, 2, 4), ("$h", 2, 1, 2)],
    "index_select": [("$h", 1, "$i:5,1,1,3"), ("$h", 2, "$i:2,0")],
    "index": [("$h", [None, "$i:5,1,1,3"]), ("$h", [None, None, "$i:2,0"]), ("$h", [None, "$i:5,1", "$i:2,0"])],
    "flip": [("$h", [1]), ("$h", [2]), ("$h", [1, 3])],
    "roll": [("$h", [3], [1]), ("$h", [-2], [1]), ("$h", [1], [2]), ("$h", [2])],
    "pad": [("$h", [0, 0, 0, 0, 1, 2]), ("$h", [1, 1]), ("$h", [1, 1, 1, 1], "reflect"), ("$h", [0, 0, 0, 0, -1, 0])],
    "constant_pad_nd": [("$h", [0, 0, 0, 0, 1, 2], 0.0), ("$h", [1, 1], 0.5), ("$h", [0, 0, 0, 0, 1, 2], 0.5)],
    **each("pixel_shuffle pixel_unshuffle", [("$h", 2)]),
    "im2col": [("$h", [2, 2], [1, 1], [0, 0], [1, 1])],
    "col2im": [("$s", [4, 4], [2, 2], [1, 1], [0, 0], [2, 2])],
    "channel_shuffle": [("$h", 2), ("$h", 4)],
    "slice_scatter": [("$h", ("!slice", "$g", 1, 0, 3), 1, 2, 5), ("$h", ("!slice", "$g", 2, 0, 2), 2, 1, 3)],
    "select_scatter": [("$h", ("!select", "$g", 1, 0), 1, 2), ("$h", ("!select", "$g", 2, 0), 2, 1)],
    **each("zeros ones empty rand randn", [(IMAGE,)]),
    "randint": [(9, IMAGE)],
    "randn_like": [("$h",)],
    "randint_like": [("$h", 9)],
    **each("new_zeros new_ones new_empty", [("$h", IMAGE)]),
    "full": [(IMAGE, 0.5)],
    "new_full": [("$h", IMAGE, 0.5)],
    "arange": [(4,)],
    "linspace": [(0, 1, 5)],
    "eye": [(4,)],
    "scalar_tensor": [(0.5,)],
    "batch_norm": [
        ("$h", "$p:8", "$p:8", "$f:8", "$f:8", False, 0.1, 1e-5, False),
        ("$t", "$p:5", "$p:5", None, None, True, 0.1, 1e-5, False),
    ],
    "instance_norm": [
        ("$h", *[None] * 4, True, 0.1, 1e-5, False),
        ("$h", "$p:8", "$p:8", None, None, True, 0.1, 1e-5, False),
        ("$t", "$p:5", "$p:5", None, None, True, 0.1, 1e-5, False),
    ],
    "prelu": [(("!sub", "$h", 0.5), "$p:8")],
    "layer_norm": [("$t", [8], "$p:8", "$p:8"), ("$t", [8])],
    "rms_norm": [("$t", [8], "$p:8"), ("$t", [8])],
    "group_norm": [("$h", 2, "$p:8", "$p:8"), ("$h", 1), ("$h", 4), ("$t", 5, "$p:5", "$p:5"), ("$t", 1)],
    **space("max_pool{} avg_pool{}".replace("{}", "{}d"), sizes=(2, 2, 2)),
    **space("adaptive_avg_pool{}d adaptive_max_pool{}d _adaptive_avg_pool2d _adaptive_avg_pool3d", sizes=(2, 2, 2)),
    **space("max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices", sizes=(2, 2, 2)),
    **space("upsample_nearest{}d _upsample_nearest_exact{}d", sizes=(8, 8, 4)),
    **space("upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d", False, sizes=(8, 8, 4)),
    **space("_upsample_bicubic2d_aa _upsample_bilinear2d_aa", False, sizes=(8, 8, 4)),
    **{f"{kind}_pad{n}d": [PADS[n - 1]] for kind in ("reflection", "replication") for n in (1, 2, 3)},
    "grid_sampler": [("$h", ("!expand", "$p:1,4,4,2", ["$B", 4, 4, 2]), 0, 0, False)],
    "meshgrid": [(["$p:4", "$p:5"],)],
    "gather": [("$h", 1, ("!argsort", "$g", 1)), ("$h", 2, ("!argsort", "$g", 2)), ("$h", 2, LOW)],
    "scatter": [("$h", 1, ("!argsort", "$g", 1), 0.5), ("$h", 2, LOW, "$g"), ("$h", 2, LOW, 0.5)],
    "scatter_add": [("$h", 2, LOW, "$g"), ("$h", 1, ("!argsort", "$g", 1), "$k")],
    "scatter_reduce": [("$h", 2, LOW, "$g", "amax"), ("$h", 3, ("!argsort", "$g", 3), "$k", "mean")],
    **each("index_add index_copy", [("$h", 2, "$i:3,1,0,2", "$g"), ("$h", 1, "$i:3,1,0,2,4,5,7,6", "$g")]),
    "max_unpool2d": [("$h", ("!argsort", "$g", 3), [4, 4])],
    "max_unpool3d": [("$v", ("!argsort", ("!neg", "$v"), 4), [2, 2, 2], [1, 1, 1], [0, 0, 0])],
    "unfold": [("$h", 2, 2, 1)],
}

MODULES: dict[type[nn.Module], list[tuple[Any, str]]] = {
    **{kind: [(kind(0.5), "$h")] for kind in (nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)},
    nn.Dropout1d: [(nn.Dropout1d(), "$s")],
    nn.Dropout3d: [(nn.Dropout3d(), "$v")],
    nn.Identity: [(nn.Identity(), "$h")],
    nn.Conv1d: [(nn.Conv1d(8, 6, 3), "$s"), (nn.Conv1d(8, 6, 3, groups=2), "$s"), (nn.Conv1d(5, 6, 1), "$t")],
    nn.Conv2d: [(nn.Conv2d(8, 6, 3), "$h"), (nn.Conv2d(8, 16, 3, groups=8, padding=1), "$h")],
    nn.Conv3d: [(nn.Conv3d(8, 6, 1), "$v"), (nn.Conv3d(8, 8, 1, groups=4), "$v")],
    nn.ConvTranspose1d: [(nn.ConvTranspose1d(8, 6, 3, groups=2), "$s")],
    nn.ConvTranspose2d: [(nn.ConvTranspose2d(8, 6, 3), "$h")],
    nn.ConvTranspose3d: [(nn.ConvTranspose3d(8, 6, 2), "$v")],
    nn.Linear: [(nn.Linear(8, 6), "$t"), (nn.Linear(4, 6), "$h")],
    nn.Embedding: [(nn.Embedding(9, 8), "$i:1,4,2")],
    nn.LSTM: [(nn.LSTM(8, 6, 2, batch_first=True), "$t"), (nn.LSTM(8, 6, proj_size=3), "$t")],
    nn.GRU: [(nn.GRU(8, 6, bidirectional=True, batch_first=True), "$t")],
    nn.RNN: [(nn.RNN(8, 6, batch_first=True), "$t")],
    nn.PReLU: [(nn.PReLU(8), "$h"), (nn.PReLU(), "$h")],
    nn.BatchNorm1d: [
        (nn.BatchNorm1d(8), "$s"),
        (nn.BatchNorm1d(5), "$t"),
        (nn.BatchNorm1d(5, track_running_stats=False), "$t"),
    ],
    nn.BatchNorm2d: [(nn.BatchNorm2d(8), "$h")],
    nn.BatchNorm3d: [(nn.BatchNorm3d(8, affine=False), "$v")],
    nn.InstanceNorm1d: [(nn.InstanceNorm1d(8), "$s"), (nn.InstanceNorm1d(5, affine=True), "$t")],
    nn.InstanceNorm2d: [(nn.InstanceNorm2d(8, affine=True), "$h")],
    nn.InstanceNorm3d: [(nn.InstanceNorm3d(8), "$v")],
    nn.LayerNorm: [
        (nn.LayerNorm(8), "$t"),
        (nn.LayerNorm(8, elementwise_affine=False), "$t"),
        (nn.LayerNorm([8, 4, 4]), "$h"),
        (nn.LayerNorm(4), "$h"),
    ],
    nn.RMSNorm: [(nn.RMSNorm(8), "$t"), (nn.RMSNorm(8, elementwise_affine=False), "$t")],
    nn.GroupNorm: [
        (nn.GroupNorm(2, 8), "$h"),
        (nn.GroupNorm(2, 8, affine=False), "$h"),
        (nn.GroupNorm(8, 8, affine=False), "$h"),
        (nn.GroupNorm(5, 5), "$t"),
    ],
}
