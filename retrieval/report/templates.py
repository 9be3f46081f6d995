"""Rendering of the report's Jinja2 templates, which escape all text that they are given."""

import base64
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["base64"] = lambda content: base64.b64encode(content).decode()


def rendered(template: str, **values: Any) -> Markup:
    """HTML of a template of this folder; text in `values` is escaped, Markup is taken as it is."""
    return Markup(_ENVIRONMENT.get_template(template).render(**values))
