"""What is published is never surely worse than the frozen encoder, and the run says why."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from tests.support.commands import reset_accelerator
from tests.support.images import pixels_png
from tests.support.synthetic_governed import write_categories, write_governed, write_samples
from train.command import read_options
from train.inputs.samples import read_samples
from train.pipeline import train
from train.recipes.emoji import tiny
from train.run import context_of
from train.selection.candidates import between
from train.selection.held_out import METRICS
from train.selection.judge import HeldOutRows, evenly
from train.selection.select import shortcomings
from train.selection.verdict import FROZEN, Verdict, best, verdict

PIXELS, HELD_OUT, CATEGORIES, FROZEN_WIDTH = 37, 12, 26, 24


def coloured(category: int, number: int) -> bytes:
    """A square of the category's colour on a tint of the image's own."""
    rng = np.random.default_rng([category, number])
    pixels = np.full((PIXELS, PIXELS, 3), 190 + rng.integers(0, 60, 3), np.uint8)
    top, left = rng.integers(2, 14, 2)
    pixels[top : top + 20, left : left + 20] = np.random.default_rng(category).integers(0, 255, 3)
    return pixels_png(pixels)


def sample(side: str, category: int, number: int, label: int, *, held_out: bool) -> dict[str, object]:
    return {
        "sample_id": f"{side[0]}{category}x{number}",
        "side": side,
        "image": {"bytes": coloured(category, number), "path": None},
        "text": "",
        "category_id": label,
        "weight": 1.0,
        "split": "validation" if held_out else "train",
    }


def write_data(folder: Path, *, shuffled: bool = False, queries: int = 3, categories: int = CATEGORIES) -> Path:
    """Categories of which `HELD_OUT` judge; with `shuffled` the queries of the others have labels of chance."""
    rng, rows = np.random.default_rng(3), []
    for category in range(categories):
        held_out = category < HELD_OUT
        for number in range(queries):
            chance = int(rng.integers(HELD_OUT, categories)) if shuffled and not held_out else category
            rows.append(sample("query", category, number, chance, held_out=held_out))
        rows += [sample("document", category, 9 + number, category, held_out=held_out) for number in range(2)]
    write_samples(folder, rows)
    write_categories(folder, [f"key{number:02d}" for number in range(categories)])
    return folder


def run(data: Path, out: Path, **changes: object) -> dict[str, object]:
    """training.json of a run of `tiny` that publishes the best candidate."""
    recipe = tiny().with_changes({"publish": "best", "text.encoder": None, "image.steps": 30, **changes})
    out.mkdir()
    (out / "given.json").write_text(json.dumps(recipe.to_json()))
    options = read_options(["--data", str(data), "--out", str(out / "run"), "--recipe", str(out / "given.json")])
    assert options is not None
    train(context_of(options))
    reset_accelerator()
    found: dict[str, object] = json.loads((out / "run" / "training.json").read_text())
    return found


def test_labels_of_chance_publish_the_frozen_encoder_and_say_so(tmp_path: Path) -> None:
    selection = run(write_data(tmp_path / "data", shuffled=True), tmp_path / "out")["selection"]
    assert isinstance(selection, dict)
    names = [row["candidate"] for row in selection["candidates"]]
    assert names == ["frozen", "trained", "75% trained", "50% trained", "25% trained"]
    assert selection["held_out_categories"] == HELD_OUT
    assert selection["gallery_documents"] == 2 * CATEGORIES, "the full catalogue"
    if selection["published"] == "frozen":
        assert "Training is not surely better" in selection["explanation"]
        assert "only 14 classes" in selection["explanation"]
        model = AutoModel.from_pretrained(tmp_path / "out" / "run" / "hub")
        assert model.get_query_embeds(torch.zeros(1, 3, PIXELS, PIXELS)).shape == (1, FROZEN_WIDTH)
    chosen = next(row for row in selection["candidates"] if row["candidate"] == selection["published"])
    assert chosen["safe"]
    assert chosen["low"] >= 0


def test_too_few_held_out_categories_publish_the_frozen_encoder(tmp_path: Path) -> None:
    found = run(write_governed(tmp_path / "data"), tmp_path / "out")["selection"]
    assert isinstance(found, dict)
    assert found["published"] == "frozen"
    assert "Only 2 categories with a query and a document are held out" in found["explanation"]


@pytest.mark.parametrize("queries", [0, 3])
def test_nothing_to_train_on_still_publishes_a_model(tmp_path: Path, queries: int) -> None:
    """No query at all; or every training category but one without clicks."""
    write_data(tmp_path / "data", queries=queries, categories=HELD_OUT + 1)
    found = run(tmp_path / "data", tmp_path / "out")
    selection = found["selection"]
    assert isinstance(selection, dict)
    assert selection["published"] == "frozen"
    assert "nothing was trained" in selection["explanation"]
    assert "at least 2 are needed" in selection["explanation"]
    model = AutoModel.from_pretrained(tmp_path / "out" / "run" / "hub")
    assert torch.isfinite(model.get_query_embeds(torch.zeros(1, 3, PIXELS, PIXELS))).all()


def gains(mean: float, *, spread: float, count: int = 40) -> np.ndarray:
    """(C, F) metrics of a candidate around .4, beside a frozen encoder of .4 everywhere."""
    offsets = np.linspace(-spread, spread, count)
    return np.repeat((0.4 + mean + offsets)[:, None], len(METRICS), axis=1)


def test_a_candidate_is_safe_when_its_interval_does_not_reach_below_zero() -> None:
    frozen = np.full((40, len(METRICS)), 0.4)
    clear, unclear, worse = (gains(mean, spread=0.3) for mean in (0.2, 0.02, -0.2))
    assert verdict("clear", clear, frozen).is_safe
    assert not verdict("unclear", unclear, frozen).is_safe
    assert not verdict("worse", worse, frozen).is_safe
    assert verdict(FROZEN, frozen, frozen).is_safe
    mixed = clear.copy()
    mixed[:, 0] -= 0.4  # recall at 1 falls surely while the gain rises
    assert not verdict("mixed", mixed, frozen).is_safe
    lower = clear.copy()
    lower[:, METRICS.index("mrr_at_10")] = 0.39 + gains(0.0, spread=0.3)[:, 0] - 0.4
    assert not verdict("lower", lower, frozen).is_safe, "a mean reciprocal rank below that of the frozen encoder"


def test_the_best_safe_candidate_is_published() -> None:
    def one(name: str, metric: float, *, safe: bool) -> Verdict:
        return Verdict(name, {"ndcg": metric}, 0.1, 0.01, 0.2, safe)

    verdicts = {
        FROZEN: one(FROZEN, 0.3, safe=True),
        "a": one("a", 0.4, safe=True),
        "b": one("b", 0.9, safe=False),
    }
    assert best(verdicts, categories=40) == "a"
    assert best(verdicts, categories=9) == FROZEN


def test_between_scales_the_way_from_the_start() -> None:
    start = {"head": torch.zeros(2), "norm": torch.ones(2)}
    trained = {
        "head": torch.full((2,), 4.0),
        "norm": torch.full((2,), 3.0),
        "count": torch.tensor(7),
        "layer.lora_A.default.weight": torch.full((2,), 5.0),
        "layer.lora_B.default.weight": torch.full((2,), 8.0),
    }
    found = between(start, trained, 0.25)
    torch.testing.assert_close(found["head"], torch.ones(2))
    torch.testing.assert_close(found["norm"], torch.full((2,), 1.5))
    assert found["count"] == 7
    torch.testing.assert_close(found["layer.lora_A.default.weight"], torch.full((2,), 5.0))
    torch.testing.assert_close(found["layer.lora_B.default.weight"], torch.full((2,), 2.0))


def test_held_out_rows_hold_the_full_catalogue(tmp_path: Path) -> None:
    samples = read_samples(write_governed(tmp_path / "data"))
    rows = HeldOutRows.of(samples)
    assert len(rows.documents) == int(samples.document_has_image.sum())
    assert samples.labels.query_validation[rows.queries].all()
    assert not samples.labels.query_validation[rows.calibration].any()
    assert evenly(np.arange(3), 7).tolist() == [0, 1, 2]


def test_shortcomings_name_what_the_data_lack(tmp_path: Path) -> None:
    said = " ".join(shortcomings(read_samples(write_governed(tmp_path / "data"))))
    assert "only 10 classes" in said
    assert "queries on average" not in said
