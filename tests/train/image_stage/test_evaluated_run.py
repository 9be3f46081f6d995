"""The figures of a run's evaluation are those of its published folder, on one rank and on two, under DDP and FSDP2."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from retrieval.evaluation.metrics import METRICS, ranked_relevance
from tests.support.commands import FSDP2, FSDP2_TRAIN, TRAIN, on_ranks, python_output
from tests.support.curves import assert_same_curve, read_curve, reordered_recipe
from tests.support.synthetic_governed import VALIDATION, rows, write_governed
from train.recipes.emoji import tiny

NAMES = ("recall_at_1", "recall_at_10", "mrr_at_10")
STEPS = 12


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`governed`, a recipe that evaluates and streams, and its runs on one process: `alone`, and `reordered`."""
    folder = tmp_path_factory.mktemp("evaluated")
    write_governed(folder / "governed")
    recipe = tiny().with_changes(
        {"text.encoder": None, "image.steps": STEPS, "image.evaluate_every": 6, "image.export_best": True}
    )
    (folder / "cache.json").write_text(json.dumps(recipe.to_json()))
    streamed = recipe.with_changes({"runtime.feature_storage": "stream"})
    (folder / "stream.json").write_text(json.dumps(streamed.to_json()))
    (folder / "twice.json").write_text(json.dumps(reordered_recipe(recipe).to_json()))
    python_output(TRAIN, *words(folder, "alone"))
    python_output(TRAIN, *words(folder, "reordered", recipe="twice"))
    return folder


def words(base: Path, out: str, *, recipe: str = "cache") -> list[object]:
    where: list[object] = ["--data", base / "governed", "--out", base / out, "--features", base / "features"]
    return [*where, "--recipe", base / f"{recipe}.json"]


def on_two_ranks(program: Path, *words: object, **variables: str) -> str:
    return python_output(*on_ranks(2, program, *words), **variables)


def lines_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def published_figures(hub: Path) -> dict[str, float]:
    """Held-out queries against all documents with an image, through the published folder, ranked by retrieval."""
    model, processor = AutoModel.from_pretrained(hub).eval(), AutoImageProcessor.from_pretrained(hub)
    samples: list[Any] = [row for row in rows() if row["image"] is not None]
    queries = [row for row in samples if row["side"] == "query" and row["category_id"] in VALIDATION]
    documents = [row for row in samples if row["side"] == "document"]

    def pixels(part: list[Any]) -> torch.Tensor:
        images = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in part]
        found: torch.Tensor = processor(images)["pixel_values"]
        return found

    with torch.inference_mode():
        query_QD = model.get_query_embeds(pixels(queries)).numpy()
        document_ND = model.get_document_embeds(pixel_values=pixels(documents)).embeds.numpy()
    names = [row["sample_id"] for row in documents]
    values: dict[str, list[float]] = {name: [] for name in NAMES}
    for query, embed_D in zip(queries, query_QD, strict=True):
        relevance = {row["sample_id"]: 1 for row in documents if row["category_id"] == query["category_id"]}
        ranked = ranked_relevance(names, document_ND @ embed_D, relevance)
        for name in NAMES:
            values[name].append(METRICS[name](*ranked))
    return {name: float(np.mean(found)) for name, found in values.items()}


def test_the_published_folder_has_the_figures_of_the_best_evaluation(base: Path) -> None:
    training = json.loads((base / "alone" / "training.json").read_text())
    best = training["evaluation"]["best"]
    assert training["evaluation"]["evaluations"] == 2
    assert [line["step"] for line in lines_of(base / "alone")] == [6, 12]
    assert best["mrr_at_10"] == max(line["mrr_at_10"] for line in lines_of(base / "alone"))
    assert {name: best[name] for name in NAMES} == pytest.approx(published_figures(base / "alone" / "hub"), abs=1e-6)


@pytest.mark.slow
def test_two_ranks_that_stream_their_inputs_evaluate_the_same(base: Path) -> None:
    said = on_two_ranks(TRAIN, *words(base, "two", recipe="stream"))
    assert "topology: 2 process(es), gloo" in said
    assert lines_of(base / "two") == lines_of(base / "alone")
    ours, theirs, other = (read_curve(base / run) for run in ("two", "alone", "reordered"))
    assert len(theirs["loss"]) == STEPS
    assert_same_curve(ours, theirs, reordered=[other])


@pytest.mark.distributed
def test_two_fsdp2_ranks_evaluate_the_same_and_fill_the_features_together(base: Path) -> None:
    where = words(base, "fsdp2")
    where[where.index("--features") + 1] = base / "features of two"
    said = on_two_ranks(FSDP2_TRAIN, *where, **FSDP2)
    assert "topology: 2 process(es), gloo, FSDP" in said
    assert lines_of(base / "fsdp2") == lines_of(base / "alone")
    for path in (base / "features").glob("*/*.npy"):
        other = base / "features of two" / path.relative_to(base / "features")
        assert other.read_bytes() == path.read_bytes(), path.name
