"""The same model on images of another size."""

# Calling a module is Any to a type checker.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch
import torchvision
from torch import Tensor, nn

from fxprune import Pipeline, export_onnx, make_plan
from fxprune.capture import trace
from fxprune.capture.resolution import at_resolution, fit_weights, interpolated, resized, side_of, stride_of
from fxprune.deploy.parity import check_parity
from fxprune.errors import InputError
from fxprune.passes import FuseBatchNorm, PruneChannels, RemoveIdentity


def vit(side: int) -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(side, 8, 2, 2, 16, 32, num_classes=4)
    nn.init.normal_(model.heads.head.weight)
    return model.eval()


class Flat(nn.Module):
    """A net whose classifier counts the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 16 * 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).flatten(1))


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "mobilenet_v3_small"])
def test_a_capture_at_another_size_computes_what_the_model_does_there(name: str) -> None:
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None, num_classes=5).eval()
    small = at_resolution(model, torch.randn(2, 3, 96, 96), 64)
    assert small.args[0].shape == (2, 3, 64, 64)
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(small.run((images,))[0], model(images))
    assert {n for n, _ in small.module.named_parameters()} == {n for n, _ in model.named_parameters()}


def test_sides_keep_their_ratio_and_other_inputs_stay() -> None:
    images, ids = torch.randn(2, 3, 48, 96), torch.arange(4)
    scaled, same = resized((images, ids), 32)
    assert scaled.shape == (2, 3, 32, 64)
    assert same is ids
    assert side_of((ids, images)) == 48
    assert resized(images, 48) is images


@pytest.mark.parametrize(
    ("name", "stride"), [("resnet18", 32), ("vgg11", 32), ("mobilenet_v2", 32), ("squeezenet1_1", 17)]
)
def test_the_stride_is_what_the_coarsest_map_stands_for(name: str, stride: int) -> None:
    model = getattr(torchvision.models, name)(weights=None).eval()
    assert stride_of(trace(model, torch.randn(2, 3, 224, 224))) == stride


def test_a_transformers_stride_is_its_patch() -> None:
    assert stride_of(trace(vit(32), torch.randn(2, 3, 32, 32))) == 8


class Gated(nn.Module):
    """Two strides of two, and a gate with convolutions behind a global pool (squeeze and excitation)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.down, self.up, self.head = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x).relu())
        y = y * self.up(self.down(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head(y.mean((2, 3)))


def test_what_is_behind_a_global_pool_has_no_stride() -> None:
    assert stride_of(trace(Gated(), torch.randn(2, 3, 64, 64))) == 4
    model = torchvision.models.mobilenet_v3_small(weights=None).eval()
    assert stride_of(trace(model, torch.randn(2, 3, 64, 64))) == 32


class NormOfAll(nn.Module):
    """A norm over channels, height and width, without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.second(nn.functional.layer_norm(y, y.shape[1:])).mean((2, 3))


def test_a_norm_over_open_sizes_is_cut_and_stays_open() -> None:
    traced = trace(NormOfAll(), torch.randn(2, 3, 16, 16), dynamic_size=True)
    assert traced.another_size == 1.5
    plan = make_plan(traced, macs=0.6, round_to=1)
    found = Pipeline([PruneChannels(plan)])(traced).traced
    assert plan.after.macs < plan.before.macs
    assert found.run((torch.randn(2, 3, 40, 24),))[0].shape == (2, 4)


def test_a_model_for_one_size_is_refused_with_its_line() -> None:
    with pytest.raises(InputError, match=r"side of 8 pixels.*return self.head.*function that builds it"):
        at_resolution(Flat(), torch.randn(2, 3, 16, 16), 8)
    with pytest.raises(InputError, match=r"side of 24 pixels.*Wrong image height"):
        at_resolution(vit(32), torch.randn(2, 3, 32, 32), 24)


class Mixing(Flat):
    """A net that flattens by a fixed length: on smaller images one row holds several samples."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).view(-1, 4 * 16 * 16))


@pytest.mark.parametrize("batch", [4, 8])
def test_a_model_that_mixes_samples_at_another_size_is_refused(batch: int) -> None:
    images = torch.randn(batch, 3, 16, 16)
    with pytest.raises(InputError, match=r"side of 8 pixels: output 0 has 1/4 rows.* and 1 with a side of 16.*flatten"):
        at_resolution(Mixing(), images, 8)
    with pytest.raises(InputError, match="output 0 has 1/4 rows"):
        at_resolution(lambda side: Mixing(), images, 8)
    assert at_resolution(Mixing(), images, 16).batch == batch


@pytest.mark.parametrize("side", [0, -3, 2.5, True])
def test_no_size_is_refused(side: int) -> None:
    with pytest.raises(InputError, match="whole number above 0"):
        at_resolution(Flat(), torch.randn(2, 3, 16, 16), side)


def test_words_have_no_resolution() -> None:
    with pytest.raises(InputError, match="no input is a batch of images"):
        side_of(torch.zeros(2, 5, dtype=torch.long))


def test_position_tables_are_interpolated_as_torchvision_does() -> None:
    from torchvision.models.vision_transformer import interpolate_embeddings

    state = {name: tensor + 0.01 * torch.randn_like(tensor) for name, tensor in vit(32).state_dict().items()}
    model = vit(48)
    assert fit_weights(model, state) == ["encoder.pos_embedding"]
    expected = interpolate_embeddings(48, 8, dict(state))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])
    found = at_resolution(vit, torch.randn(2, 3, 32, 32), 48)
    assert found.run((torch.randn(2, 3, 48, 48),))[0].shape == (2, 4)


