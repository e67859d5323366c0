"""What a network costs: counted multiply-accumulates, or the measured latency of its file.

A meter says which share of the dense model's cost a network has, and narrows a network to a budget; it never lets one
through that is above it.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fxprune.capture import Traced
from fxprune.deploy.interleave import Settings
from fxprune.deploy.latency import Latency, compare_latency
from fxprune.deploy.latency_budget import plan_for_latency, served, takes_files
from fxprune.deploy.onnx import export_onnx
from fxprune.deploy.runtimes import DEFAULT_RUNTIME, Model
from fxprune.errors import BudgetError
from fxprune.planning import Plan
from fxprune.search.network import Network, macs_of
from fxprune.search.pruning import Choices

_AGAIN = 4
_TIGHTER = 0.98


class Meter(Protocol):
    """Measures networks against the dense model; close it when it is not needed any more."""

    @property
    def metric(self) -> str:
        """What is measured: ``macs`` or ``latency``."""

    def share(self, traced: Traced) -> float:
        """Return a network's cost as a share of the dense model's."""

    def narrowed(self, network: Network, budget: float, choices: Choices) -> Network:
        """Take channels until the cost is within a budget.

        Raises:
            BudgetError: It cannot be.
        """

    def close(self) -> None:
        """Remove what it wrote."""


class Macs:
    """Counted multiply-accumulates of one sample."""

    metric = "macs"

    def __init__(self, dense: Traced) -> None:
        self.dense = macs_of(dense)

    def share(self, traced: Traced) -> float:
        """Return the share of the dense model's."""
        return macs_of(traced) / self.dense

    def narrowed(self, network: Network, budget: float, choices: Choices) -> Network:
        """Take channels until the count is within a budget; a network that is there already stays as it is."""
        share = self.share(network.traced)
        if share <= budget:
            return network
        found = network.without(choices.channels(network, macs=budget / share))
        left = self.share(found.traced)
        if left > budget * (1 + 1e-9):
            raise BudgetError(f"a network of {left:.4f} of the MACs came of a budget of {budget:.4f}")
        return found

    def close(self) -> None:
        """Nothing was written."""


@dataclass(frozen=True)
class Measuring:
    """How latencies are measured.

    Attributes:
        runtime: One of :data:`fxprune.deploy.runtimes.RUNTIMES`.
        threads: Threads within an operator.
        batch: Batch size that is served.
        seconds: Time for each measurement at most.
    """

    runtime: str = DEFAULT_RUNTIME
    threads: int = 1
    batch: int = 1
    seconds: float = 10.0


class Milliseconds:
    """Measured latency of the exported file, in turns with the dense model's at its own resolution."""

    metric = "latency"

    def __init__(self, dense: Traced, measuring: Measuring) -> None:
        self.measuring = measuring
        self._folder = tempfile.TemporaryDirectory(prefix="fxprune-search-")
        self._dense = self._prepared(dense, "dense")

    def close(self) -> None:
        """Remove the files that were measured."""
        self._folder.cleanup()

    def latency(self, traced: Traced) -> Latency:
        """Measure a network against the dense model."""
        how = self.measuring
        settings = Settings(how.runtime, how.threads, how.batch, how.seconds, same_inputs=False)
        return compare_latency(self._prepared(traced, "network"), self._dense, settings, precision=0.005)

    def share(self, traced: Traced) -> float:
        """Return the share of the dense model's."""
        return self.latency(traced).ratio

    def narrowed(self, network: Network, budget: float, choices: Choices) -> Network:
        """Take channels until the whole interval of the measured ratio is within a budget."""
        whole = self.latency(network.traced)
        if whole.ratio_high <= budget:
            return network
        target = _TIGHTER * budget / max(whole.ratio, budget)
        for _ in range(_AGAIN):
            found = network.without(self._plan(network, target, choices))
            latency = self.latency(found.traced)
            if latency.ratio_high <= budget:
                return found
            target *= min(_TIGHTER, _TIGHTER * budget / latency.ratio_high)
        raise BudgetError(
            f"no width of this network keeps {budget:.3g} of the latency: the last one that was tried has "
            f"{latency.ratio:.3g} ({latency.ratio_low:.3g} to {latency.ratio_high:.3g}). Measure for longer, or "
            "ask for more"
        )

    def _plan(self, network: Network, target: float, choices: Choices) -> Plan:
        how = self.measuring
        found = plan_for_latency(
            network.traced,
            target,
            runtime=how.runtime,
            threads=how.threads,
            batch=how.batch,
            seconds=how.seconds,
            importance=choices.importance,
            allocation=choices.allocation or "global",  # as along the dimension of width, whose accuracies predict it
            round_to=choices.round_to,
            protect=choices.protect,
        )
        return found.plan

    def _prepared(self, traced: Traced, name: str) -> Model:
        if not takes_files(self.measuring.runtime):
            return served(traced)
        path = Path(self._folder.name) / f"{name}.onnx"
        export_onnx(served(traced), path)
        return path
