"""Recipes for real catalogues on a GPU: photographs, several languages, many categories.

Not yet run on such a catalogue: the tests build each and train it for a step on small random models of the same
architectures; docs/recipes.md plans memory and hours. Common settings:

    stream      a transformer cannot be cut into frozen stages and pixel values would be cached, so they are decoded
    bf16        the encoders' forward pass; weights, sums and class weights keep float32
    sampled     a tenth of the categories take part in a step, with logits corrected for the sampling
    row-wise    Adam that keeps one second moment a class row
    checkpoints every 20 minutes, written beside the training

Text encoders are fixed and their tokens averaged: an encoder trained for sentences does that well, plain XLM-R does not
(Reimers and Gurevych 2020, 2004.09813). SigLIP 2's own text tower is not offered: it reads the last place of a row
padded to 64 tokens without a mask (Tschannen et al. 2025, 2502.14786; transformers' `SiglipTextModel`), which a masked
mean of tokens is not.
"""

from collections.abc import Callable
from typing import Any

from train.recipes.recipe import HeadSettings, ImageSettings, ModelSettings, Recipe, RuntimeSettings, TextSettings

MULTILINGUAL = "sentence-transformers/paraphrase-multilingual-mpnet-base-v2"  # XLM-R base, over 50 languages
TRAIN_ALL_LAYERS: dict[str, Any] = {"image.encoder_learning_rate": 5e-5, "image.layer_decay": 0.75}


def _catalogue_recipe(name: str, *, vision: str, text: str) -> Recipe:
    return Recipe(
        name=name,
        model=ModelSettings(
            vision=vision,
            image_size=224,
            hidden_size=512,
            frozen_stages=0,
            vision_feature_stage=None,
            mixed_precision="bf16",
        ),
        image=ImageSettings(
            steps=20_000,
            warmup_steps=1_000,
            queries_per_step=256,
            documents_per_step=256,
            projection_learning_rate=1e-3,
            max_grad_norm=1.0,
            checkpoint_every=2_000,
        ),
        head=HeadSettings(sample_rate=0.1, start_rows=4, optimizer="rowwise_adam"),
        text=TextSettings(encoder=text, max_tokens=64),
        runtime=RuntimeSettings(feature_storage="stream", checkpoint_minutes=20.0, checkpoint_async=True),
    )


def siglip2_base() -> Recipe:
    """SigLIP 2 base with low-rank adapters, text in over 50 languages: for catalogues of photographs, on a GPU."""
    recipe = _catalogue_recipe("siglip2_base", vision="google/siglip2-base-patch16-224", text=MULTILINGUAL)
    return recipe.with_changes({"image.lora.rank": 16, "image.encoder_learning_rate": 5e-4})


def dinov2_base() -> Recipe:
    """DINOv2 base with all layers trained, lower ones more slowly, English text by MiniLM; on a GPU."""
    return _catalogue_recipe("dinov2_base", vision="facebook/dinov2-base", text="minilm").with_changes(TRAIN_ALL_LAYERS)


def dinov2_base_multilingual() -> Recipe:
    """`dinov2_base` with text in over 50 languages, by an XLM-R trained for sentences."""
    recipe = _catalogue_recipe("dinov2_base_multilingual", vision="facebook/dinov2-base", text=MULTILINGUAL)
    return recipe.with_changes(TRAIN_ALL_LAYERS)


CATALOGUE_RECIPES: dict[str, Callable[[], Recipe]] = {
    "siglip2_base": siglip2_base,
    "dinov2_base": dinov2_base,
    "dinov2_base_multilingual": dinov2_base_multilingual,
}
