"""``groups``, ``explain`` and ``export``: look at a model without changing it."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune.cli.loading import capture, load_model
from fxprune.cli.report.facts import PARITY_TOLERANCE
from fxprune.cli.shared.console import out, say
from fxprune.cli.shared.output import staging
from fxprune.errors import InputError

if TYPE_CHECKING:
    from fxprune.channels.groups import Group, Groups

_NAMES = 6
_REASON = 240


def _traced(model: str, inputs: list[str], arguments: list[str], weights: Path | None, seed: int) -> Any:
    return capture(load_model(model, arguments, weights, seed), inputs, seed)


def show_groups(
    model: str,
    inputs: list[str],
    arguments: list[str],
    weights: Path | None,
    *,
    as_json: bool,
    html: Path | None = None,
    seed: int,
) -> None:
    """Print the coupled groups of a model, or draw them on a page."""
    from fxprune.channels import find_groups

    if html is not None and html.is_dir():
        raise InputError(f"--html {html} is a folder; name the file, for example {html / 'groups.html'}")
    found = find_groups(_traced(model, inputs, arguments, weights, seed))
    if html is not None:
        _write_page(html, model, found)
    if html is not None and not as_json:
        say(f"{html}: {int(found.live.sum()):,} removable units in {len(found.groups)} groups")
        return
    if as_json:
        listed = [
            {"parameters": [list(p) for p in g.parameters], "units": g.units, "frozen": g.frozen, "reason": g.reason}
            for g in found.groups
        ]
        print(json.dumps({"model": model, "units": int(found.live.sum()), "groups": listed}, indent=2))
        return
    say(f"{model}: {int(found.live.sum()):,} removable units in {len(found.groups)} groups\n")
    print(f"{'units':>7}{'stay':>7}  layers (dimension of their parameters), and why some stay")
    for group in found.groups:
        print(_row(group))


def _write_page(path: Path, model: str, groups: Groups) -> None:
    from fxprune.cli.report.groups_html import render
    from fxprune.deploy.files import atomic_write

    page = render(model, groups)

    def write(temporary: Path) -> None:
        temporary.write_text(page, encoding="utf-8")

    atomic_write(path, write)


def _row(group: Group) -> str:
    """Return a group's numbers, its layers and the reason; the last two cut where they no longer help, unlike --json.

    A layer stands for its parameters: that its norm's weight, bias and statistics go together surprises nobody.
    """
    names = list(dict.fromkeys(f"{name.rpartition('.')[0] or name}\xa0({d})" for name, d in group.parameters))
    layers = ", ".join(names[:_NAMES]) + (f" and {len(names) - _NAMES} more" if len(names) > _NAMES else "")
    reason = group.reason if len(group.reason) <= _REASON else f"{group.reason[:_REASON]}..., see --json"
    head = f"{group.units:>7,}{group.frozen:>7,}  "
    blank = " " * len(head)
    lines = _wrapped(layers, head, blank) + (_wrapped(f"stays: {reason}", blank, blank) if reason else [])
    return "\n".join(lines).replace("\xa0", " ")


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    """Break a line for the terminal; a pipe gets it whole, so that a search finds what belongs together."""
    width = out.width if out.is_terminal else sys.maxsize
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def show_explanation(
    model: str, parameter: str, dim: int, inputs: list[str], arguments: list[str], weights: Path | None, seed: int
) -> None:
    """Print what one dimension of a parameter is coupled to."""
    from fxprune.channels import find_groups

    found = find_groups(_traced(model, inputs, arguments, weights, seed))
    say(str(found.explain(parameter, dim)))


def export_model(
    model: str, path: Path, inputs: list[str], arguments: list[str], weights: Path | None, opset: int | None, seed: int
) -> None:
    """Export a model and compare the file with it."""
    from fxprune.deploy.onnx import export_onnx
    from fxprune.deploy.parity import check_parity

    if path.is_dir():
        raise InputError(f"--out {path} is a folder; name the file, for example {path / 'model.onnx'}")
    traced = _traced(model, inputs, arguments, weights, seed)
    if traced.regions is not None:
        _export_regions(traced, model, path, opset, seed)
        return
    with staging(path.parent) as folder:  # a file that is wrong never takes the place of one that is right
        report = export_onnx(traced, folder / path.name, opset=opset, metadata={"model": model})
        parity = check_parity(traced, folder / path.name, seed=seed)
        parity.require(PARITY_TOLERANCE)
    say(f"{path}: opset {report.opset}, {report.bytes:,} bytes, largest relative error {parity.max_relative_error:.1e}")


def _export_regions(traced: Any, model: str, path: Path, opset: int | None, seed: int) -> None:
    """Write a file for each region, and say which they are."""
    from fxprune.deploy.regions import export_regions

    with staging(path.parent) as folder:
        files = export_regions(traced, folder, stem=path.stem, opset=opset, metadata={"model": model})
        checks = [file.check(seed=seed) for file in files]
        for parity in checks:
            parity.require(PARITY_TOLERANCE)
    for note in traced.notes:
        say(f"note: {note}")
    for file, parity in zip(files, checks, strict=True):
        export = file.export
        say(
            f"{path.parent / export.path.name}: opset {export.opset}, {export.bytes:,} bytes, "
            f"largest relative error {parity.max_relative_error:.1e}"
        )
