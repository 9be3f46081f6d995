"""Write an HTML page from a template of this folder."""

from pathlib import Path
from typing import Any

import jinja2

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
)


def write_page(target: Path, template: str, **values: Any) -> None:
    """Fill the template `NAME.html.j2` and write the page, with the folders that it needs.

    Args:
        template: NAME. values: what the template reads.
    """
    page = _TEMPLATES.get_template(f"{template}.html.j2").render(**values)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
