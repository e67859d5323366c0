"""``probe``: how long each layer of a model takes on the runtime, and in which steps of width."""

from __future__ import annotations

import json
from typing import Any

from rich.table import Table

from fxprune.cli.loading import capture, load_model
from fxprune.cli.shared.console import Stages, out, say


def show_probes(  # noqa: PLR0913 - the options of the command
    model: str,
    inputs: list[str],
    arguments: list[str],
    *,
    runtime: str,
    threads: int,
    batch: int,
    as_json: bool,
    seed: int,
) -> None:
    """Time the layers of a model one by one and print what was found."""
    from fxprune.deploy.layer_shapes import layer_shapes
    from fxprune.deploy.machine import machine
    from fxprune.deploy.probe import cache_file, probe
    from fxprune.graph_tools import place_of

    stages = Stages()
    with stages.step("capture", "capture the graph"):
        traced = capture(load_model(model, arguments, None, seed), inputs, seed)
    shapes = layer_shapes(traced, batch)
    with stages.step("probe", f"time {len(set(shapes.values()))} layers on {runtime}"):
        found = probe(shapes.values(), runtime=runtime, threads=threads)
    places = {node.name: place_of(node) for node in traced.module.graph.nodes}
    rows = [_row(places[name], shape, found) for name, shape in shapes.items()]
    where = cache_file(runtime, threads)
    if as_json:
        values = {"schema": 1, "model": model, "runtime": runtime, "threads": threads, "batch": batch}
        values |= {"step": found.step, "machine": machine(), "cache": str(where), "doubt": found.doubt, "layers": rows}
        print(json.dumps(values, indent=2))
        return
    out.print(_table(rows))
    say(f"\n{sum(row['ms'] for row in rows):.2f} ms in all. Time grows in steps of {found.step} channels on {runtime}.")
    if found.doubt:
        say(found.doubt)
    else:
        say(f"{found.fresh} of the timings are new; all are kept in {where}")


def _row(place: str, shape: Any, found: Any) -> dict[str, Any]:
    layer, half = found.layer(shape), found.half_of(shape)
    kernel = "x".join(map(str, shape.kernel))
    kind = "linear" if shape.kind == "linear" else f"conv {kernel}" + (f" /{shape.groups}" if shape.groups > 1 else "")
    return {
        "layer": place,
        "kind": kind,
        "outputs": shape.outputs,
        "inputs": shape.inputs,
        "rows": list(shape.rows),
        "ms": found.seconds[shape] * 1e3,
        "half": {"outputs": half.outputs, "inputs": half.inputs, "ms": found.seconds[half] * 1e3},
        "curve": {"constant": layer.constant, "first": layer.first, "second": layer.second, "both": layer.both},
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("layer", overflow="fold")
    table.add_column("kind", no_wrap=True)
    for column in ("width", "ms", "at half", "kept"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        half = row["half"]
        widths = f"{row['inputs']} to {row['outputs']}"
        table.add_row(
            row["layer"], row["kind"], widths, f"{row['ms']:.3f}", f"{half['ms']:.3f}", f"{half['ms'] / row['ms']:.0%}"
        )
    return table
