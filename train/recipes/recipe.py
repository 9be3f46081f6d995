"""What to learn: complete recipes, each a function that returns a frozen `Recipe`.

A recipe says nothing about machines: the accelerate YAML says where to run, the recipe what to learn, and neither
repeats the other. A recipe is plain values, so that `recipe.json` of a run is the whole truth about it.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.recipes.catalogue import CATALOGUE_RECIPES
from train.recipes.validation import check_recipe

# Where class rows live and how the same numbers are computed: a run may be resumed with other values.
MACHINE_FIELDS = (
    "head_storage",
    "head_storage_folder",
    "hub_prototypes_gib",
    "activation_checkpointing",
    "compile",
    "checkpoint_minutes",
    "checkpoint_keep",
    "checkpoint_async",
    "feature_storage",
)
# What the training of the image side never reads: runs that differ in these alone have the same image side.
TEXT_FIELDS = (
    "name",
    "text",
    "max_text_tokens",
    "text_lora_rank",
    "text_layers_tuned",
    "text_steps",
    "text_documents_per_step",
    "text_learning_rate",
    "text_folds",
    "text_strengths",
    "calibration_queries",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what a run learns. Counts of rows are those of one optimiser step over ALL ranks.

    Attributes:
        name: name of the recipe, for people.
        vision: "efficientnet_lite0" (packaged weights), "tiny" (random, for tests), a Hub id or a folder.
        text: "minilm" (packaged weights), "tiny", a Hub id or a folder; None trains without text.
        image_size: side of the square that the processor produces, pixels.
        hidden_size: width D of the embedding.
        projection: start of the shared projection: "pca" of the standardised features, "orthogonal", or "identity"
            (needs hidden_size equal to the width of the features).
        start_rows: at most so many rows of each side of a class make the mean that it starts from; None is all of them.
        frozen_stages: EfficientNet stages whose output is cached and never trained; 0 trains the whole backbone
            from pixel values; None freezes the whole backbone and caches its pooled output.
        vision_feature_stage: stage whose cells the text attends to (index into the backbone's hidden states; at most
            `frozen_stages`, since cells are cached, or any where that is 0 or None); None is the last hidden state.
        query_views, document_views: augmented views cached beside the clean one.
        max_text_tokens: tokens of a text that are read, special tokens included.
        steps, warmup_steps: optimiser steps in all, and those of the linear warm-up; the rest is a cosine to 0.
        queries_per_step, documents_per_step: rows of one optimiser step.
        gradient_accumulation: micro-steps that one optimiser step is cut into (memory only; same result).
        class_balance: 1 draws every category equally often, 0 in proportion to the weights of its samples.
        loss: "softmax", or "proxy_anchor" with d = margin_value and a = scale; see
            modeling_oclear/proxy_anchor_oclear.py.
        margin, margin_value, scale: margin softmax: "cosface" or "arcface" with m, or "combined" with (m1, m2, m3), and
            s; see modeling_oclear/margins_oclear.py.
        label_smoothing: share of the target that is spread over the classes that take part, those of the same leaf
            where leaves are known; 0 is off.
        sub_centres: rows per class, of which the nearest counts.
        conflict_delta, conflict_tau: a negative whose cosine is above that of the row's positive by more than delta, or
            above tau, leaves the row, since it is likely the same thing under another label; None is off.
        sample_rate: share of the classes that one step scores; 1 is the full softmax.
        sample_log_q: correct logits of drawn classes for their chance to be drawn.
        head_learning_rate: projection and residual MLPs. prototype_learning_rate: class weights.
        encoder_learning_rate: trained part of the image backbone.
        layer_decay: each layer of the backbone learns at this share of the rate of the one above it, the topmost at
            encoder_learning_rate; None is one rate for all (parameter_groups.py).
        weight_decay: decoupled, on matrices and class weights.
        embed_dropout: dropout on the projected embedding while training.
        encoder_max_grad_norm, head_max_grad_norm: two clippings, of encoder and class weights; None only measures.
        head_optimizer: row optimiser of the class weights (row_optimizers.py). head_momentum: read by "momentum" alone.
        head_dtype: stored class weights; None is `dtype`; "bfloat16" is rounded stochastically, computed in float32.
        head_storage: where class weights and their optimiser state live: "device", "memory" (main memory) or "disk"
            (mapped files); head_storage_folder: for "disk"; None is `class_rows` in the run folder.
        hard_classes: classes that take part beside the drawn ones: "none"; "nearest", those with the nearest class
            weights to each positive; "leaf", drawn from the coarse categories of the positives.
        hard_per_positive: how many per positive. hard_refresh_every: steps between indexes of "nearest".
        publish_prototypes: write `prototypes/` in the run folder (prototypes.py), for more classes than `hub/` holds.
        hub_prototypes_gib: `hub/` holds the prototypes of all categories up to this size, in float32, and the main
            process three times as much while it writes them; beyond it see hub_head.py.
        ema_decay: what is published, judged and read by the text side are the encoders' weights averaged over the
            steps, a step's share shrinking by this factor with each later one; None is the weights of the last step
            (weight_average.py).
        mixed_precision: "no", or "bf16": the encoders' forward pass under autocast; weights, gradients, sums over
            ranks and class weights keep their type.
        activation_checkpointing: keep only the input of each block of the backbone, compute the rest again backwards.
        compile: torch.compile on the encoders.
        vision_lora_rank: train low-rank adapters on the backbone's trained stages instead of the stages themselves
            (adapters.py); 0 is off. lora_alpha: adapters of either encoder count alpha / rank; None counts them once,
            whatever their rank. lora_dropout: must be 0.
        lora_targets: ends of the names of the backbone's layers that get adapters; None takes the 1x1 convolutions of
            EfficientNet-Lite, the query and value projections of a transformer.
        text_lora_rank: train low-rank adapters on the query and value projections of the text encoder before the text
            side is fitted (text_adapters.py); 0 is off. text_layers_tuned: train those layers themselves instead.
        text_steps, text_documents_per_step, text_learning_rate: of that training.
        dtype: arithmetic of training, "float32" or "float64".
        feature_dtype: arithmetic of the frozen part while features are cached, "bfloat16" or "float32".
        feature_storage: "cache" keeps the frozen part's output of every view on disk; "stream" decodes and embeds the
            rows of each step while the step before it runs (feature_stream.py), for data whose views do not fit there.
        evaluate_every: steps between two evaluations of held-out queries against all documents by image (evaluator.py);
            None is never.
        early_stopping: training ends after so many evaluations without a better mrr_at_10; None goes to the end.
        export_best: publish the weights of the best evaluation instead of the last ones.
        num_members: the image side is trained so many times from one start with other draws, and one model is made of
            them (members.py); steps and checkpoints are those of each.
        distil_steps, distil_learning_rate: steps of a student that learns from all members together (distil.py), and
            the rate of its backbone; with 0 steps the mean of the members' weights is published. Neither counts with
            one member.
        text_folds, text_strengths: out-of-fold folds over categories, and strengths of text: the largest that held-out
            categories do not speak against is taken (text_side.py).
        calibration_queries: at most so many training queries are published for CSLS.
        checkpoint_every: steps between checkpoints; one more is written at the end of the image side.
        checkpoint_minutes: one more as soon as the newest is so old by the main process's clock; None is off.
        checkpoint_keep: how many of the newest stay; the one with the best figure stays beside them.
        checkpoint_async: training goes on while a checkpoint is written from a copy in main memory.
    """

    name: str
    vision: str
    text: str | None
    image_size: int = 112
    hidden_size: int = 256
    projection: str = "pca"
    frozen_stages: int | None = 6
    vision_feature_stage: int | None = 5
    query_views: int = 1
    document_views: int = 3
    max_text_tokens: int = 32
    steps: int = 400
    warmup_steps: int = 50
    start_rows: int | None = None
    queries_per_step: int = 128
    documents_per_step: int = 128
    gradient_accumulation: int = 1
    class_balance: float = 1.0
    loss: str = "softmax"
    margin: str = "cosface"
    margin_value: float | tuple[float, float, float] = 0.2
    scale: float = 32.0
    label_smoothing: float = 0.0
    sub_centres: int = 1
    conflict_delta: float | None = None
    conflict_tau: float | None = None
    sample_rate: float = 1.0
    sample_log_q: bool = True
    head_learning_rate: float = 2e-3
    prototype_learning_rate: float = 6e-3
    encoder_learning_rate: float = 5e-4
    layer_decay: float | None = None
    weight_decay: float = 0.02
    embed_dropout: float = 0.1
    encoder_max_grad_norm: float | None = None
    head_max_grad_norm: float | None = None
    head_optimizer: str = "adamw"
    head_momentum: float = 0.9
    head_dtype: str | None = None
    head_storage: str = "device"
    head_storage_folder: str | None = None
    hard_classes: str = "none"
    hard_per_positive: int = 10
    hard_refresh_every: int = 100
    publish_prototypes: bool = False
    hub_prototypes_gib: float = 4.0
    ema_decay: float | None = None
    mixed_precision: str = "no"
    activation_checkpointing: bool = False
    compile: bool = False
    vision_lora_rank: int = 0
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    lora_targets: tuple[str, ...] | None = None
    text_lora_rank: int = 0
    text_layers_tuned: bool = False
    text_steps: int = 100
    text_documents_per_step: int = 64
    text_learning_rate: float = 5e-4
    dtype: str = "float32"
    feature_dtype: str = "bfloat16"
    feature_storage: str = "cache"
    evaluate_every: int | None = None
    early_stopping: int | None = None
    export_best: bool = False
    num_members: int = 1
    distil_steps: int = 400
    distil_learning_rate: float = 1e-3
    text_folds: int = 5
    text_strengths: tuple[float, ...] = (0.0, 0.1, 0.2)
    calibration_queries: int = 4096
    checkpoint_every: int = 100
    checkpoint_minutes: float | None = None
    checkpoint_keep: int = 2
    checkpoint_async: bool = False

    def __post_init__(self) -> None:
        check_recipe(self)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON holds them (tuples become lists)."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain


