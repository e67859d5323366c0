"""Figures of a file, counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fxprune.capture.traced import Traced
from fxprune.deploy.figures import file_figures
from fxprune.deploy.kernels import kernel_figures
from fxprune.deploy.onnx import export_onnx
from fxprune.errors import InputError

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(
        nodes: list[Any],
        weights: dict[str, tuple[int, ...]],
        shape: list[int | str],
        name: str = "model",
        **options: Any,
    ) -> Path:
        generator = np.random.default_rng(0)
        tensors = [
            numpy_helper.from_array(generator.standard_normal(size).astype(np.float32) * 0.1 + 0.3, key)
            for key, size in weights.items()
        ]
        graph = helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
            tensors,
        )
        path = tmp_path / f"{name}.onnx"
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.save(model, path, **options)
        return path

    return make


def conv(source: str, weight: str, target: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, weight], [target], f"node_{target}", **attributes)


def test_products_are_counted(make: Make) -> None:
    nodes = [
        conv("x", "w", "c", strides=[2, 2]),
        helper.make_node("ConvTranspose", ["c", "t"], ["u"]),
        helper.make_node("GlobalAveragePool", ["u"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "g"], ["y"]),
        helper.make_node("MatMul", ["y", "m"], ["z"]),
    ]
    weights = {"w": (8, 2, 3, 3), "t": (8, 6, 2, 2), "g": (6, 5), "m": (5, 4)}
    figures = file_figures(make(nodes, weights, ["batch", 2, 9, 9]), batch=3)
    assert figures.macs == 3 * (8 * 4 * 4 * 2 * 9 + 8 * 4 * 4 * 6 * 4 + 6 * 5 + 5 * 4)
    assert figures.params == 144 + 192 + 30 + 20
    assert figures.opset == 18
    assert figures.paths == ()


def test_an_exported_model(convnet: Traced, tmp_path: Path) -> None:
    figures = file_figures(export_onnx(convnet, tmp_path / "m.onnx").path)
    assert figures.macs == 6 * 6 * 6 * 3 * 9 + 6 * 5
    assert figures.bytes == (tmp_path / "m.onnx").stat().st_size
    assert figures.paths == ()


def test_shapes_that_are_known_only_when_running_leave_no_macs(make: Make) -> None:
    path = make([conv("x", "w", "y")], {"w": (4, 2, 3, 3)}, ["batch", 2, "height", "width"])
    assert file_figures(path).macs is None
    assert file_figures(path, sizes={"height": 5, "width": 4}).macs == 4 * 3 * 2 * 2 * 9


def test_a_sum_without_some_of_the_work_is_not_given(make: Make) -> None:
    nodes = [conv("x", "w", "c"), helper.make_node("Einsum", ["c", "c"], ["y"], equation="abcd,abcd->a")]
    assert file_figures(make(nodes, {"w": (4, 2, 3, 3)}, [1, 2, 8, 8])).macs is None


def test_work_within_a_branch_is_not_known(make: Make) -> None:
    branch = helper.make_graph(
        [conv("x", "w", "b")], "branch", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)]
    )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Cast", ["s"], ["t"], to=TensorProto.BOOL),
        helper.make_node("If", ["t"], ["y"], then_branch=branch, else_branch=branch),
    ]
    path = make(nodes, {"w": (4, 2, 3, 3)}, [1, 2, 8, 8])
    assert file_figures(path).macs is None
    kernels = kernel_figures(path)
    assert kernels is not None
    assert kernels.convs >= 1


def test_absolute_paths_are_found_and_names_of_nodes_are_not(make: Make) -> None:
    node = conv("x", "w", "/layer1/conv/Conv_output")
    node.doc_string = "File " + "/ho" + "me/somebody/model.py, line 3"
    (path,) = file_figures(make([node], {"w": (4, 2, 3, 3)}, [1, 2, 8, 8])).paths
    assert path.endswith("somebody/model.py")


def test_weights_in_files_of_their_own_count_and_must_be_there(make: Make, tmp_path: Path) -> None:
    nodes, weights = [conv("x", "w", "y")], {"w": (40, 2, 3, 3)}
    inline = file_figures(make(nodes, weights, [1, 2, 8, 8]))
    apart = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    path = make(nodes, weights, [1, 2, 8, 8], "apart", **apart)
    assert file_figures(path).params == inline.params
    assert file_figures(path).macs == inline.macs
    assert file_figures(path).bytes > 40 * 2 * 9 * 4
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InputError, match=r"keeps its weights in weights\.bin"):
        file_figures(path)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08"])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not an ONNX model"):
        file_figures(path)


def test_widths_off_the_block_are_seen_in_the_kernels(make: Make) -> None:
    def chain(width: int) -> Path:
        nodes = [
            conv("x", "a", "c", pads=[1] * 4),
            helper.make_node("Relu", ["c"], ["r"]),
            conv("r", "b", "y", pads=[1] * 4),
        ]
        return make(nodes, {"a": (width, 32, 3, 3), "b": (32, width, 3, 3)}, [1, 32, 16, 16], f"w{width}")

    good, bad = kernel_figures(chain(64)), kernel_figures(chain(63))
    assert good is not None
    assert bad is not None
    assert (good.convs, good.blocked, good.blocked_share) == (2, 2, 1)
    assert good.activations == good.batch_norms == 0
    assert bad.blocked < 2
    assert good.to_dict()["blocked_share"] == 1


def test_what_was_not_folded_is_counted(make: Make) -> None:
    nodes = [
        conv("x", "w", "c"),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Add", ["r", "c"], ["s"]),  # reads the convolution too, so that Relu cannot be folded
        helper.make_node("BatchNormalization", ["s", "n", "n", "n", "n"], ["y"]),
    ]
    figures = kernel_figures(make(nodes, {"w": (8, 2, 3, 3), "n": (8,)}, [1, 2, 8, 8]))
    assert figures is not None
    assert (figures.batch_norms, figures.convs, figures.activations) == (1, 1, 0)
    assert figures.fallback_text == "0"


def test_other_runtimes_do_not_show_their_graph(make: Make) -> None:
    path = make([conv("x", "w", "y")], {"w": (4, 2, 3, 3)}, [1, 2, 8, 8])
    assert kernel_figures(path, runtime="openvino") is None
    assert kernel_figures(path, runtime="torch-cpu") is None
