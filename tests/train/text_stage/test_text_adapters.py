"""The text encoder by gradient: what is trained, what it never sees, and that the published adapters are the model."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from modeling_oclear import OclearModel
from tests.support.commands import reset_accelerator
from tests.support.synthetic_governed import write_governed
from train.command import read_options
from train.encoders.backbones import build_model
from train.encoders.lora import is_adapter_alone, text_layers
from train.inputs.cache import FeatureCache, cache_features, cache_texts
from train.inputs.feature_keys import FeatureExtraction
from train.inputs.samples import GovernedSamples, read_samples
from train.inputs.views import Side
from train.pipeline import train
from train.recipes.recipe import Recipe
from train.recipes.registry import recipe_by_name
from train.run import context_of
from train.text_stage.adapters import adapt_text, unit_sentences
from train.text_stage.sentence_map import SentenceMap, centred_targets, sentence_vectors
from train.text_stage.stage import TextStage

BOTH: dict[str, Any] = {"image.lora.rank": 2, "text.lora.rank": 3, "text.steps": 30, "text.learning_rate": 0.02}


def small(changes: Mapping[str, Any] | None = None) -> Recipe:
    return recipe_by_name("tiny").with_changes({"image.steps": 4, **(changes or {})})


@dataclasses.dataclass(frozen=True)
class Given:
    """What the stage is handed: nothing of it is changed."""

    samples: GovernedSamples
    cache: FeatureCache
    texts: list[str]
    prototypes: torch.Tensor


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("adapted")
    samples = read_samples(write_governed(folder / "governed"))
    model, processor = build_model(small(), seed=0)
    extraction = FeatureExtraction(model, processor, samples.table, recipe=small(), seed=0)
    cache = cache_features(extraction, folder / "features", workers=0)
    prototypes = torch.randn(samples.num_categories, 20, generator=torch.Generator().manual_seed(0))
    return Given(samples, cache, Side(samples.table, "document").texts(), prototypes)


def adapted(given: Given, recipe: Recipe, *, texts: list[str] | None = None, labels: Any = None) -> Any:
    """The changed text encoder's state, and what the stage returned."""
    model, processor = build_model(recipe, seed=0)
    labels = labels or given.samples.labels
    stage = TextStage(model, given.cache, labels, given.prototypes, recipe=recipe, seed=0)
    found = adapt_text(stage, processor, texts or given.texts)
    return model.text_model.state_dict(), found


@pytest.mark.parametrize("changes", [{"text.lora.rank": 3}, {"text.tune_layers": True}])
def test_query_and_value_projections_alone_move_and_the_loss_falls(given: Given, changes: dict[str, Any]) -> None:
    recipe = small({"text.steps": 60, "text.learning_rate": 0.02, **(changes or {})})
    start = build_model(recipe, seed=0)[0].text_model
    state, found = adapted(given, recipe)
    moved = {name.removesuffix(".weight") for name, value in start.state_dict().items() if not value.equal(state[name])}
    assert {name.removesuffix(".bias") for name in moved} == set(text_layers(start))
    assert found.report["last_loss"] < 0.9 * found.report["first_loss"]
    assert found.report["parameters_trained"] < found.report["parameters"]
    assert bool(found.adapters) == ("text.lora.rank" in changes)
    again, _ = adapted(given, recipe)
    assert all(value.equal(again[name]) for name, value in state.items())


def test_texts_of_held_out_categories_are_not_looked_at(given: Given) -> None:
    recipe = small({"text.lora.rank": 3, "text.steps": 5})
    held = given.samples.labels.document_validation
    other = ["unlike anything" if is_held else text for text, is_held in zip(given.texts, held, strict=True)]
    assert other != given.texts
    assert all(
        value.equal(adapted(given, recipe, texts=other)[0][name]) for name, value in adapted(given, recipe)[0].items()
    )
    seen = ["unlike anything" if not is_held else text for text, is_held in zip(given.texts, held, strict=True)]
    moved = adapted(given, recipe, texts=seen)[0]
    assert not all(value.equal(moved[name]) for name, value in adapted(given, recipe)[0].items())


