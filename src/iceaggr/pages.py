"""The HTML pages: one environment, one style, each page complete in one file without any script.

A page opens from a bucket, in MLflow's viewer or from a mail, so nothing in it asks a server.
"""

from __future__ import annotations

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: object) -> str:
    """Fill a template of iceaggr/resources; every value is escaped, and a missing one an error."""
    return _environment().get_template(template).render(values)


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("iceaggr", "resources"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["png"] = lambda png: f"data:image/png;base64,{base64.b64encode(png).decode()}"
    made.filters["count"] = lambda n: f"{n:,}"
    made.filters["share"] = lambda x: f"{100 * x:.3g} %"
    made.filters["figure"] = lambda x: f"{x:.5g}"
    return made
