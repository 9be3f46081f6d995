"""Repository-dependent part of a card: usage code, model name, cited data set.

A card is rendered at the end of training, when the repository is not known. `push` then writes the address into the
card with these functions and changes nothing else.
"""

import re
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import DatasetCard, ModelCard

BEGIN, END = "<!-- usage: written by hub_cards -->", "<!-- end of usage -->"
TEMPLATES = Path(__file__).parent


def render_template(template: str, /, **values: Any) -> str:
    """Render a template of this package.

    Raises:
        ValueError: the template uses a variable that was not passed.
    """
    loader = jinja2.FileSystemLoader(TEMPLATES)
    # No autoescape: this is Markdown, and HTML escaping would turn quotes of the usage code into entities.
    environment = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    try:
        return environment.get_template(template).render(**values)
    except jinja2.UndefinedError as error:
        raise ValueError(
            f"{template}: {error}. Pass the value to the template, or remove the variable from it."
        ) from error


def usage(template: str, *, address: str, on_hub: bool, **values: Any) -> str:
    """Render the usage section between its two markers; `address` is `owner/name` or a local folder."""
    body = render_template(template, address=address, on_hub=on_hub, **values)
    return f"{BEGIN}\n{body.strip()}\n{END}"


def _with_usage(text: str, section: str) -> str:
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.S)
    found, count = pattern.subn(lambda _: section, text)
    if count != 1:
        raise ValueError(
            f"the card has {count} usage sections, not one. Render it again: python -m hub_cards render RUN"
        )
    return found


def addressed_model_card(text: str, repo_id: str, *, has_text: bool, dataset_repo_id: str | None) -> str:
    """Write the repository of the model, and of its data set if there is one, into a model card."""
    section = usage("model_usage.md.j2", address=repo_id, on_hub=True, has_text=has_text)
    card = ModelCard(_with_usage(text, section))
    card.data["model_name"] = repo_id.split("/")[1]
    if dataset_repo_id is not None:
        card.data["datasets"] = [dataset_repo_id]
    return str(card)


def addressed_dataset_card(text: str, repo_id: str) -> str:
    """Write the repository into a data set card."""
    return str(DatasetCard(_with_usage(text, usage("dataset_usage.md.j2", address=repo_id, on_hub=True))))
