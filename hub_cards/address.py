"""The part of a card that depends on where the repository lives: usage code, the model's name, the data set it cites.

Why apart: a card is rendered when training ends, before anyone knows the repository. `push` then writes the address
into the same card, through these functions, and touches no figure.
"""

import re
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import DatasetCard, ModelCard

BEGIN, END = "<!-- usage: written by hub_cards -->", "<!-- end of usage -->"
TEMPLATES = Path(__file__).parent


def render_template(template: str, /, **values: Any) -> str:
    """One template of this package; a name that has no value is an error, not an empty place.

    Raises:
        ValueError: the template names something that was not handed over.
    """
    loader = jinja2.FileSystemLoader(TEMPLATES)
    # Markdown is no HTML: escaping would turn quotes of the usage code into entities.
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
            f"{template}: {error}. Hand the value to the template, or take the place out of it."
        ) from error


def usage(template: str, *, address: str, on_hub: bool, **values: Any) -> str:
    """The usage section between its two marks; `address` is `owner/name` or a local folder."""
    body = render_template(template, address=address, on_hub=on_hub, **values)
    return f"{BEGIN}\n{body.strip()}\n{END}"


def _with_usage(text: str, section: str) -> str:
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.S)
    found, count = pattern.subn(lambda _: section, text)
    if count != 1:
        raise ValueError(
            f"the card holds {count} usage sections, not one. Render it again: python -m hub_cards render RUN"
        )
    return found


def addressed_model_card(text: str, repo_id: str, *, has_text: bool, dataset_repo_id: str | None) -> str:
    """The card of a model that lives at `repo_id` and cites `dataset_repo_id` where one is given."""
    section = usage("model_usage.md.j2", address=repo_id, on_hub=True, has_text=has_text)
    card = ModelCard(_with_usage(text, section))
    card.data["model_name"] = repo_id.split("/")[1]
    if dataset_repo_id is not None:
        card.data["datasets"] = [dataset_repo_id]
    return str(card)


def addressed_dataset_card(text: str, repo_id: str) -> str:
    """The card of a data set that lives at `repo_id`."""
    return str(DatasetCard(_with_usage(text, usage("dataset_usage.md.j2", address=repo_id, on_hub=True))))
