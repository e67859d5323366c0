"""``fxprune groups --html``: one self-contained page on which a person can find a layer, and what it goes with."""

from __future__ import annotations

import jinja2

from fxprune.channels import Groups
from fxprune.channels.remedies import remedy
from fxprune.cli.console import thousands
from fxprune.cli.coupled import coupled
from fxprune.cli.report_lanes import colour, lanes


def render(model: str, groups: Groups) -> str:
    """Return the page; it needs no script and nothing from the network."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fxprune.cli"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = thousands
    found = coupled(groups, {})
    for group in found["coupled"]:
        group["remedy"] = remedy(group["reason"])
    return environment.get_template("groups.html.j2").render(
        model=model,
        units=int(groups.live.sum()),
        coupled=found["coupled"],
        notes=groups.traced.notes,
        lanes=lanes(found, figures=_units),
        colour=colour,
    )


def _units(group: dict[str, int]) -> str:
    return f"{group['units']:,}" if group["units"] else "stays"
