"""Upload of a low-rank adapter and its base model, as two repositories.

In a run the adapter names its base model by a relative path. The upload replaces it by the repository of the base
model, in the uploaded copy only: the folders on disk do not change.
"""

import json
import math
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from safetensors import safe_open

from hub_cards.address import render_template
from hub_cards.formatting import table
from hub_cards.model_card import nested, weight_sources
from hub_cards.publishable import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    PlannedFile,
    adapter_files,
    machine_traces,
    model_files,
    this_host,
)
from hub_cards.push import Upload, check_repo_id
from hub_cards.results import ResultFile, read_attribution, read_json

ENCODERS = {"vision_model": "image encoder", "text_model": "text encoder"}


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter (and not a full model)."""
    return (folder / ADAPTER_CONFIG).is_file()


def plan_adapter(folder: Path, *, repo_id: str, base_repo_id: str | None) -> list[Upload]:
    """Check an adapter and its base model and list their files; sends nothing.

    Args:
        folder: the adapter; its config names the folder of the base model.
        repo_id: repository of the adapter. base_repo_id: repository of the base model.

    Returns:
        The uploads in order: the base model before the adapter that names it.

    Raises:
        ValueError: for a file that must not or cannot be published.
    """
    if base_repo_id is None:
        raise ValueError(
            f"{folder} holds an adapter, which cannot be loaded without its base model. Add --base-repo-id owner/name: "
            "the repository for the base model."
        )
    if check_repo_id(repo_id) == check_repo_id(base_repo_id):
        raise ValueError(f"adapter and base model cannot both be {repo_id}. Give --base-repo-id another name.")
    files = adapter_files(folder)
    config = read_json(folder / ADAPTER_CONFIG, ADAPTER_CONFIG)
    base = folder / config.text("base_model_name_or_path")
    base_files = model_files(base, has_card=False)
    shared: dict[str, Any] = {
        "base": base_repo_id,
        "has_text": read_json(base / "config.json", "base/config.json").has("text_config"),
        "sources": weight_sources(read_json(folder.parent / "recipe.json", "recipe.json")),
    }
    base_card = _card("base_card.md.j2", base_repo_id, library="transformers", **shared)
    adapter_card = _card(
        "adapter_card.md.j2",
        repo_id,
        library="peft",
        parts=_parts(folder, config),
        attribution=nested(read_attribution(folder.parent)),
        **shared,
    )
    addressed = {**config.content, "base_model_name_or_path": base_repo_id}
    replaced = {ADAPTER_CONFIG: json.dumps(addressed, indent=2, sort_keys=True) + "\n", "README.md": adapter_card}
    return [
        Upload("model", base_repo_id, _with_texts(base_files, {"README.md": base_card})),
        Upload("model", repo_id, _with_texts(files, replaced)),
    ]


def _with_texts(files: list[PlannedFile], texts: dict[str, str]) -> list[PlannedFile]:
    """Add the files of `texts` to the list, in place of files of the same path."""
    kept = [file for file in files if file.path_in_repo not in texts]
    added = [PlannedFile(name, text.encode()) for name, text in texts.items()]
    return sorted([*kept, *added], key=lambda file: file.path_in_repo)


def _card(template: str, repo_id: str, *, library: str, base: str, **values: Any) -> str:
    data = ModelCardData(
        license="apache-2.0",
        library_name=library,
        pipeline_tag="image-feature-extraction",
        base_model=base if library == "peft" else None,
        tags=[
            "oclear",
            "image-retrieval",
            "multi-modal-retrieval",
            "custom_code",
            *(["lora"] if library == "peft" else []),
        ],
        model_name=repo_id.split("/")[1],
    )
    body = render_template(template, model_name=repo_id.split("/")[1], repo_id=repo_id, base=base, **values)
    text = str(ModelCard(f"---\n{data.to_yaml()}\n---\n{body}"))
    for trace in machine_traces(text, this_host()):
        raise ValueError(f"'{trace}' in the result files of the run names this machine. Use a relative path there.")
    return text


def _parts(folder: Path, config: ResultFile) -> str:
    """Table of the adapted parts: rank, number of layers and parameters, read from the adapter's files."""
    sizes: dict[str, int] = {}
    with safe_open(folder / ADAPTER_WEIGHTS, framework="numpy") as weights:
        for name in weights.keys():  # noqa: SIM118
            part = name.removeprefix("base_model.model.").split(".")[0]
            sizes[part] = sizes.get(part, 0) + math.prod(weights.get_slice(name).get_shape())
    ranks: dict[str, list[int]] = {}
    for layer, rank in config.section("rank_pattern").content.items():
        ranks.setdefault(str(layer).split(".")[0], []).append(int(rank))
    rows = []
    for part, size in sizes.items():
        what = f"rank {max(ranks[part])} on {len(ranks[part])} layers" if part in ranks else "full weights"
        rows.append([ENCODERS.get(part, part), what, f"{size:,}"])
    return table(["part", "content", "parameters"], rows)