def test_the_first_loss_is_the_naive_one(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.flatnonzero(given.cache.document_mask.any(1) & ~given.samples.labels.document_validation)
    recipe = small({"text.lora.rank": 1, "text.steps": 1, "text.documents_per_step": len(rows)})
    _, found = adapted(given, recipe)
    sentences = sentence_vectors(given.cache.document_tokens[rows], given.cache.document_mask[rows])
    labels = given.samples.labels.document[rows]
    start = SentenceMap.fitted(sentences, centred_targets(given.prototypes, labels))
    classes = sorted(set(labels.tolist()))
    losses = []
    for concept, label in zip(start.concepts(sentences), labels.tolist(), strict=True):
        scores = [
            recipe.head.loss.scale * float(functional.cosine_similarity(concept, given.prototypes[c].double(), dim=0))
            for c in classes
        ]
        losses.append(-scores[classes.index(label)] + np.logaddexp.reduce(scores))
    assert found.report["first_loss"] == pytest.approx(np.mean(losses), abs=2e-2), "tokens are kept in half precision"


def test_sentences_with_gradient_are_those_of_the_cached_features(given: Given) -> None:
    tokens, mask = (np.array(value) for value in (given.cache.document_tokens, given.cache.document_mask))
    ours = unit_sentences(torch.from_numpy(tokens).double(), torch.from_numpy(mask))
    torch.testing.assert_close(ours, sentence_vectors(tokens, mask))


def test_with_texts_of_one_category_nothing_is_trained(given: Given) -> None:
    recipe = small({"text.lora.rank": 3})
    labels = given.samples.labels
    one = dataclasses.replace(labels, document_validation=labels.document != labels.document[0])
    before = build_model(recipe, seed=0)[0].text_model.state_dict()
    state, found = adapted(given, recipe, labels=one)
    assert found is None
    assert all(value.equal(state[name]) for name, value in before.items())


def test_texts_are_embedded_anew_once_for_each_state_of_the_encoder(given: Given, tmp_path: Path) -> None:
    model, processor = build_model(small(), seed=0)
    extraction = FeatureExtraction(model, processor, given.samples.table, recipe=small(), seed=0)
    tokens, mask = cache_texts(extraction, tmp_path)
    assert np.array_equal(tokens, given.cache.document_tokens)
    assert np.array_equal(mask, given.cache.document_mask)
    cache_texts(extraction, tmp_path)
    assert len(list(tmp_path.glob("adapted-*"))) == 1
    with torch.no_grad():
        model.text_model.embeddings.word_embeddings.weight.add_(0.1)
    assert not np.array_equal(cache_texts(extraction, tmp_path)[0], tokens)
    assert len(list(tmp_path.glob("adapted-*"))) == 2


def run(folder: Path, recipe: Recipe) -> Path:
    """The command, once."""
    folder.mkdir()
    write_governed(folder / "governed")
    (folder / "given.json").write_text(json.dumps(recipe.to_json()))
    words = ["--data", folder / "governed", "--out", folder / "run", "--recipe", folder / "given.json"]
    options = read_options([str(word) for word in words])
    assert options is not None
    train(context_of(options))
    reset_accelerator()
    return folder / "run"


# peft 0.21 reads this attribute of transformers 5.23 under its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("storage", ["cache", "stream"])
def test_adapters_of_both_encoders_are_published_reload_and_fold_into_the_published_model(
    tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import AutoPeftModelForFeatureExtraction

    out = run(tmp_path / storage, small({"runtime.feature_storage": storage, **BOTH}))
    report = json.loads((out / "training.json").read_text())["text"]
    assert report["encoder"]["parameters_trained"] == 2 * 2 * 2 * 3 * 12  # layers, projections, A and B, rank, width
    assert {"strength", "table"} <= set(report)
    hub = OclearModel.from_pretrained(out / "hub").eval()
    monkeypatch.chdir(out / "adapter")
    loaded = AutoPeftModelForFeatureExtraction.from_pretrained(".", trust_remote_code=True).eval()
    base = OclearModel.from_pretrained(out / "base").eval()
    _, processor = build_model(small(), seed=0)
    batch = processor(text=["thing a", "other b", "c"])
    words = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    pixels = torch.randn(3, 3, 37, 37, generator=torch.Generator().manual_seed(0))
    merged = loaded.merge_and_unload()
    with torch.no_grad():
        for theirs in (loaded, merged):
            torch.testing.assert_close(theirs.encode_text(**words)[0], hub.encode_text(**words)[0])
            torch.testing.assert_close(theirs.get_query_embeds(pixels), hub.get_query_embeds(pixels))
        assert not torch.allclose(base.encode_text(**words)[0], hub.encode_text(**words)[0], atol=1e-3)


def test_tuned_layers_are_published_in_the_model_alone(tmp_path: Path) -> None:
    out = run(tmp_path / "tuned", small({"text.tune_layers": True, "text.steps": 2, "image.lora.rank": 2}))
    assert (out / "hub" / "config.json").is_file()
    assert not (out / "adapter").exists()


def test_an_adapter_folder_is_written_where_adapters_are_all_that_changes() -> None:
    assert is_adapter_alone(small({"image.lora.rank": 2}))
    assert is_adapter_alone(small({"image.lora.rank": 2, "text.lora.rank": 2}))
    assert is_adapter_alone(small({"text.lora.rank": 2, "model.frozen_stages": None}))
    assert not is_adapter_alone(small({"text.lora.rank": 2}))
    assert not is_adapter_alone(small({"image.lora.rank": 2, "text.tune_layers": True}))
    assert not is_adapter_alone(small())


def test_what_cannot_be_adapted_is_refused() -> None:
    with pytest.raises(ValueError, match="lora.rank is 4 with encoder null.*leave lora.rank out"):
        small({"text.encoder": None, "text.lora.rank": 4})
    with pytest.raises(ValueError, match="tune_layers is True with encoder null"):
        small({"text.encoder": None, "text.tune_layers": True})
    with pytest.raises(ValueError, match="lora.rank is 4 with tune_layers true"):
        small({"text.lora.rank": 4, "text.tune_layers": True})
    with pytest.raises(ValueError, match="Sequential has no layer called q_proj, v_proj, query, value"):
        text_layers(torch.nn.Sequential(torch.nn.Linear(2, 2)))
