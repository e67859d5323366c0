"""Outputs against a baseline's, on inputs that are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fxprune.deploy.golden import Golden, read_arrays
from fxprune.deploy.runtimes import DEFAULT_RUNTIME, Session, get_runtime
from fxprune.errors import InputError


def scaled(
    folder: Path, factor: float, op: str = "Mul", name: str = "x", width: int = 4, kind: str = "float32"
) -> Session:
    """A model whose output is its input and a number in an operation."""
    number = numpy_helper.from_array(np.array(factor, kind), "k")
    tensor = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    graph = helper.make_graph(
        [helper.make_node(op, [name, "k"], ["y"])],
        "scale",
        [helper.make_tensor_value_info(name, tensor, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.BOOL if op == "Less" else tensor, ["batch", width])],
        [number],
    )
    path = folder / f"{op}{factor}{name}{width}{kind}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return get_runtime(DEFAULT_RUNTIME).load(path)


def test_the_error_is_relative_to_the_largest_value(tmp_path: Path) -> None:
    golden = Golden.of(scaled(tmp_path, 2.0), batch=3)
    assert golden.compare(scaled(tmp_path, 2.0)).error == 0
    parity = golden.compare(scaled(tmp_path, 2.2, name="other"))  # names do not matter, order does
    assert parity.error == pytest.approx(0.1, rel=1e-5)
    assert parity.outputs[0].finite
    assert not parity.outputs[0].constant


def test_it_is_kept_and_read(tmp_path: Path) -> None:
    session = scaled(tmp_path, 2.0)
    golden = Golden.of(session, batch=2, seed=5)
    golden.save(tmp_path / "golden.npz")
    again = Golden.load(tmp_path / "golden.npz", session)
    np.testing.assert_array_equal(again.inputs["x"], golden.inputs["x"])
    np.testing.assert_array_equal(again.outputs["y"], golden.outputs["y"])
    assert again.source == "inputs of golden.npz"


def test_inputs_alone_are_enough(tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", x=np.ones((2, 4), np.float32))
    golden = Golden.load(tmp_path / "inputs.npz", scaled(tmp_path, 3.0))
    assert (golden.outputs["y"] == 3).all()
    assert golden.compare(scaled(tmp_path, 3.0)).outputs[0].constant


def test_nan_is_found_and_json_stays_json(tmp_path: Path) -> None:
    golden = Golden.of(scaled(tmp_path, 1.0))
    parity = golden.compare(scaled(tmp_path, float("nan")))
    assert parity.not_finite == ("y",)
    assert parity.error == float("inf")
    assert parity.to_dict()["outputs"][0]["error"] is None


def test_infinities_have_to_be_the_same(tmp_path: Path) -> None:
    golden = Golden.of(scaled(tmp_path, float("inf")))
    assert golden.compare(scaled(tmp_path, float("inf"))).error == 0.0
    for other in (float("-inf"), float("nan"), 1.0):
        assert golden.compare(scaled(tmp_path, other)).error == float("inf")


def test_integers_are_compared_one_by_one(tmp_path: Path) -> None:
    golden = Golden.of(scaled(tmp_path, 3, kind="int64"), batch=50)
    share = float((golden.inputs["x"] == 1).mean())
    assert golden.compare(scaled(tmp_path, 4, kind="int64")).error == pytest.approx(share)


@pytest.mark.parametrize(("width", "kind"), [(5, "float32"), (4, "float64")])
def test_other_inputs_are_refused(tmp_path: Path, width: int, kind: str) -> None:
    golden = Golden.of(scaled(tmp_path, 1.0))
    with pytest.raises(InputError, match="differ, so that nothing can be compared"):
        golden.compare(scaled(tmp_path, 1.0, width=width, kind=kind))


def test_other_outputs_are_infinitely_far(tmp_path: Path) -> None:
    golden = Golden.of(scaled(tmp_path, 0.5))
    assert golden.compare(scaled(tmp_path, 0.5, "Less")).error == float("inf")


@pytest.mark.parametrize("content", [None, b"", b"not an archive"])
def test_files_that_are_none_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "golden.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"golden.npz"):
        read_arrays(path)
