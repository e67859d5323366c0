"""How templates become pages: everything that is not known is an error, and everything that is shown is escaped."""

from __future__ import annotations

import jinja2


def environment(*packages: str) -> jinja2.Environment:
    """Return what finds templates in the folders ``templates`` of packages, the first one's first."""
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package) for package in packages]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
