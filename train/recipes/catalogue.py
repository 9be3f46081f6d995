"""Recipes for real catalogues on a GPU: photographs, several languages, more categories than one step can score.

Not yet run on such a catalogue: each is built and trained for a step in the tests, on small random models of the same
architectures, and its memory and hours are planned in docs/recipes.md. What they share, and why:

    stream      a transformer cannot be cut into frozen stages, pixel values would be cached; they are decoded instead
    bf16        the encoders' forward pass; weights, sums and class weights keep float32
    sampled     a tenth of the categories take part in a step, logits corrected for the chance to be drawn
    row-wise    Adam that keeps one second moment a class row
    checkpoints every 20 minutes, written beside the training

Text encoders are fixed in every recipe, and their tokens are averaged: an encoder trained for sentences does that well,
plain XLM-R does not (Reimers and Gurevych 2020, 2004.09813). SigLIP 2's own text tower is not offered: it reads the
last place of a row filled up to 64 tokens without a mask (Tschannen et al. 2025, 2502.14786; transformers'
`SiglipTextModel`), which a masked mean of tokens is not.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.recipes.recipe import Recipe

MULTILINGUAL = "sentence-transformers/paraphrase-multilingual-mpnet-base-v2"  # XLM-R base, over 50 languages
SHARED: dict[str, Any] = {
    "image_size": 224,
    "hidden_size": 512,
    "frozen_stages": 0,
    "vision_feature_stage": None,
    "feature_storage": "stream",
    "max_text_tokens": 64,
    "steps": 20_000,
    "warmup_steps": 1_000,
    "start_rows": 4,
    "queries_per_step": 256,
    "documents_per_step": 256,
    "sample_rate": 0.1,
    "head_optimizer": "rowwise_adam",
    "head_learning_rate": 1e-3,
    "encoder_max_grad_norm": 1.0,
    "mixed_precision": "bf16",
    "checkpoint_every": 2_000,
    "checkpoint_minutes": 20.0,
    "checkpoint_async": True,
}
WHOLE: dict[str, Any] = {"encoder_learning_rate": 5e-5, "layer_decay": 0.75}


def _recipe(name: str, **fields: Any) -> "Recipe":
    from train.recipes.recipe import Recipe  # not above: recipe.py reads this file to list its recipes

    return Recipe(name=name, **SHARED, **fields)


def siglip2_base() -> "Recipe":
    """SigLIP 2 base with low-rank adapters, text in over 50 languages: for catalogues of photographs, on a GPU."""
    return _recipe(
        "siglip2_base",
        vision="google/siglip2-base-patch16-224",
        text=MULTILINGUAL,
        vision_lora_rank=16,
        encoder_learning_rate=5e-4,
    )


def dinov2_base() -> "Recipe":
    """DINOv2 base trained whole, lower layers more slowly, English text by MiniLM: what looks alike, on a GPU."""
    return _recipe("dinov2_base", vision="facebook/dinov2-base", text="minilm", **WHOLE)


def dinov2_base_multilingual() -> "Recipe":
    """`dinov2_base` with text in over 50 languages, by an XLM-R trained for sentences."""
    return _recipe("dinov2_base_multilingual", vision="facebook/dinov2-base", text=MULTILINGUAL, **WHOLE)


CATALOGUE_RECIPES: dict[str, Callable[[], Any]] = {
    "siglip2_base": siglip2_base,
    "dinov2_base": dinov2_base,
    "dinov2_base_multilingual": dinov2_base_multilingual,
}
