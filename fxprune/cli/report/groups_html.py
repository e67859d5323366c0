"""``fxprune groups --html``: one self-contained page on which a person can find a layer, and what it goes with."""

from __future__ import annotations

from fxprune.channels import Groups
from fxprune.channels.remedies import remedy
from fxprune.cli.report.coupled import coupled
from fxprune.cli.report.lanes import colour, lanes
from fxprune.cli.report.pages import environment
from fxprune.cli.shared.console import thousands


def render(model: str, groups: Groups) -> str:
    """Return the page; it needs no script and nothing from the network."""
    pages = environment("fxprune.cli.report")
    pages.filters["count"] = thousands
    found = coupled(groups, {})
    for group in found["coupled"]:
        group["remedy"] = remedy(group["reason"])
    return pages.get_template("groups.html.j2").render(
        model=model,
        units=int(groups.live.sum()),
        coupled=found["coupled"],
        notes=groups.traced.notes,
        lanes=lanes(found, figures=_units),
        colour=colour,
    )


def _units(group: dict[str, int]) -> str:
    return f"{group['units']:,}" if group["units"] else "stays"
