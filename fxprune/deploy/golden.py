"""Does one file give what another gives? On inputs kept in a file, or fresh ones."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxprune.deploy.files import atomic_write
from fxprune.deploy.runtimes import Feeds, Session, TensorSpec, random_feeds
from fxprune.distance import differing, distance, is_finite, relative, top
from fxprune.errors import InputError

Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class OutputDistance:
    """How far one output is from the baseline's.

    Attributes:
        name: Its name in the baseline.
        error: ``max|a - b| / max|b|`` with b the baseline's; for integers the share of values that differ; infinity
            where shapes or types differ, or one has NaN or an infinity where the other has something else.
        finite: Whether the candidate's output has neither NaN nor infinity.
        constant: Whether the baseline's output is one number everywhere, so that agreement proves nothing.
    """

    name: str
    error: float
    finite: bool
    constant: bool


@dataclass(frozen=True)
class OutputParity:
    """How far the outputs of a candidate are from the baseline's, output by output; ``source`` says on what inputs."""

    outputs: tuple[OutputDistance, ...]
    source: str

    @property
    def error(self) -> float:
        """The largest error."""
        return max(output.error for output in self.outputs)

    @property
    def not_finite(self) -> tuple[str, ...]:
        """Outputs of the candidate that have NaN or infinity."""
        return tuple(output.name for output in self.outputs if not output.finite)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; an infinite error is None."""
        outputs = [{**asdict(o), "error": o.error if np.isfinite(o.error) else None} for o in self.outputs]
        return {"source": self.source, "outputs": outputs}


@dataclass(frozen=True)
class Golden:
    """Inputs, and what a baseline gives for them.

    Attributes:
        inputs: By name, in the order of the model.
        outputs: By name, in the order of the model.
        source: Where they come from, in words.
    """

    inputs: Feeds
    outputs: Outputs
    source: str

    @classmethod
    def of(cls, session: Session, *, batch: int = 1, sizes: Mapping[str, int] | None = None, seed: int = 0) -> Golden:
        """Run the baseline on random inputs."""
        feeds = random_feeds(session.inputs, batch=batch, seed=seed, sizes=sizes)
        return cls(feeds, session.run(feeds), f"random inputs of seed {seed}")

    def save(self, path: Path) -> None:
        """Write both into one npz file, which numpy reads without pickle.

        Raises:
            InputError: The file cannot be written.
        """
        parts = (("input", self.inputs), ("output", self.outputs))
        arrays: dict[str, Any] = {f"{kind}/{name}": array for kind, values in parts for name, array in values.items()}

        def write(temporary: Path) -> None:
            with temporary.open("wb") as stream:
                np.savez_compressed(stream, **arrays)

        atomic_write(path, write)

    @classmethod
    def load(cls, path: Path, session: Session) -> Golden:
        """Read a file of :meth:`save`, or one of inputs alone by name, for which the baseline gives the outputs.

        Raises:
            InputError: It is no such file, or the model takes other inputs.
        """
        arrays = read_arrays(path)
        outputs = {name[7:]: array for name, array in arrays.items() if name.startswith("output/")}
        inputs = {
            name.removeprefix("input/"): array for name, array in arrays.items() if not name.startswith("output/")
        }
        feeds = matched(inputs, session.inputs, f"{path} and the baseline's inputs")
        return cls(feeds, outputs or session.run(feeds), f"inputs of {path.name}")

    def compare(self, session: Session) -> OutputParity:
        """Run a candidate, whose inputs and outputs are taken in order, whatever they are called.

        Raises:
            InputError: It takes other inputs.
            VerifyError: It does not run on them.
        """
        feeds = matched(dict(self.inputs), session.inputs, "the baseline's inputs and the candidate's")
        given = list(session.run(feeds).values())
        if len(given) != len(self.outputs):
            finite = all(is_finite(array) for array in given)
            names = f"{len(given)} outputs instead of {len(self.outputs)}"
            return OutputParity((OutputDistance(names, float("inf"), finite, False),), self.source)
        pairs = zip(self.outputs.items(), given, strict=True)
        return OutputParity(tuple(_distance(name, b, a) for (name, b), a in pairs), self.source)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read an npz file, without pickle.

    Raises:
        InputError: There is none, or it is damaged.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        with np.load(path, allow_pickle=False) as loaded:
            return {name: loaded[name] for name in loaded.files}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not an npz file of arrays: {error}") from error


def matched(inputs: Feeds, specs: tuple[TensorSpec, ...], where: str) -> dict[str, NDArray[Any]]:
    """Return the inputs under a model's names: by name where they are the same, else in order.

    Raises:
        InputError: They do not fit in number, type or shape.
    """
    names = [spec.name for spec in specs]
    values = [inputs[name] for name in names] if set(names) == set(inputs) else list(inputs.values())
    fits = len(values) == len(specs) and all(_fits(v, spec) for v, spec in zip(values, specs, strict=True))
    if not fits:
        given = ", ".join(f"{name}: {array.dtype}{list(array.shape)}" for name, array in inputs.items())
        wanted = ", ".join(f"{spec.name}: {spec.dtype}{list(spec.shape)}" for spec in specs)
        raise InputError(f"{where} differ, so that nothing can be compared: {given or 'none'} against {wanted}")
    return dict(zip(names, values, strict=True))


def _fits(array: NDArray[Any], spec: TensorSpec) -> bool:
    sizes = zip(array.shape, spec.shape, strict=False)
    same = all(isinstance(wanted, str) or size == wanted for size, wanted in sizes)
    return array.dtype == spec.dtype and array.ndim == len(spec.shape) and same


def _distance(name: str, b: NDArray[Any], a: NDArray[Any]) -> OutputDistance:
    constant = b.size > 1 and bool((b == b.flat[0]).all())
    if a.shape != b.shape or a.dtype != b.dtype:
        error = float("inf")
    elif b.dtype.kind not in "fc":
        error = differing(a, b) / (b.size or 1)
    else:
        error = relative(distance(a, b, same_nan=True), top(b))
    return OutputDistance(name, error, is_finite(a), constant)
