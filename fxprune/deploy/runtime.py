"""Sessions of the runtime that serves the file, and inputs for them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxprune.errors import EnvironmentProblem, InputError

RUNTIME = "onnxruntime-cpu"

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


def cpu_session(path: str | os.PathLike[str], *, threads: int = 1) -> Any:
    """Load the file in onnxruntime on the CPU.

    Args:
        path: An ONNX file.
        threads: Threads within an operator. They sleep while waiting, so that their waiting is not counted as work.

    Raises:
        InputError: There is no such file, or onnxruntime cannot load it.
        EnvironmentProblem: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise EnvironmentProblem(f"onnxruntime cannot be loaded ({error}): pip install onnxruntime") from error
    if threads < 1:
        raise InputError(f"threads is {threads}; it must be at least 1")
    if not Path(path).is_file():
        raise InputError(f"there is no file {path}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # warnings are about the optimiser's choices, not about the model
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes are private to it
        raise InputError(f"onnxruntime cannot load {path}: {error}") from error


def random_feeds(
    session: Any, *, batch: int = 1, seed: int = 0, sizes: Mapping[str, int] | None = None
) -> dict[str, NDArray[Any]]:
    """Return random inputs for a session.

    Floats are standard normal; integers come out of {0, 1}, which are valid ids and masks nearly everywhere.

    Args:
        session: What :func:`cpu_session` gives.
        batch: Size of dimension 0 where it is dynamic.
        seed: Seed of the random numbers.
        sizes: Sizes of other dynamic dimensions, by name.

    Raises:
        InputError: A dynamic dimension has no size, or an input's type is not a plain tensor.
    """
    generator = np.random.default_rng(seed)
    feeds: dict[str, NDArray[Any]] = {}
    for spec in session.get_inputs():
        dtype = _DTYPES.get(spec.type)
        if dtype is None:
            raise InputError(f"input {spec.name} has type {spec.type}; known are {', '.join(_DTYPES)}")
        shape = [_size(spec.name, d, size, batch, sizes or {}) for d, size in enumerate(spec.shape)]
        if np.issubdtype(dtype, np.floating):
            feeds[spec.name] = generator.standard_normal(shape).astype(dtype)
        else:
            feeds[spec.name] = generator.integers(0, 2, shape).astype(dtype)
    return feeds


def _size(name: str, dimension: int, size: int | str | None, batch: int, sizes: Mapping[str, int]) -> int:
    if isinstance(size, int):
        return size
    if size is not None and size in sizes:
        return sizes[size]
    if dimension == 0:
        return batch
    raise InputError(f"dimension {dimension} of input {name} is dynamic ({size}) and has no size: give one as {size}=N")
