"""A picture of a measurement: how single times scatter, and what that leaves of the ratios."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune.errors import EnvironmentProblem, InputError

if TYPE_CHECKING:
    from fxprune.deploy.bench import Bench

_FORMATS = (".png", ".svg", ".pdf")


def require_matplotlib(path: Path) -> None:
    """Refuse a plot that could not be drawn, before anything is measured.

    Raises:
        EnvironmentProblem: matplotlib is missing.
        InputError: The name has no known ending.
    """
    import importlib.util

    if path.suffix.lower() not in _FORMATS:
        raise InputError(f"--plot {path} should end in {', '.join(_FORMATS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise EnvironmentProblem("matplotlib is not installed: pip install 'fxprune[plot]'")


def plot(found: Bench, path: Path) -> None:
    """Draw times and ratios of every model.

    Raises:
        InputError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    from fxprune.deploy.files import atomic_write

    figure = Figure(figsize=(9, 1.4 + 0.5 * len(found.rows)), layout="constrained")
    times, ratios = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _times(times, found)
    _ratios(ratios, found)
    atomic_write(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=150))


def _times(axes: Any, found: Bench) -> None:
    names = [row.name for row in found.rows]
    values = [found.samples[name].on(found.clock) for name in names]
    axes.boxplot(values, orientation="horizontal", whis=(5, 95), widths=0.5, showfliers=False, tick_labels=names)
    for i, single in enumerate(values, 1):
        axes.plot(single, [i + 0.33] * len(single), "|", color="tab:blue", alpha=0.25, markersize=6)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{'CPU' if found.clock == 'cpu' else 'wall'} time, ms (box: middle half, whiskers: 5 % to 95 %)")
    settings = found.settings
    axes.set_title(f"{settings.runtime}, {settings.threads} thread(s), batch {settings.batch}", fontsize="medium")


def _ratios(axes: Any, found: Bench) -> None:
    axes.axvline(1, color="0.6", linewidth=1)
    for i, row in enumerate(found.rows, 1):
        if row.ratio is not None:
            ends = [[row.ratio.ratio - row.ratio.low], [row.ratio.high - row.ratio.ratio]]
            axes.errorbar([row.ratio.ratio], [i], xerr=ends, fmt="o", color="tab:blue", capsize=4)
            axes.annotate(
                f"{row.ratio.ratio:.3f}", (row.ratio.ratio, i), (0, 8), textcoords="offset points", ha="center"
            )
    axes.set_xlabel(f"ratio to {found.rows[0].name}, 95 % interval")
    axes.margins(x=0.2)