def emoji() -> Recipe:
    """Low-rank adapters on the last block of EfficientNet-Lite0, by ProxyAnchor, three times; one student of the three;
    then the text side: the demo's recipe.

    Loss, layers, rank, rates and clipping were chosen on validation categories (docs/log.md, 2026-11-29): without
    clipping some seeds of such rates collapse.
    """
    return Recipe(
        name="emoji",
        vision="efficientnet_lite0",
        text="minilm",
        loss="proxy_anchor",
        vision_lora_rank=58,
        lora_targets=("expand.conv", "project.conv"),
        encoder_learning_rate=20e-3,
        encoder_max_grad_norm=2.0,
        num_members=3,
    )


def emoji_image_only() -> Recipe:
    """`emoji` with text switched off: what the documents' text is compared with."""
    return dataclasses.replace(emoji(), name="emoji_image_only", text=None)


def emoji_single() -> Recipe:
    """`emoji` trained once, without a student: a quarter of the training. Its adapters are published beside `hub/`."""
    return dataclasses.replace(emoji(), name="emoji_single", num_members=1)


def emoji_lora() -> Recipe:
    """`emoji_single` by CosFace, with low-rank adapters on the text encoder's projections too."""
    return dataclasses.replace(emoji_single(), name="emoji_lora", loss="softmax", text_lora_rank=16)


