"""Does the runtime compute what the graph computes? Fresh inputs through both.

There is no answer where the comparison could not have failed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.capture.traced import Traced
from fxprune.deploy.onnx import evaluating
from fxprune.deploy.runtimes.ort import cpu_session
from fxprune.distance import differing, distance, relative, top
from fxprune.errors import InputError, VerifyError

Array = NDArray[Any]


@dataclass(frozen=True)
class OutputParity:
    """How far one output is off: ``max|a - b| / max|b|`` over all runs, with b the graph's own.

    It is 0 for integers and booleans, which must be equal.
    """

    name: str
    dtype: str
    max_relative_error: float


@dataclass(frozen=True)
class Parity:
    """The comparison of a file with the graph that it was made from.

    Attributes:
        outputs: One entry per output, in order.
        batches: The batch sizes that were run.
    """

    outputs: tuple[OutputParity, ...]
    batches: tuple[int, ...]

    @property
    def max_relative_error(self) -> float:
        """The largest error of all outputs, which is also the smallest tolerance that would pass."""
        return max((output.max_relative_error for output in self.outputs), default=0.0)

    def require(self, tolerance: float) -> None:
        """Hold the file to a tolerance.

        Raises:
            VerifyError: An output is further off; the message names each, and the smallest tolerance that would pass.
        """
        wrong = [output for output in self.outputs if not output.max_relative_error <= tolerance]
        if wrong:
            listed = ", ".join(f"{output.name} by {output.max_relative_error:.2g}" for output in wrong)
            raise VerifyError(
                f"the ONNX file differs from the graph by more than {tolerance:g} of the largest value: {listed}. "
                f"The smallest tolerance that would pass is {self.max_relative_error:.2g}."
            )

    def __str__(self) -> str:
        lines = [f"{output.name} ({output.dtype}): {output.max_relative_error:.2g}" for output in self.outputs]
        return "\n".join(
            [*lines, f"smallest tolerance that passes: {self.max_relative_error:.2g}, batches {list(self.batches)}"]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON-ready values."""
        return {**asdict(self), "max_relative_error": self.max_relative_error}


@dataclass(frozen=True)
class _Run:
    batch: int
    inputs: list[Array]
    expected: list[Array]
    given: list[Array]


def check_parity(
    traced: Traced, path: str | os.PathLike[str], *, batches: Sequence[int] = (1, 3), seed: int = 0
) -> Parity:
    """Run the file in onnxruntime on the CPU and the graph in torch, on fresh random inputs.

    Floats are compared by norm; the caller decides what is close enough (:meth:`Parity.require`). Integers and
    booleans must be equal.

    Args:
        traced: What the file was exported from.
        path: The ONNX file.
        batches: Batch sizes to run; where the batch is static, the example's own is run instead. Where the size of
            images may vary, the last of them is run at another one too.
        seed: Seed of the inputs.

    Raises:
        VerifyError: Outputs disagree in number, type, shape or integer values, or the reference proves nothing: it has
            a NaN, or an output is the same number everywhere, or none depends on the inputs.
        InputError: The file cannot be loaded or does not take the graph's inputs.
    """
    session = cpu_session(path)
    sizes: list[int | None] = list(batches) if traced.batch_is_dynamic and _takes_any_batch(session) else [None]
    if not sizes:
        raise InputError("batches is empty: name at least one batch size")
    if len(sizes) == 1:
        sizes *= 2  # two inputs at least, or a constant output could not be told from one that was computed
    runs = [_run(traced, session, size, seed + i) for i, size in enumerate(sizes)]
    if traced.another_size is not None:
        runs.append(_run(traced, session, sizes[-1], seed + len(sizes), traced.another_size))
    names = [output.name for output in session.get_outputs()]
    for run in runs:
        _check_alike(names, run)
    _check_not_vacuous(names, runs)
    outputs = tuple(_compare(name, [(run.given[i], run.expected[i]) for run in runs]) for i, name in enumerate(names))
    return Parity(outputs, tuple(sorted({run.batch for run in runs})))


def _takes_any_batch(session: Any) -> bool:
    return any(spec.shape and not isinstance(spec.shape[0], int) for spec in session.get_inputs())


