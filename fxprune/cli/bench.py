"""``bench``: times of models side by side, as a table, as JSON, and as a plot."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from fxprune.cli.shared.console import INTERRUPTED, Stages, err, out, say
from fxprune.cli.shared.files import parse_sizes, require_writable, write_json
from fxprune.interrupts import termination_interrupts

if TYPE_CHECKING:
    from fxprune.deploy.bench import Bench


@dataclass(frozen=True)
class BenchOptions:
    """The options of the command, as given."""

    models: tuple[str, ...]
    settings: dict[str, Any]
    against: str | None = None
    inputs: tuple[str, ...] = ()
    model_args: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    precision: float = 0.01
    json: Path | None = None
    plot: Path | None = None


def run(options: BenchOptions) -> None:
    """Measure, and show what was found.

    Raises:
        FxPruneError: A model cannot be loaded or run, or the runtime is missing.
        typer.Exit: With 130 where it was interrupted; the JSON file says so and has what there is.
    """
    from fxprune.deploy.bench import SCHEMA, bench
    from fxprune.deploy.interleave import Settings
    from fxprune.deploy.runtimes import get_runtime

    require_writable(options.json, options.plot)
    if options.plot is not None:
        from fxprune.cli.plot import require_matplotlib

        require_matplotlib(options.plot)
    settings = Settings(**options.settings, sizes=parse_sizes(list(options.sizes)), keep_interrupted=True)
    get_runtime(settings.runtime)  # a wrong name is to be told before models are captured
    specs = [*([options.against] if options.against else []), *options.models]
    stages = Stages()
    with ExitStack() as stack:
        stack.enter_context(termination_interrupts())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fxprune.bench.")))
        try:
            models = {name: _resolve(spec, options, folder, stages) for name, spec in _names(specs).items()}
            say(f"measuring for at most {settings.seconds:g} s", err)  # a spinner's thread would be measured too
            found = bench(models, settings, precision=options.precision)
        except KeyboardInterrupt:
            partial = {"schema": SCHEMA, "complete": False, "rows": [], "models": specs}
            write_json(options.json, partial)
            raise
    write_json(options.json, found.to_dict())
    if options.plot is not None:
        from fxprune.cli.plot import plot

        plot(found, options.plot)
    show(found)
    if found.interrupted:
        raise typer.Exit(INTERRUPTED)


def _names(specs: list[str]) -> dict[str, str]:
    """Give each a short name; all of the path where two files share one, and a number where a file comes again."""
    short = [Path(spec).name for spec in specs]
    if len(set(short)) < len(set(specs)):
        short = list(specs)
    named: dict[str, str] = {}
    for name, spec in zip(short, specs, strict=True):
        number = 2
        unique = name
        while unique in named:
            unique, number = f"{name} #{number}", number + 1
        named[unique] = spec
    return named


def _resolve(spec: str, options: BenchOptions, folder: Path, stages: Stages) -> Any:
    """Return what the runtime takes: the file, or a model from code, exported where the runtime runs ONNX."""
    if Path(spec).exists() or ":" not in spec:
        return Path(spec)
    from fxprune.cli.loading import capture, load_model
    from fxprune.deploy.onnx import export_onnx

    seed = int(options.settings.get("seed", 0))
    with stages.step("capture", f"capture {spec}"):
        traced = capture(load_model(spec, list(options.model_args), None, seed), list(options.inputs), seed)
    if str(options.settings.get("runtime")).startswith("torch"):
        return traced
    path = folder / f"{len(list(folder.iterdir()))}.onnx"
    with stages.step("export", f"export {spec}"):
        return export_onnx(traced, path).path


def show(found: Bench) -> None:
    """Print the table and what a reader of it should know."""
    clock = "CPU" if found.clock == "cpu" else "wall"
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("model")
    extra = [name for name in ("p90", "p99") if all(name in row.percentiles_ms for row in found.rows)]
    for column in (f"{clock} ms", *extra, "wall ms", "ratio", "95 % interval"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in found.rows:
        times = [row.median_ms, *(row.percentiles_ms[name] for name in extra), row.wall_ms]
        ratio = ("1", "") if row.ratio is None else _interval(row.ratio)
        table.add_row(row.name, *(f"{time:.3f}" for time in times), *ratio)
    out.print(table, soft_wrap=not out.is_terminal)
    settings = found.settings
    threads = f"{settings.threads} thread{'s' if settings.threads > 1 else ''}"
    say(f"{settings.runtime}, {threads}, batch {settings.batch}, {found.rounds} rounds; medians of {clock} time")
    if not found.control_holds:
        say(
            f"not to be relied on: {found.rows[0].name} beside itself came out at {found.control.low:.3f} to "
            f"{found.control.high:.3f}, so the machine was busy with something else"
        )
    if not extra:
        say("p90 needs 64 runs, and p99 662: --seconds and --precision decide how many there are")
    for note in found.notes:
        say(f"note: {note}")


def _interval(ratio: Any) -> tuple[str, str]:
    return f"{ratio.ratio:.3f}", f"{ratio.low:.3f} to {ratio.high:.3f}"
