"""What a recipe may say: the range of each field, and what fields must be to each other.

Why apart: recipe.py is what people read to see what a recipe can say; this is what they read when it says no.
"""

from typing import Any

LOSSES = ("softmax", "proxy_anchor")
MARGINS = ("cosface", "arcface", "combined")
DTYPES = ("float32", "float64")
FEATURE_DTYPES = ("bfloat16", "float32")
MIXED_PRECISIONS = ("no", "bf16")
PROJECTIONS = ("pca", "orthogonal", "identity")
HEAD_OPTIMIZERS = ("adamw", "rowwise_adam", "rowwise_adagrad", "adagrad", "momentum", "sgd")
HEAD_DTYPES = (None, "float32", "float64", "bfloat16")
HEAD_STORAGES = ("device", "memory", "disk")
HARD_CLASSES = ("none", "nearest", "leaf")
FEATURE_STORAGES = ("cache", "stream")

_CHOICES: dict[str, tuple[Any, ...]] = {
    "loss": LOSSES,
    "margin": MARGINS,
    "dtype": DTYPES,
    "feature_dtype": FEATURE_DTYPES,
    "feature_storage": FEATURE_STORAGES,
    "export_best": (False, True),
    "mixed_precision": MIXED_PRECISIONS,
    "activation_checkpointing": (False, True),
    "compile": (False, True),
    "text_layers_tuned": (False, True),
    "checkpoint_async": (False, True),
    "projection": PROJECTIONS,
    "head_optimizer": HEAD_OPTIMIZERS,
    "head_dtype": HEAD_DTYPES,
    "head_storage": HEAD_STORAGES,
    "hard_classes": HARD_CLASSES,
}
_ABOVE_ZERO = (
    "sample_rate",
    "scale",
    "head_learning_rate",
    "prototype_learning_rate",
    "encoder_learning_rate",
    "text_learning_rate",
    "distil_learning_rate",
)
_MOST = {"sample_rate": 1.0, "class_balance": 1.0, "embed_dropout": 0.99, "label_smoothing": 0.99}
_LEAST: dict[str, float] = {
    "image_size": 8,
    "hidden_size": 1,
    "query_views": 0,
    "document_views": 0,
    "max_text_tokens": 3,
    "steps": 0,
    "warmup_steps": 0,
    "queries_per_step": 1,
    "documents_per_step": 1,
    "gradient_accumulation": 1,
    "class_balance": 0,
    "label_smoothing": 0,
    "sub_centres": 1,
    "weight_decay": 0,
    "embed_dropout": 0,
    "hard_per_positive": 1,
    "hard_refresh_every": 1,
    "vision_lora_rank": 0,
    "text_lora_rank": 0,
    "text_steps": 1,
    "text_documents_per_step": 2,
    "text_folds": 2,
    "calibration_queries": 0,
    "hub_prototypes_gib": 0,
    "checkpoint_every": 1,
    "checkpoint_keep": 1,
    "num_members": 1,
    "distil_steps": 0,
}


def check_recipe(recipe: Any) -> None:
    """Every field, alone and beside the others.

    Raises:
        ValueError: the first one that cannot be honoured.
    """
    _check_ranges(recipe)
    check_margin(recipe)
    check_loss(recipe)
    check_encoders(recipe)
    check_text(recipe)
    check_evaluation(recipe)
    check_members(recipe)
    check_storage(recipe)


def _check_ranges(recipe: Any) -> None:
    for field, choices in _CHOICES.items():
        value = getattr(recipe, field)
        if value not in choices:
            raise ValueError(f"recipe.{field} is {value!r}; choose one of {', '.join(map(str, choices))}")
    for field, least in _LEAST.items():
        value = getattr(recipe, field)
        if value < least:
            raise ValueError(f"recipe.{field} is {value}; it must be at least {least}")
    for field in _ABOVE_ZERO:
        if not getattr(recipe, field) > 0:
            raise ValueError(f"recipe.{field} is {getattr(recipe, field)}; it must be above 0")
    for field, most in _MOST.items():
        if getattr(recipe, field) > most:
            raise ValueError(f"recipe.{field} is {getattr(recipe, field)}; it must be at most {most}")


def check_margin(recipe: Any) -> None:
    """The margin has as many numbers as it needs, and the filters of negatives are within range."""
    is_triple = isinstance(recipe.margin_value, tuple)
    if is_triple != (recipe.margin == "combined") or (is_triple and len(recipe.margin_value) != 3):
        raise ValueError(
            f"recipe.margin_value is {recipe.margin_value!r} with margin {recipe.margin!r}; give one number to cosface "
            "and arcface, and (m1, m2, m3) to combined"
        )
    if min(recipe.margin_value if isinstance(recipe.margin_value, tuple) else (recipe.margin_value,)) < 0:
        raise ValueError(f"recipe.margin_value is {recipe.margin_value}; it must be at least 0")
    if recipe.conflict_delta is not None and not recipe.conflict_delta >= 0:
        raise ValueError(f"recipe.conflict_delta is {recipe.conflict_delta}; it must be at least 0, or null for off")
    if recipe.conflict_tau is not None and not -1 <= recipe.conflict_tau <= 1:
        raise ValueError(f"recipe.conflict_tau is {recipe.conflict_tau}; it is a cosine: -1 to 1, or null for off")


