"""The smallest network that a search will look at, counted or measured before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fxprune.errors import BudgetError, InputError
from fxprune.planning import Plan
from fxprune.search import decision
from fxprune.search.fitting import Request
from fxprune.search.meters import Macs, Milliseconds
from fxprune.search.network import Network, Subject, depth_of, rebuild, width_of
from fxprune.search.optimum import rounded_up
from fxprune.search.power_law import Sample
from fxprune.search.pruning import Choices, described
from fxprune.search.space import NARROWEST, Space
from fxprune.search.trials import digest

FOLDER = "smallest"
_NARROWER = 0.9  # of the smallest width that is trained; channels of one share may cost more or less
_UNCERTAIN = 1.05  # a measured latency may come out as much lower the next time


@dataclass(frozen=True)
class _Smallest:
    """A network at the end of every dimension.

    Attributes:
        network: With as few layers, and images as small, as any that is looked at.
        plan: Leaves it the smallest width; None where no channel goes.
    """

    network: Network
    plan: Plan | None

    @property
    def width(self) -> float:
        return 1.0 if self.plan is None else width_of(self.network.traced, self.plan)


def check_smallest(subject: Subject, space: Space, meter: Macs | Milliseconds, asked: Request, folder: Path) -> Sample:
    """Return what the smallest network costs, as shares of the whole one.

    Multiply-accumulates are counted without carrying the cut of channels out; a latency is measured, once.

    Args:
        subject: The dense model.
        space: What is looked at.
        meter: Counts or measures.
        asked: Budget and choices.
        folder: Of the search, where a measured latency is kept.

    Raises:
        BudgetError: It is above the budget; says what it has.
    """
    smallest = _build(subject, space, asked.choices)
    if isinstance(meter, Macs):
        cost = _counted(smallest, meter)
        if cost > asked.budget * (1 + 1e-9):
            smallest, cost = _narrower(smallest, cost, space, meter, asked)
        above, enough = cost > asked.budget * (1 + 1e-9), cost
    else:
        cost = _measured(smallest, meter, folder)
        above, enough = cost > asked.budget * _UNCERTAIN, cost * _UNCERTAIN
    depth, side = depth_of(smallest.network.traced) / space.depth, smallest.network.side
    if above:
        shares = [f"depth {depth:.3g}", f"width {smallest.width:.3g}", *([f"side {side}"] if side else [])]
        raise BudgetError(
            f"The budget {asked.metric}={asked.budget:.3g} cannot be reached: the smallest network that is looked at "
            f"({', '.join(shares)}) has {cost:.3g} of the {asked.metric}, "
            f"{'counted' if isinstance(meter, Macs) else 'measured'}. Ask for at least {rounded_up(enough)}"
            f"{_more(space, asked)}"
        )
    return Sample(depth, smallest.width, space.resolution(side), cost)


def _build(subject: Subject, space: Space, choices: Choices) -> _Smallest:
    network = rebuild(subject, (), min(space.resolutions, default=space.side))
    for count in sorted(space.removed, reverse=True):
        try:
            network = network.without(choices.layers(network, count))
        except (BudgetError, InputError):  # a number that no removal of whole layers meets
            continue
        break
    for width in sorted(space.widths):
        try:
            return _Smallest(network, choices.channels(network, channels=width))
        except (BudgetError, InputError):  # its layers hold channels that stay
            continue
    return _Smallest(network, None)


def _counted(smallest: _Smallest, meter: Macs) -> float:
    if smallest.plan is None:
        return meter.share(smallest.network.traced)
    return smallest.plan.after.macs / meter.dense


def _narrower(smallest: _Smallest, cost: float, space: Space, meter: Macs, asked: Request) -> tuple[_Smallest, float]:
    """Return the network with channels that cost more, where these bring it within the budget, or as it is."""
    if not space.widths:
        return smallest, cost
    try:
        keep = asked.budget / meter.share(smallest.network.traced)
        found = _Smallest(smallest.network, asked.choices.channels(smallest.network, macs=keep))
    except (BudgetError, InputError):
        return smallest, cost
    return (found, _counted(found, meter)) if found.width >= _NARROWER * min(space.widths) else (smallest, cost)


def _measured(smallest: _Smallest, meter: Milliseconds, folder: Path) -> float:
    network = smallest.network if smallest.plan is None else smallest.network.without(smallest.plan)
    place = folder / FOLDER / digest({"side": network.side, "plans": described(network.steps)})[:16]
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {place}: {error.strerror or error}") from error
    return decision.measured_once(place, meter.measuring, lambda: meter.share(network.traced))


def _more(space: Space, asked: Request) -> str:
    """Return how smaller networks are looked at, where there are such."""
    least = asked.explore or asked.budget
    follows = bool(space.widths or space.resolutions)
    smaller = min(space.widths, default=0.0) > NARROWEST or min(space.resolutions, default=0) > min(
        space.sides, default=0
    )
    text = f" with explore={least:.3g} (--explore), which keeps that network among them" if follows else ""
    if smaller:
        return f"{text}, or look at smaller ones with an explore below {least:.3g}."
    return (
        f"{text}." if len(asked.dimensions) == len(Request.dimensions) else f"{text}, or search over more dimensions."
    )
