"""Recipes of the emoji demo, and the tiny recipe of the tests."""

from collections.abc import Callable

from train.recipes.recipe import (
    EnsembleSettings,
    HeadSettings,
    ImageSettings,
    Lora,
    ModelSettings,
    ProxyAnchorLoss,
    Recipe,
    RuntimeSettings,
    SoftmaxLoss,
    TextSettings,
)


def emoji() -> Recipe:
    """Adapters on the last block of EfficientNet-Lite0 by ProxyAnchor; one student of three members; then text.

    Loss, layers, rank, rates and clipping were chosen on validation categories (docs/log.md, 2026-11-29): without
    clipping some seeds of such rates collapse.
    """
    return Recipe(
        name="emoji",
        model=ModelSettings(vision="efficientnet_lite0"),
        image=ImageSettings(
            lora=Lora(rank=58, targets=("expand.conv", "project.conv")),
            encoder_learning_rate=20e-3,
            max_grad_norm=2.0,
        ),
        head=HeadSettings(loss=ProxyAnchorLoss()),
        text=TextSettings(encoder="minilm"),
        ensemble=EnsembleSettings(num_members=3),
    )


def emoji_image_only() -> Recipe:
    """`emoji` without text: the baseline that shows what the documents' text adds."""
    return emoji().with_changes({"name": "emoji_image_only", "publish": "trained", "text.encoder": None})


def emoji_single() -> Recipe:
    """`emoji` trained once, without a student: a quarter of the training time. Publishes its adapters beside `hub/`."""
    return emoji().with_changes({"name": "emoji_single", "ensemble.num_members": 1})


def emoji_lora() -> Recipe:
    """`emoji_single` by CosFace, with low-rank adapters on the text encoder's projections too."""
    return emoji_single().with_changes({"name": "emoji_lora", "head.loss": SoftmaxLoss(), "text.lora.rank": 16})


def emoji_tuned() -> Recipe:
    """Tunes the last block and the text encoder's projections themselves: the baseline of `emoji_lora`."""
    return emoji_single().with_changes(
        {
            "name": "emoji_tuned",
            "publish": "trained",
            "head.loss": SoftmaxLoss(),
            "image.lora": Lora(),
            "image.encoder_learning_rate": 2e-3,
            "image.projection_learning_rate": 8e-3,
            "image.max_grad_norm": None,
            "head.learning_rate": 24e-3,
            "text.tune_layers": True,
            "text.learning_rate": 5e-5,
        }
    )


def emoji_zero_shot() -> Recipe:
    """Frozen features, standardised per side, nothing learned: the lower baseline."""
    return emoji_single().with_changes(
        {
            "name": "emoji_zero_shot",
            "publish": "trained",
            "model.hidden_size": 1280,
            "model.frozen_stages": None,
            "image.lora": Lora(),
            "image.steps": 0,
            "image.projection": "identity",
            "image.query_views": 0,
            "image.document_views": 0,
            "text.encoder": None,
        }
    )


def frozen() -> Recipe:
    """Frozen features alone, for any catalogue: nothing is learned and text is not read."""
    return emoji_zero_shot().with_changes({"name": "frozen"})


def tiny() -> Recipe:
    """Tiny random backbones in double precision: the whole path in seconds, for tests."""
    return Recipe(
        name="tiny",
        publish="trained",
        model=ModelSettings(
            vision="tiny",
            image_size=37,
            hidden_size=20,
            vision_feature_stage=3,
            dtype="float64",
            feature_dtype="float32",
        ),
        image=ImageSettings(
            query_views=1,
            document_views=1,
            steps=50,
            warmup_steps=5,
            queries_per_step=16,
            documents_per_step=16,
            max_grad_norm=1.0,
            checkpoint_every=20,
        ),
        head=HeadSettings(loss=SoftmaxLoss(scale=16.0), max_grad_norm=1.0),
        text=TextSettings(encoder="tiny", folds=3, attention_steps=40),
        runtime=RuntimeSettings(calibration_queries=32),
    )


EMOJI_RECIPES: dict[str, Callable[[], Recipe]] = {
    "emoji": emoji,
    "emoji_image_only": emoji_image_only,
    "emoji_single": emoji_single,
    "emoji_lora": emoji_lora,
    "emoji_tuned": emoji_tuned,
    "emoji_zero_shot": emoji_zero_shot,
    "frozen": frozen,
    "tiny": tiny,
}
