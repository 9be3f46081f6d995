"""Reads recipe files of version 0.4 and earlier, which held all settings in one flat object."""

from collections.abc import Mapping
from typing import Any

from train.recipes.recipe import ModelSettings, ProxyAnchorLoss, Recipe, SoftmaxLoss

# Flat name -> dotted names of today.
RENAMED: dict[str, tuple[str, ...]] = {
    "image_size": ("model.image_size",),
    "hidden_size": ("model.hidden_size",),
    "frozen_stages": ("model.frozen_stages",),
    "vision_feature_stage": ("model.vision_feature_stage",),
    "dtype": ("model.dtype",),
    "feature_dtype": ("model.feature_dtype",),
    "mixed_precision": ("model.mixed_precision",),
    "query_views": ("image.query_views",),
    "document_views": ("image.document_views",),
    "steps": ("image.steps",),
    "warmup_steps": ("image.warmup_steps",),
    "queries_per_step": ("image.queries_per_step",),
    "documents_per_step": ("image.documents_per_step",),
    "gradient_accumulation": ("image.gradient_accumulation",),
    "class_balance": ("image.class_balance",),
    "projection": ("image.projection",),
    "encoder_learning_rate": ("image.encoder_learning_rate",),
    "head_learning_rate": ("image.projection_learning_rate",),
    "layer_decay": ("image.layer_decay",),
    "weight_decay": ("image.weight_decay", "head.weight_decay", "text.weight_decay"),
    "embed_dropout": ("image.embed_dropout",),
    "encoder_max_grad_norm": ("image.max_grad_norm",),
    "vision_lora_rank": ("image.lora.rank",),
    "lora_alpha": ("image.lora.alpha", "text.lora.alpha"),
    "lora_targets": ("image.lora.targets",),
    "ema_decay": ("image.ema_decay",),
    "evaluate_every": ("image.evaluate_every",),
    "early_stopping": ("image.early_stopping",),
    "export_best": ("image.export_best",),
    "checkpoint_every": ("image.checkpoint_every",),
    "sub_centres": ("head.sub_centres",),
    "sample_rate": ("head.sample_rate",),
    "sample_log_q": ("head.sample_log_q",),
    "start_rows": ("head.start_rows",),
    "prototype_learning_rate": ("head.learning_rate",),
    "head_max_grad_norm": ("head.max_grad_norm",),
    "head_optimizer": ("head.optimizer",),
    "head_momentum": ("head.momentum",),
    "head_dtype": ("head.dtype",),
    "hard_classes": ("head.hard_classes",),
    "hard_per_positive": ("head.hard_per_positive",),
    "hard_refresh_every": ("head.hard_refresh_every",),
    "text": ("text.encoder",),
    "max_text_tokens": ("text.max_tokens",),
    "text_folds": ("text.folds",),
    "text_strengths": ("text.weights",),
    "text_lora_rank": ("text.lora.rank",),
    "text_layers_tuned": ("text.tune_layers",),
    "text_steps": ("text.steps",),
    "text_documents_per_step": ("text.documents_per_step",),
    "text_learning_rate": ("text.learning_rate",),
    "num_members": ("ensemble.num_members",),
    "distil_steps": ("ensemble.distil_steps",),
    "distil_learning_rate": ("ensemble.distil_learning_rate",),
    "head_storage": ("runtime.head_storage",),
    "head_storage_folder": ("runtime.head_storage_folder",),
    "feature_storage": ("runtime.feature_storage",),
    "activation_checkpointing": ("runtime.activation_checkpointing",),
    "compile": ("runtime.compile",),
    "publish_prototypes": ("runtime.publish_prototypes",),
    "hub_prototypes_gib": ("runtime.hub_prototypes_gib",),
    "calibration_queries": ("runtime.calibration_queries",),
    "checkpoint_minutes": ("runtime.checkpoint_minutes",),
    "checkpoint_keep": ("runtime.checkpoint_keep",),
    "checkpoint_async": ("runtime.checkpoint_async",),
}
SOFTMAX_ALONE = ("label_smoothing", "conflict_delta", "conflict_tau")
_OTHERS = {"name", "vision", "loss", "margin", "margin_value", "scale", "lora_dropout", *SOFTMAX_ALONE}


def is_flat(values: Mapping[str, Any]) -> bool:
    """Whether a recipe file is of the flat form."""
    return "vision" in values


def recipe_from_flat(values: Mapping[str, Any]) -> Recipe:
    """The nested recipe of a flat one.

    Raises:
        ValueError: a name that the flat form did not have, or a setting that is gone.
    """
    unknown = sorted(set(values) - set(RENAMED) - _OTHERS)
    if unknown:
        raise ValueError(f"unknown settings: {', '.join(unknown)}; known: {', '.join(sorted({*RENAMED, *_OTHERS}))}")
    missing = sorted({"name", "vision", "text"} - set(values))
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}; a flat recipe needs name, vision and text")
    if values.get("lora_dropout", 0) != 0:
        raise ValueError("lora_dropout is gone, because its draws differ with the number of ranks; use embed_dropout")
    plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    changes = {dotted: plain[name] for name, places in RENAMED.items() if name in plain for dotted in places}
    recipe = Recipe(name=plain["name"], model=ModelSettings(vision=plain["vision"]))
    return recipe.with_changes({"head.loss": _loss(plain), **changes})


def _loss(plain: Mapping[str, Any]) -> SoftmaxLoss | ProxyAnchorLoss:
    if plain.get("loss", "softmax") == "proxy_anchor":
        return ProxyAnchorLoss(margin=plain.get("margin_value", 0.2), alpha=plain.get("scale", 32.0))
    names = ("margin", "margin_value", "scale", *SOFTMAX_ALONE)
    return SoftmaxLoss(**{name: plain[name] for name in names if name in plain})
