"""Recipes for real catalogues: listed, and trained for a step through the command on small encoders of their kind."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    BitImageProcessor,
    Dinov2Config,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    XLMRobertaConfig,
)

from tests.support.commands import reset_accelerator
from tests.support.synthetic_governed import write_governed
from train.command import read_options
from train.encoders.parameter_groups import parameter_groups
from train.pipeline import train
from train.recipes.catalogue import CATALOGUE_RECIPES, MULTILINGUAL
from train.recipes.recipe import Recipe
from train.recipes.registry import RECIPES
from train.run import context_of

SIZES: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
PIXELS = 28


def siglip(folder: Path) -> None:
    """Both towers, as the Hub has them: the recipe reads the image half."""
    vision = {**SIZES, "image_size": PIXELS, "patch_size": 7}
    text = {**SIZES, "vocab_size": 29, "max_position_embeddings": 16, "projection_size": 24}
    config = SiglipConfig(vision_config=vision, text_config=text)
    AutoModel.from_config(config).save_pretrained(folder)
    SiglipImageProcessor().save_pretrained(folder)


def dinov2(folder: Path) -> None:
    sizes = {key: size for key, size in SIZES.items() if key != "intermediate_size"}
    AutoModel.from_config(Dinov2Config(image_size=37, patch_size=7, mlp_ratio=2, **sizes)).save_pretrained(folder)
    BitImageProcessor().save_pretrained(folder)


def xlm_roberta(folder: Path) -> None:
    config = XLMRobertaConfig(vocab_size=40, max_position_embeddings=70, type_vocab_size=1, pad_token_id=1, **SIZES)
    AutoModel.from_config(config).save_pretrained(folder)
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    tokens = Tokenizer(models.WordLevel({piece: place for place, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


WRITERS = {"google/siglip2-base-patch16-224": siglip, "facebook/dinov2-base": dinov2, MULTILINGUAL: xlm_roberta}


def reduced(name: str, folder: Path) -> Recipe:
    """The recipe with small encoders of its own kinds; MiniLM, which is packaged, by a small BERT."""
    recipe = CATALOGUE_RECIPES[name]()
    given: dict[str, Any] = {"text.encoder": "tiny"}
    for name, source in (("model.vision", recipe.model.vision), ("text.encoder", recipe.text.encoder)):
        if source in WRITERS:
            place = folder / name
            torch.manual_seed(0)
            WRITERS[source](place)
            given[name] = str(place)
    rows = {"image.queries_per_step": 6, "image.documents_per_step": 6, "publish": "trained"}
    return recipe.with_changes({"model.image_size": PIXELS, "model.hidden_size": 20, "text.folds": 3, **rows, **given})


@pytest.fixture(scope="module")
def governed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_governed(tmp_path_factory.mktemp("data") / "governed")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", list(CATALOGUE_RECIPES))
def test_a_recipe_trains_a_step_through_the_command_and_publishes_a_model(
    name: str, governed: Path, tmp_path: Path
) -> None:
    recipe = reduced(name, tmp_path)
    (tmp_path / "given.json").write_text(json.dumps(recipe.to_json()))
    out = tmp_path / "run"
    words = ["--data", governed, "--out", out, "--recipe", tmp_path / "given.json", "--max-steps", 1]
    options = read_options([str(word) for word in words])
    assert options is not None
    train(context_of(options))
    reset_accelerator()
    (step,) = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert step["loss"] > 0
    assert step["grad_norm"] > 0
    model = AutoModel.from_pretrained(out / "hub")
    kinds = {"siglip2_base": "siglip_vision_model"}
    assert model.config.vision_config.model_type == kinds.get(name, "dinov2")
    assert model.config.text_config.model_type == ("bert" if name == "dinov2_base" else "xlm-roberta")
    query = model.get_query_embeds(torch.zeros(2, 3, PIXELS, PIXELS))
    assert query.shape == (2, 20)
    assert (out / "adapter").is_dir() == (recipe.image.lora.rank > 0)
    start = AutoModel.from_pretrained(recipe.model.vision)
    before = dict(getattr(start, "vision_model", start).state_dict())
    moved = {key for key, value in model.vision_model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved
    if recipe.image.lora.rank:
        assert {key.split(".")[-2] for key in moved} == {"q_proj", "v_proj"}


def test_recipes_for_catalogues_are_listed_and_lie_apart_from_those_of_the_demo() -> None:
    assert list(RECIPES)[-len(CATALOGUE_RECIPES) :] == list(CATALOGUE_RECIPES)
    for name, function in CATALOGUE_RECIPES.items():
        assert RECIPES[name] is function
        assert function().name == name


def test_lower_layers_of_dinov2_learn_more_slowly(tmp_path: Path) -> None:
    from train.encoders.backbones import build_model
    from train.encoders.pair import EncoderPair

    recipe = reduced("dinov2_base", tmp_path)
    model, _ = build_model(recipe, seed=0)
    groups = parameter_groups(EncoderPair(model, frozen_stages=0), recipe)
    rates = sorted({group["lr"] for group in groups if group["lr"] <= recipe.image.encoder_learning_rate})
    assert rates == pytest.approx([recipe.image.encoder_learning_rate * 0.75**depth for depth in (3, 2, 1, 0)])