def _run(traced: Traced, session: Any, batch: int | None, seed: int, scale: float | None = None) -> _Run:
    args, kwargs = traced.inputs(batch, seed, scale=scale)
    inputs = [_array(leaf) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    specs = session.get_inputs()
    if len(specs) != len(inputs):
        listed = ", ".join(spec.name for spec in specs)
        raise InputError(
            f"the file takes {len(specs)} inputs ({listed}) and the graph {len(inputs)}: is it a file of this model?"
        )
    with evaluating(traced.module):
        expected = [_array(output) for output in traced.run(args, kwargs)]
    try:
        given = session.run(None, {spec.name: array for spec, array in zip(specs, inputs, strict=True)})
    except Exception as error:  # onnxruntime's own classes are private to it
        raise VerifyError(f"onnxruntime cannot run the file on inputs that the graph takes: {error}") from error
    size = next((array.shape[0] for array in inputs if array.ndim), 1)
    return _Run(size, inputs, expected, [np.asarray(output) for output in given])


def _array(tensor: Tensor) -> Array:
    if tensor.dtype == torch.bfloat16:
        raise InputError("bfloat16 cannot be compared on the CPU: capture the model in float32")
    array: Array = tensor.detach().cpu().resolve_conj().resolve_neg().numpy()
    return array


def _check_alike(names: Sequence[str], run: _Run) -> None:
    if len(names) != len(run.expected):
        raise VerifyError(f"the file has {len(names)} outputs ({', '.join(names)}) and the graph {len(run.expected)}")
    for name, given, expected in zip(names, run.given, run.expected, strict=True):
        if given.shape != expected.shape or given.dtype != expected.dtype:
            raise VerifyError(
                f"output {name} is {given.dtype}{list(given.shape)} in the file "
                f"and {expected.dtype}{list(expected.shape)} in the graph, at batch {run.batch}"
            )


def _check_not_vacuous(names: Sequence[str], runs: Sequence[_Run]) -> None:
    """Refuse a reference with which any file could agree, or none."""
    for i, name in enumerate(names):
        outputs = [run.expected[i] for run in runs]
        values = np.concatenate([output.ravel() for output in outputs])
        if not np.issubdtype(values.dtype, np.inexact):
            continue  # a mask that is all true is ordinary
        if np.isnan(values).any():
            raise VerifyError(
                f"output {name} of the graph itself has NaN on random inputs, so that nothing can be compared"
            )
        if values.size and (values == values[0]).all():
            raise VerifyError(
                f"output {name} of the graph is {values[0]:g} everywhere on random inputs: agreement proves nothing. "
                "An untrained head of zeros does this: give it weights first."
            )
    if not any(_differs(runs[0].expected[i], runs[1].expected[i]) for i in range(len(names))):
        raise VerifyError(
            "no output of the graph depends on its inputs, so that agreement proves nothing. "
            "Dead activations or example inputs without variety do this: give the model weights and inputs that matter."
        )


def _differs(first: Array, second: Array) -> bool:
    if first.ndim == 0 or first.shape[1:] != second.shape[1:]:
        return not np.array_equal(first, second)
    rows = min(len(first), len(second))
    return not np.array_equal(first[:rows], second[:rows])


def _compare(name: str, pairs: Sequence[tuple[Array, Array]]) -> OutputParity:
    dtype = pairs[0][1].dtype
    if not np.issubdtype(dtype, np.inexact):
        wrong, total = sum(differing(*pair) for pair in pairs), sum(given.size for given, _ in pairs)
        if wrong:
            raise VerifyError(
                f"output {name} ({dtype}) differs from the graph in {wrong} of {total} values; integers must be equal"
            )
        return OutputParity(name, str(dtype), 0.0)
    errors, norms = zip(*(_distance(name, *pair) for pair in pairs), strict=True)
    return OutputParity(name, str(dtype), relative(max(errors), max(norms)))


def _distance(name: str, given: Array, expected: Array) -> tuple[float, float]:
    """Return max|a - b| and max|b|, over finite values; what is infinite must be so in both, with one sign."""
    gap = distance(given, expected)
    if math.isinf(gap):
        raise VerifyError(f"output {name} of the file is not finite where the graph's is, or the other way round")
    return gap, top(expected)