def test_tables_that_lie_as_a_grid_are_interpolated_too() -> None:
    plane = torch.arange(4.0)[:, None] + 10 * torch.arange(4.0)
    for table, shape in (
        (plane.expand(1, 3, 4, 4), (1, 3, 7, 7)),
        (plane[None, :, :, None].expand(1, 4, 4, 3), (1, 7, 7, 3)),
    ):
        found = interpolated(table, shape, "table")
        assert found.shape == shape
        corner = found.flatten()[[0, -1]]
        torch.testing.assert_close(corner, torch.tensor([0.0, 33.0]))  # corners stay on corners


def test_what_is_no_table_is_refused() -> None:
    with pytest.raises(InputError, match=r"head.weight.*no table of positions"):
        interpolated(torch.zeros(2, 1024), (2, 300), "head.weight")
    with pytest.raises(InputError, match="same names"):
        fit_weights(Flat(), {"conv.weight": torch.zeros(4, 3, 3, 3)})


def test_sizes_that_are_left_open_stay_open_through_a_cut_and_an_export(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=5).eval()
    traced = trace(model, torch.randn(2, 3, 64, 64), dynamic_size=True)
    assert traced.another_size == 1.5
    assert traced.inputs(3, scale=1.5)[0][0].shape == (3, 3, 96, 96)
    found = Pipeline([PruneChannels(make_plan(traced, macs=0.5)), RemoveIdentity(), FuseBatchNorm()])(traced).traced
    export_onnx(found, tmp_path / "model.onnx")
    assert check_parity(found, tmp_path / "model.onnx").max_relative_error < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    images = torch.randn(1, 3, 128, 80)
    (given,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(given), found.run((images,))[0], rtol=1e-4, atol=1e-5)


def test_what_holds_at_the_examples_size_only_is_not_taken_away() -> None:
    """A pool to 7 x 7 does nothing to 7 x 7, and something to all else."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(4 * 49, 3)).eval()
    open_sizes = trace(model, torch.randn(2, 3, 7, 7), dynamic_size=True)
    kept = Pipeline([RemoveIdentity()])(open_sizes).traced
    images = torch.randn(2, 3, 14, 14)
    with torch.no_grad():
        torch.testing.assert_close(kept.run((images,))[0], model(images))


def test_a_size_that_the_code_fixes_is_noted() -> None:
    traced = trace(vit(32), torch.randn(2, 3, 32, 32), dynamic_size=True)
    assert traced.batch_is_dynamic
    assert traced.another_size is None
    assert [note for note in traced.notes if "fixed" in note] == [
        "the height of images is fixed at 32: the model's code fixes it",
        "the width of images is fixed at 32: the model's code fixes it",
    ]


def test_a_static_batch_has_no_open_sizes() -> None:
    with pytest.raises(InputError, match="dynamic_batch"):
        trace(Flat(), torch.randn(2, 3, 16, 16), dynamic_batch=False, dynamic_size=True)
