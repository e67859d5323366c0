"""A plan for a share of the *measured* latency: predict from probed layers, prune, measure, correct, repeat."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fxprune import planning
from fxprune.capture import Traced
from fxprune.capture.regions import require_whole
from fxprune.channels import Groups, find_groups
from fxprune.deploy.interleave import Settings
from fxprune.deploy.latency import Latency, compare_latency
from fxprune.deploy.layer_shapes import layer_shapes
from fxprune.deploy.onnx import export_onnx
from fxprune.deploy.probe import known_step, probe
from fxprune.deploy.runtimes import DEFAULT_RUNTIME, Model, get_runtime
from fxprune.deploy.runtimes.torch_runtime import TorchRuntime
from fxprune.errors import BudgetError, EnvironmentProblem, InputError
from fxprune.passes import FuseBatchNorm, RemoveIdentity
from fxprune.pipeline import Pipeline
from fxprune.planning import Plan
from fxprune.planning.cost import products
from fxprune.planning.latency_table import LatencyTable, elements, written
from fxprune.surgery import cut

_AIM = 0.98
"""Where in the budget to aim: far enough below it for an interval to lie within, near enough to give nothing away."""

_NEAR = 0.955
"""What counts as met: at least this share of the budget is used."""

_EDGE = 0.993
"""How near to the target an interval may end."""

_TRIALS = 8
_SHORTEST, _LONGEST = 0.3, 0.97  # of the last share, while every ratio is above the budget
_PRECISION = 0.004


@dataclass(frozen=True)
class LatencyPlan:
    """A plan, and what was measured on the way to it.

    Attributes:
        plan: The plan; its budget is the share of measured latency that was asked for.
        latency: The measurement of the pruned model against the dense one.
        predicted: The ratio that the table of layers predicts for the plan.
        trials: (share asked of the table, measured ratio) of every plan that was tried.
        table: The table of layers.
    """

    plan: Plan
    latency: Latency
    predicted: float
    trials: tuple[tuple[float, float], ...]
    table: LatencyTable


@dataclass
class _Search:
    """Shares asked of the table, and the ratios that were measured for them."""

    target: float
    trials: list[tuple[float, float]] = field(default_factory=list)
    noise: float = 0.0

    @property
    def aim(self) -> float:
        """The ratio to hit: so far below the target that an interval as wide as the last one lies within."""
        return self.target * min(_AIM, _EDGE / (1 + self.noise))

    def record(self, share: float, latency: Latency) -> None:
        """Note what a share led to, and how far the interval reaches above it."""
        self.trials.append((share, latency.ratio))
        self.noise = latency.ratio_high / latency.ratio - 1

    def is_near(self, latency: Latency) -> bool:
        """Whether what meets the target uses what it allows, as far as the noise lets anyone tell."""
        return latency.ratio >= _NEAR * self.target or latency.ratio_high >= _EDGE**2 * self.target

    def next_share(self) -> float:
        """Return the share to ask for next: the budget at first, then on the line through the nearest known ratios.

        Everything keeps everything, so (1, 1) is always known. Measured ratios grow with the share, but in steps, and
        noise can turn neighbours round, so a step is bounded.
        """
        aim = self.aim
        if not self.trials:
            return aim
        known = [(1.0, 1.0), *self.trials]
        above = sorted((t for t in known if t[1] > aim), key=lambda t: t[1])
        below = max((t for t in known if t[1] <= aim), key=lambda t: t[1], default=None)
        share, ratio = above[0]
        if below is not None:
            weight = (aim - below[1]) / (ratio - below[1])
            return below[0] + (share - below[0]) * min(max(weight, 0.1), 0.9)
        other = above[1] if len(above) > 1 else (0.0, 0.0)
        rise = (other[1] - ratio) / (other[0] - share) if other[0] != share else 0.0
        wanted = share - (ratio - aim) / rise if rise > 0 else share * aim / ratio
        return min(max(wanted, share * _SHORTEST), share * _LONGEST)


def plan_for_latency(  # noqa: PLR0913 - options of one search, all by keyword
    traced: Traced,
    target: float,
    *,
    runtime: str = DEFAULT_RUNTIME,
    threads: int = 1,
    batch: int = 1,
    seconds: float = 10.0,
    cache: Path | None = None,
    groups: Groups | None = None,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> LatencyPlan:
    """Find a plan whose measured latency is at most ``target`` times the dense model's, and close to it.

    The dense model is what would be served without pruning: identities removed, batch norms folded, exported. Each plan
    tried is carried out, exported the same way and measured in turns with the dense file; the interval of the ratio has
    to end below the target.

    Args:
        traced: The captured model.
        target: Share of the dense latency to keep, in (0, 1).
        runtime: One of :data:`fxprune.deploy.runtimes.RUNTIMES`.
        threads: Threads within an operator.
        batch: Batch size that is served.
        seconds: Time for each measurement at most.
        cache: Folder of probed layers (see :func:`fxprune.deploy.probe.probe`).
        groups: The channel groups of ``traced``, if they are at hand.
        progress: Called with a line of text per step.
        options: As :func:`fxprune.planning.make_plan` takes them, without a budget.

    Raises:
        InputError: An option is out of range, or there is no such runtime.
        EnvironmentProblem: The runtime cannot be used here.
        BudgetError: No plan that was tried meets the target; the message has the best that was measured.
    """
    require_whole(traced, "A budget of latency", "ask for a share of the MACs instead: macs=")
    missing = get_runtime(runtime).available()
    if missing:
        raise EnvironmentProblem(f"{runtime}: {missing}")
    if isinstance(target, bool) or not 0 < target < 1:
        raise InputError(f"latency={target!r} is outside (0, 1): it is the share of the dense latency to keep")
    say = progress or (lambda _: None)
    groups = find_groups(traced) if groups is None else groups
    with tempfile.TemporaryDirectory(prefix="fxprune-latency-") as folder:
        settings = Settings(runtime, threads, batch, seconds)
        measure = _Measure(traced, Path(folder), settings)
        table = latency_table(traced, measure.alone(), runtime=runtime, threads=threads, batch=batch, cache=cache)
        doubt = f"; {table.doubt}" if table.doubt else ""
        say(f"probed {len(table.layers)} layers on {runtime}, widths in steps of {table.step}{doubt}")
        return _search(traced, groups, table, measure, _Search(target), say, options)


def _search(
    traced: Traced,
    groups: Groups,
    table: LatencyTable,
    measure: _Measure,
    search: _Search,
    say: Callable[[str], None],
    options: dict[str, Any],
) -> LatencyPlan:
    best: LatencyPlan | None = None
    seen: set[str] = set()
    reason = ""
    for _ in range(_TRIALS):
        share = search.next_share()
        try:
            plan = planning.make_plan(traced, latency=share, times=table, groups=groups, **options)
        except BudgetError as error:
            reason = str(error)
            break
        if plan.hash in seen and best is not None:
            break  # there is nothing between what fits and what does not
        seen.add(plan.hash)
        latency = measure(served(cut(traced, plan, groups)))
        search.record(share, latency)
        say(f"asked for {share:.3f}: measured {latency.ratio:.3f} [{latency.ratio_low:.3f}, {latency.ratio_high:.3f}]")
        met = latency.ratio_high <= search.target and latency.control_holds
        if met and (best is None or latency.ratio > best.latency.ratio):
            best = LatencyPlan(_settled(plan, search.target, latency), latency, share, (), table)
        if met and search.is_near(latency):
            break
    if best is None:
        tried = ", ".join(f"{ratio:.3f}" for _, ratio in search.trials) or "none"
        raise BudgetError(
            f"The budget latency={search.target:g} was not met on {table.runtime}: measured ratios of the plans tried "
            f"are {tried}. {reason or 'Ask for more, or measure for longer on a quieter machine.'}"
        )
    return replace(best, trials=tuple(search.trials))


def _settled(plan: Plan, target: float, latency: Latency) -> Plan:
    note = (
        f"Measured latency on {latency.runtime} with {latency.threads} thread(s), batch {latency.batch}: "
        f"{latency.ratio:.3f} [{latency.ratio_low:.3f}, {latency.ratio_high:.3f}] of the dense model's."
    )
    return replace(plan, keep=target, notes=(*(n for n in plan.notes if "latency=" not in n), note))


def served(traced: Traced) -> Traced:
    """Return the model as it is served: without identities, batch norms folded. Outputs are checked elsewhere."""
    return Pipeline([RemoveIdentity(), FuseBatchNorm()], verify=False)(traced).traced


def takes_files(runtime: str) -> bool:
    """Whether a runtime loads ONNX files; those that do not take captured models."""
    return not isinstance(get_runtime(runtime), TorchRuntime)


class _Measure:
    """Measures a model as it is served against the dense one: as files, or captured for the runtimes that take that."""

    def __init__(self, dense: Traced, folder: Path, settings: Settings) -> None:
        self._folder, self._settings = folder, settings
        self._dense = self._prepared(dense, "dense")

    def __call__(self, model: Traced) -> Latency:
        return compare_latency(self._prepared(model, "pruned"), self._dense, self._settings, precision=_PRECISION)

    def alone(self) -> float:
        """Return the milliseconds of the dense model."""
        short = replace(self._settings, seconds=min(self._settings.seconds, 3.0))
        return compare_latency(self._dense, self._dense, short, precision=_PRECISION).dense_ms

    def _prepared(self, model: Traced, name: str) -> Model:
        if not takes_files(self._settings.runtime):
            return served(model)
        path = self._folder / f"{name}.onnx"
        path.unlink(missing_ok=True)
        export_onnx(served(model), path)
        return path


def latency_table(
    traced: Traced,
    dense_ms: float,
    *,
    runtime: str = DEFAULT_RUNTIME,
    threads: int = 1,
    batch: int = 1,
    cache: Path | None = None,
) -> LatencyTable:
    """Return what each layer takes at any widths, so that the dense model's layers sum up to what it takes as a whole.

    What the probed layers leave of the whole goes to everything else by the elements that it writes; products that were
    not probed, such as attention, take as long per multiply-accumulate as the probed ones on average.
    """
    shapes = layer_shapes(traced, batch)
    probes = probe(shapes.values(), runtime=runtime, threads=threads, cache=cache)
    layers = {name: probes.layer(shape) for name, shape in shapes.items()}
    every = products(traced)
    probed_ms = sum(probes.seconds[shape] * 1e3 for shape in shapes.values())
    probed_macs = sum(product.macs for product in every if product.node.name in shapes) * batch
    other_macs = sum(product.macs for product in every if product.node.name not in shapes) * batch
    rate = probed_ms / probed_macs if probed_macs else 0.0
    rest = max(0.0, dense_ms - probed_ms - rate * other_macs)
    others = written(traced, {product.node for product in every})
    amount = elements(traced, others) * batch
    return LatencyTable(
        layers,
        rate=rate * batch,
        elementwise=rest / amount * batch if amount else 0.0,
        constant=0.0 if amount else rest,
        step=probes.step,
        runtime=runtime,
        doubt=probes.doubt,
    )


def make_plan(traced: Traced, *, latency: float | None = None, **options: Any) -> Plan:
    """Decide what to remove, as :func:`fxprune.planning.make_plan` does, with ``latency`` as a measured budget.

    With ``latency=0.5`` the plan is searched that keeps the most importance at half the dense model's measured latency
    (see :func:`plan_for_latency`, whose options ``runtime``, ``threads``, ``batch`` and ``seconds`` are taken too). For
    other budgets ``runtime`` and ``threads`` say whose step of widths to round to, where it has been probed.
    """
    if latency is None or options.get("times") is not None:
        runtime, threads = options.pop("runtime", None), options.pop("threads", 1)
        if runtime is not None and options.get("step") is None:
            options["step"] = known_step(runtime, threads)
        return planning.make_plan(traced, latency=latency, **options)
    others = [name for name in ("macs", "params", "channels", "bytes") if options.get(name) is not None]
    if others:
        raise InputError(f"A plan needs exactly one budget, and got latency={latency} and {others[0]}.")
    return plan_for_latency(traced, latency, **options).plan