def emoji_tuned() -> Recipe:
    """The last block's layers and the text encoder's projections themselves: what `emoji_lora` is compared with."""
    return dataclasses.replace(
        emoji_single(),
        name="emoji_tuned",
        loss="softmax",
        vision_lora_rank=0,
        lora_targets=None,
        encoder_learning_rate=2e-3,
        head_learning_rate=8e-3,
        prototype_learning_rate=24e-3,
        encoder_max_grad_norm=None,
        text_layers_tuned=True,
        text_learning_rate=5e-5,
    )


def emoji_zero_shot() -> Recipe:
    """Frozen features, standardised per side, nothing learned: the floor."""
    return dataclasses.replace(
        emoji_single(),
        name="emoji_zero_shot",
        text=None,
        vision_lora_rank=0,
        lora_targets=None,
        steps=0,
        hidden_size=1280,
        projection="identity",
        frozen_stages=None,
        query_views=0,
        document_views=0,
    )


def tiny() -> Recipe:
    """Tiny random backbones in double precision: the whole path in seconds, for tests."""
    return Recipe(
        name="tiny",
        vision="tiny",
        text="tiny",
        image_size=37,
        hidden_size=20,
        projection="pca",
        frozen_stages=6,
        vision_feature_stage=3,
        query_views=1,
        document_views=1,
        steps=50,
        warmup_steps=5,
        queries_per_step=16,
        documents_per_step=16,
        scale=16.0,
        encoder_max_grad_norm=1.0,
        head_max_grad_norm=1.0,
        dtype="float64",
        feature_dtype="float32",
        text_folds=3,
        calibration_queries=32,
        checkpoint_every=20,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "emoji": emoji,
    "emoji_image_only": emoji_image_only,
    "emoji_single": emoji_single,
    "emoji_lora": emoji_lora,
    "emoji_tuned": emoji_tuned,
    "emoji_zero_shot": emoji_zero_shot,
    "tiny": tiny,
    **CATALOGUE_RECIPES,
}


def recipe_by_name(name: str) -> Recipe:
    """The recipe called `name`, or the one of a `recipe.json` when `name` ends in .json.

    A file holds the fields of `Recipe`, so `runs/x/recipe.json` of an earlier run, edited, is a recipe.

    Raises:
        ValueError: no such recipe, or a file with a field that `Recipe` does not have.
    """
    if name.endswith(".json"):
        return _from_file(Path(name))
    if name not in RECIPES:
        raise ValueError(f"no recipe is called {name!r}; choose one of {', '.join(RECIPES)}, or give a recipe.json")
    return RECIPES[name]()


def _from_file(path: Path) -> Recipe:
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give the recipe.json of an earlier run, or the name of a recipe")
    try:
        values = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); give the recipe.json of an earlier run") from error
    known = {field.name for field in dataclasses.fields(Recipe)}
    unknown = sorted(set(values) - known) if isinstance(values, dict) else [type(values).__name__]
    if unknown:
        raise ValueError(f"{path} holds what a recipe does not have: {', '.join(unknown)}; known: {sorted(known)}")
    missing = {"name", "vision", "text"} - set(values)
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}; a recipe needs name, vision and text")
    for field in ("text_strengths", "margin_value", "lora_targets"):
        if isinstance(values.get(field), list):
            values[field] = tuple(values[field])
    return Recipe(**values)


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """One readable line of the fields that differ: "steps: 400 here, 200 there"; empty when none does."""
    keys = sorted(set(ours) | set(theirs))
    return "; ".join(
        f"{key}: {ours.get(key)!r} here, {theirs.get(key)!r} there" for key in keys if ours.get(key) != theirs.get(key)
    )
