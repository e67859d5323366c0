"""What every runtime offers: loading a model, running it, timing it fairly, and saying where its nodes ran."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Clock = Literal["cpu", "wall"]
Feeds = Mapping[str, Array]
Model = Any
"""A path, or for the torch runtimes also a :class:`~fxprune.capture.traced.Traced`."""

Location = str | os.PathLike[str]


@dataclass(frozen=True)
class TensorSpec:
    """One input of a model.

    Attributes:
        name: What :meth:`Session.run` is fed by.
        dtype: Its numpy type.
        shape: Sizes; a text is the name of a dimension of any size.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]

    @classmethod
    def of(cls, name: str, dtype: np.dtype[Any], shape: Iterable[int | str | None]) -> TensorSpec:
        """Make one from a shape in which dimensions of any size may have no name; they get one."""
        return cls(name, dtype, tuple(f"{name}.{d}" if size is None else size for d, size in enumerate(shape)))

    @property
    def is_dynamic(self) -> bool:
        """Whether a dimension may have any size."""
        return any(not isinstance(size, int) for size in self.shape)


@dataclass(frozen=True)
class PlacedNode:
    """A node of the model and its operator."""

    name: str
    op: str

    def __str__(self) -> str:
        return f"{self.name} ({self.op})" if self.name else self.op


@dataclass(frozen=True)
class Placement:
    """Which provider runs which nodes of the model, in the order of the graph."""

    nodes: Mapping[str, tuple[PlacedNode, ...]]

    @classmethod
    def of(cls, entries: Iterable[tuple[str, str, str]]) -> Placement:
        """Collect (provider, node, operator); a node that is named twice counts once."""
        found: dict[str, dict[PlacedNode, None]] = {}
        for provider, name, op in entries:
            found.setdefault(provider, {})[PlacedNode(name, op)] = None
        return cls({provider: tuple(nodes) for provider, nodes in found.items()})

    @property
    def counts(self) -> dict[str, int]:
        """Number of nodes by provider."""
        return {provider: len(nodes) for provider, nodes in self.nodes.items()}


@dataclass(frozen=True)
class KernelTime:
    """One execution of one node, as the runtime's own profiler saw it.

    Attributes:
        node: Name of the node in the runtime's graph; fused nodes carry the name of one they came from.
        op: Its operator.
        provider: What ran it.
        microseconds: Wall time.
    """

    node: str
    op: str
    provider: str
    microseconds: float


class Session(Protocol):
    """A loaded model."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What it takes, in order."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what it gives, in order."""

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run it once and return the outputs by name.

        Raises:
            VerifyError: The runtime cannot run the model on these inputs.
        """

    def prepare(self, feeds: Feeds) -> Callable[[], None]:
        """Return what is timed: one inference, on inputs that already lie where the runtime reads them.

        It returns when the results are there (a GPU is waited for); copies from and to the host are not part of it.
        Its first call may compile or build an engine.
        """

    def placement(self) -> Placement:
        """Say which provider runs which nodes."""

    def profile(self) -> list[KernelTime]:
        """End the profile that was asked for when loading, and return every execution of every node so far.

        Raises:
            InputError: The session was loaded without ``profile=True``.
        """

    def close(self) -> None:
        """Give back what the session holds; it cannot be used after."""


class Runtime(Protocol):
    """Something that runs models."""

    @property
    def name(self) -> str:
        """As it is chosen by: ``onnxruntime-cpu``."""

    @property
    def takes(self) -> str:
        """What it loads, in words."""

    def clock(self, threads: int) -> Clock:
        """Say which clock tells how long an inference takes.

        The process's CPU time does not count waiting for other work on the machine, but is right only for one thread.
        """

    def available(self) -> str:
        """Return "" where the runtime can be used, else what is missing and the line that installs it."""

    def load(self, model: Model, threads: int = 1, profile: bool = False) -> Session:
        """Load a model.

        Args:
            model: What the runtime takes.
            threads: Threads within an operator; they sleep while waiting where the runtime lets them.
            profile: Record the time of every node; it makes the session slower.

        Raises:
            InputError: There is no such file, it cannot be loaded, or an option is out of range.
            EnvironmentProblem: The runtime is missing, or it would run nodes elsewhere than it was asked to.
        """