def check_loss(recipe: Any) -> None:
    """What ProxyAnchor does not have is off beside it."""
    if recipe.loss == "softmax":
        return
    off = {
        "margin": "cosface",
        "label_smoothing": 0.0,
        "sub_centres": 1,
        "conflict_delta": None,
        "conflict_tau": None,
        "gradient_accumulation": 1,
    }
    for field, value in off.items():
        if getattr(recipe, field) != value:
            raise ValueError(
                f"recipe.{field} is {getattr(recipe, field)!r} with loss proxy_anchor, which weighs all samples of a "
                f"step together and has no such setting; leave {field} at {value!r}, or use loss softmax"
            )


def check_encoders(recipe: Any) -> None:
    """Settings of the encoders that would silently do nothing, or not what they say, are refused."""
    if recipe.mixed_precision != "no" and recipe.dtype != "float32":
        raise ValueError(
            f"recipe.mixed_precision is {recipe.mixed_precision} with dtype {recipe.dtype}; autocast leaves "
            "double precision as it is: use float32, or mixed_precision no"
        )
    if recipe.layer_decay is not None and not 0 < recipe.layer_decay <= 1:
        raise ValueError(f"recipe.layer_decay is {recipe.layer_decay}; it must be above 0 and at most 1, or null")
    if recipe.ema_decay is not None and not 0 <= recipe.ema_decay < 1:
        raise ValueError(f"recipe.ema_decay is {recipe.ema_decay}; it must be at least 0 and below 1, or null")
    if recipe.lora_alpha is not None and not recipe.lora_alpha > 0:
        raise ValueError(f"recipe.lora_alpha is {recipe.lora_alpha}; it must be above 0, or null for the rank")
    if recipe.lora_dropout != 0:
        raise ValueError(
            f"recipe.lora_dropout is {recipe.lora_dropout}; only 0 is taken, because its draws would differ with the "
            "number of ranks: use embed_dropout, which is keyed"
        )
    if recipe.frozen_stages is not None and recipe.frozen_stages < 0:
        raise ValueError(f"recipe.frozen_stages is {recipe.frozen_stages}; use 0 to train the whole backbone")


def check_text(recipe: Any) -> None:
    """There is a text encoder to adapt, in one way, and a strength to choose."""
    adapted = {"text_lora_rank": recipe.text_lora_rank > 0, "text_layers_tuned": recipe.text_layers_tuned}
    for field, is_asked in adapted.items():
        if is_asked and recipe.text is None:
            raise ValueError(
                f"recipe.{field} is {getattr(recipe, field)} with text null, where there is no text encoder to adapt; "
                f"name one in text, or leave {field} out"
            )
    if all(adapted.values()):
        raise ValueError(
            f"recipe.text_lora_rank is {recipe.text_lora_rank} with text_layers_tuned true; adapters take the place of "
            "the tuned layers: use rank 0, or text_layers_tuned false"
        )
    if not recipe.text_strengths or min(recipe.text_strengths) < 0:
        raise ValueError(
            f"recipe.text_strengths is {list(recipe.text_strengths)}; give at least one number, none below 0"
        )


def check_evaluation(recipe: Any) -> None:
    """Evaluations exist where something depends on them."""
    for field in ("evaluate_every", "early_stopping", "start_rows"):
        value = getattr(recipe, field)
        if value is not None and value < 1:
            raise ValueError(f"recipe.{field} is {value}; it must be at least 1, or null")
    for field, asked in (("early_stopping", recipe.early_stopping is not None), ("export_best", recipe.export_best)):
        if asked and recipe.evaluate_every is None:
            raise ValueError(
                f"recipe.{field} is {getattr(recipe, field)} with evaluate_every null; there is nothing to compare: "
                "set evaluate_every to a number of steps"
            )


def check_members(recipe: Any) -> None:
    """What needs one training, or features that can be read again."""
    if recipe.num_members == 1:
        return
    if recipe.publish_prototypes:
        raise ValueError(
            f"recipe.num_members is {recipe.num_members} with publish_prototypes true; prototypes in shards are those "
            "of one training: use num_members 1, or publish_prototypes false"
        )
    if recipe.distil_steps and recipe.feature_storage == "stream":
        raise ValueError(
            f"recipe.num_members is {recipe.num_members} with feature_storage stream; the student reads the features "
            "again: use feature_storage cache, or distil_steps 0"
        )


def check_storage(recipe: Any) -> None:
    """Class weights and checkpoints can be kept as asked."""
    if recipe.head_dtype is not None and (recipe.head_dtype == "float64") != (recipe.dtype == "float64"):
        raise ValueError(
            f"recipe.head_dtype is {recipe.head_dtype} with dtype {recipe.dtype}; float64 goes with float64 alone"
        )
    if recipe.checkpoint_minutes is not None and not recipe.checkpoint_minutes > 0:
        raise ValueError(
            f"recipe.checkpoint_minutes is {recipe.checkpoint_minutes}; it must be above 0, or null for off"
        )
    if recipe.checkpoint_async and recipe.head_storage == "disk":
        raise ValueError(
            "recipe.checkpoint_async is true with head_storage disk; the copy of the class rows that it writes "
            "needs main memory: use false, or head_storage device or memory"
        )
