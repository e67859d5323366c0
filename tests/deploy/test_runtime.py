"""Sessions and inputs for them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fxprune.deploy.runtime import cpu_session, random_feeds
from fxprune.errors import EnvironmentProblem, InputError


def _identity(path: Path, kind: int, shape: list[int | str]) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "identity",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL])
def test_feeds_run(tmp_path: Path, kind: int) -> None:
    session = cpu_session(_identity(tmp_path / "model.onnx", kind, ["n", 5]))
    feeds = random_feeds(session, batch=3, seed=1)
    assert feeds["x"].shape == (3, 5)
    np.testing.assert_array_equal(session.run(None, feeds)[0], feeds["x"])
    np.testing.assert_array_equal(random_feeds(session, batch=3, seed=1)["x"], feeds["x"])


def test_other_dynamic_dimensions_need_a_size(tmp_path: Path) -> None:
    session = cpu_session(_identity(tmp_path / "model.onnx", TensorProto.FLOAT, ["n", "height"]))
    assert random_feeds(session, sizes={"height": 7})["x"].shape == (1, 7)
    with pytest.raises(InputError, match="height=N"):
        random_feeds(session)


def test_unknown_types_are_refused(tmp_path: Path) -> None:
    session = cpu_session(_identity(tmp_path / "model.onnx", TensorProto.STRING, [2]))
    with pytest.raises(InputError, match=r"tensor\(string\)"):
        random_feeds(session)


def test_refuses_no_threads(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 1"):
        cpu_session(tmp_path / "model.onnx", threads=0)


def test_without_onnxruntime_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EnvironmentProblem, match="pip install onnxruntime"):
        cpu_session("model.onnx")
