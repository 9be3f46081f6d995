"""Recipes: frozen settings of one training run, in six groups.

A recipe says what to learn; the accelerate YAML says on which machines. It holds plain values only, so `recipe.json`
of a run describes it completely. Change one with dotted names: `recipe.with_changes({"image.steps": 800})`.

Counts of rows are those of one optimiser step over ALL ranks.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, ClassVar

from train.recipes.settings import Settings, setting

HEAD_OPTIMIZERS = ("adamw", "rowwise_adam", "rowwise_adagrad", "adagrad", "momentum", "sgd")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings):
    """Image encoder, embedding and arithmetic.

    Attributes:
        vision: "efficientnet_lite0" (packaged weights), "tiny" (random, for tests), a Hub id or a folder.
        image_size: side of the square that the processor produces, pixels.
        hidden_size: width D of the embedding.
        frozen_stages: EfficientNet stages whose output is cached and never trained; 0 trains the whole backbone
            from pixel values; None freezes the whole backbone and caches its pooled output.
        vision_feature_stage: stage whose patches the text attends to (index into the backbone's hidden states; at most
            `frozen_stages`, since patches are cached, or any where that is 0 or None); None is the last hidden state.
        dtype: arithmetic of training, "float32" or "float64".
        feature_dtype: arithmetic of the frozen part while features are cached: "bfloat16", "float32", or "auto",
            bfloat16 on processors that do not emulate it (runtime/arithmetic.py).
        mixed_precision: "no", or "bf16": the encoders' forward pass under autocast; weights, gradients, sums over
            ranks and class weights keep their type.
    """

    place: ClassVar[str] = "recipe.model"
    vision: str
    image_size: int = setting(112, least=8)
    hidden_size: int = setting(256, least=1)
    frozen_stages: int | None = setting(6, least=0)
    vision_feature_stage: int | None = 5
    dtype: str = setting("float32", choices=("float32", "float64"))
    feature_dtype: str = setting("auto", choices=("auto", "bfloat16", "float32"))
    mixed_precision: str = setting("no", choices=("no", "bf16"))

    def check(self) -> None:
        if self.mixed_precision != "no" and self.dtype != "float32":
            raise ValueError(
                f"recipe.model.mixed_precision is {self.mixed_precision} with dtype {self.dtype}; autocast leaves "
                "double precision as it is: use float32, or mixed_precision no"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora(Settings):
    """Low-rank adapters on one encoder.

    Attributes:
        rank: 0 is off.
        alpha: the adapter's output counts alpha / rank; None counts it once, whatever the rank.
        targets: ends of the names of the layers that get adapters; None takes the 1x1 convolutions of
            EfficientNet-Lite, the query and value projections of a transformer.
    """

    place: ClassVar[str] = "recipe.(image or text).lora"
    rank: int = setting(0, least=0)
    alpha: float | None = setting(None, above=0)
    targets: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSettings(Settings):
    """The image stage: image encoder, projection and class weights learn to classify queries and documents.

    Attributes:
        query_views, document_views: augmented views cached beside the clean one.
        steps, warmup_steps: optimiser steps in all, and those of the linear warm-up; the rest is a cosine to 0.
        queries_per_step, documents_per_step: rows of one optimiser step.
        gradient_accumulation: micro-steps that one optimiser step is cut into (memory only; same result).
        class_balance: 1 draws every category equally often, 0 in proportion to the weights of its samples.
        projection: start of the shared projection: "pca" of the standardised features, "orthogonal", or "identity"
            (needs hidden_size equal to the width of the features).
        encoder_learning_rate: trained part of the image backbone.
        projection_learning_rate: projection and residual MLPs.
        layer_decay: each layer of the backbone learns at this share of the rate of the one above it, the topmost at
            encoder_learning_rate; None is one rate for all (encoders/parameter_groups.py).
        weight_decay: decoupled, on matrices.
        embed_dropout: dropout on the projected embedding while training.
        max_grad_norm: clipping of the encoder's gradient; None only measures it.
        lora: adapters on the trained stages of the backbone, instead of training the stages themselves.
        ema_decay: the published weights are the encoders' weights averaged over the steps, a step's share shrinking by
            this factor with each later one; None publishes the weights of the last step (encoders/ema.py).
        evaluate_every: steps between two evaluations of held-out queries against all documents by image
            (image_stage/evaluator.py); None is never.
        early_stopping: training ends after so many evaluations without a better mrr_at_10; None goes to the end.
        export_best: publish the weights of the best evaluation instead of the last ones.
        recover: how often a run that diverges may go back to its best checkpoint at a quarter of its rates
            (image_stage/recovery.py).
        checkpoint_every: steps between checkpoints; one more is written at the end. The index of nearest classes is
            rebuilt at each checkpoint too, so this changes what is learned with hard_classes "nearest".
    """

    place: ClassVar[str] = "recipe.image"
    query_views: int = setting(1, least=0)
    document_views: int = setting(3, least=0)
    steps: int = setting(400, least=0)
    warmup_steps: int = setting(50, least=0)
    queries_per_step: int = setting(128, least=1)
    documents_per_step: int = setting(128, least=1)
    gradient_accumulation: int = setting(1, least=1)
    class_balance: float = setting(1.0, least=0, most=1)
    projection: str = setting("pca", choices=("pca", "orthogonal", "identity"))
    encoder_learning_rate: float = setting(5e-4, above=0)
    projection_learning_rate: float = setting(2e-3, above=0)
    layer_decay: float | None = setting(None, above=0, most=1)
    weight_decay: float = setting(0.02, least=0)
    embed_dropout: float = setting(0.1, least=0, most=0.99)
    max_grad_norm: float | None = None
    lora: Lora = Lora()
    ema_decay: float | None = setting(None, least=0, below=1)
    evaluate_every: int | None = setting(None, least=1)
    early_stopping: int | None = setting(None, least=1)
    export_best: bool = False
    recover: int = setting(0, least=0)
    checkpoint_every: int = setting(100, least=1)

    def check(self) -> None:
        for name, is_on in (
            ("early_stopping", self.early_stopping is not None),
            ("export_best", self.export_best),
            ("recover", self.recover > 0),
        ):
            if is_on and self.evaluate_every is None:
                raise ValueError(
                    f"recipe.image.{name} is {getattr(self, name)} with evaluate_every null; there is nothing to "
                    "compare: set evaluate_every to a number of steps"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftmaxLoss(Settings):
    """Margin softmax over the sampled classes (modeling_oclear/partial_softmax_oclear.py).

    Attributes:
        margin, margin_value: "cosface" or "arcface" with m, or "combined" with (m1, m2, m3) (margins_oclear.py).
        scale: s, factor of the cosines.
        label_smoothing: share of the target that is spread over the sampled classes, those of the same leaf where
            leaves are known; 0 is off.
        conflict_delta, conflict_tau: a negative whose cosine is above that of the row's positive by more than delta, or
            above tau, is left out for this row: it is likely the same thing under another label. None is off.
    """

    place: ClassVar[str] = "recipe.head.loss"
    margin: str = setting("cosface", choices=("cosface", "arcface", "combined"))
    margin_value: float | tuple[float, float, float] = 0.2
    scale: float = setting(32.0, above=0)
    label_smoothing: float = setting(0.0, least=0, most=0.99)
    conflict_delta: float | None = setting(None, least=0)
    conflict_tau: float | None = setting(None, least=-1, most=1)

    def check(self) -> None:
        is_triple = isinstance(self.margin_value, tuple)
        if is_triple != (self.margin == "combined") or (is_triple and len(self.margin_value) != 3):  # type: ignore[arg-type]
            raise ValueError(
                f"recipe.head.loss.margin_value is {self.margin_value!r} with margin {self.margin!r}; give one number "
                "to cosface and arcface, and (m1, m2, m3) to combined"
            )
        if min(self.margin_value if isinstance(self.margin_value, tuple) else (self.margin_value,)) < 0:
            raise ValueError(f"recipe.head.loss.margin_value is {self.margin_value}; it must be at least 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProxyAnchorLoss(Settings):
    """ProxyAnchor (Kim et al. 2020), modeling_oclear/proxy_anchor_oclear.py.

    Attributes:
        margin: delta, added to positive and negative cosines.
        alpha: factor of the cosines in both soft maxima.
    """

    place: ClassVar[str] = "recipe.head.loss"
    margin: float = setting(0.2, least=0)
    alpha: float = setting(32.0, above=0)

    @property
    def scale(self) -> float:
        """Factor of the cosines, under the name that both losses share."""
        return self.alpha


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadSettings(Settings):
    """Class weights: loss, sampling of classes and their optimiser.

    Attributes:
        loss: `SoftmaxLoss` or `ProxyAnchorLoss`.
        sub_centres: rows per class, of which the nearest counts.
        sample_rate: share of the classes that one step scores; 1 is the full softmax.
        sample_log_q: correct logits of drawn classes for their probability of being drawn.
        start_rows: at most so many rows of each side of a class make the mean that it starts from; None is all of them.
        learning_rate, weight_decay, max_grad_norm: of the class weights; max_grad_norm None only measures.
        optimizer: row optimiser (class_weights/row_optimizers.py). momentum: read by "momentum" alone.
        dtype: stored class weights; None is model.dtype; "bfloat16" is rounded stochastically, computed in float32.
        hard_classes: classes that take part beside the drawn ones: "none"; "nearest", those with the nearest class
            weights to each positive; "leaf", drawn from the coarse categories of the positives.
        hard_per_positive: how many per positive. hard_refresh_every: steps between indexes of "nearest".
    """

    place: ClassVar[str] = "recipe.head"
    loss: SoftmaxLoss | ProxyAnchorLoss = SoftmaxLoss()
    sub_centres: int = setting(1, least=1)
    sample_rate: float = setting(1.0, above=0, most=1)
    sample_log_q: bool = True
    start_rows: int | None = setting(None, least=1)
    learning_rate: float = setting(6e-3, above=0)
    weight_decay: float = setting(0.02, least=0)
    max_grad_norm: float | None = None
    optimizer: str = setting("adamw", choices=HEAD_OPTIMIZERS)
    momentum: float = 0.9
    dtype: str | None = setting(None, choices=(None, "float32", "float64", "bfloat16"))
    hard_classes: str = setting("none", choices=("none", "nearest", "leaf"))
    hard_per_positive: int = setting(10, least=1)
    hard_refresh_every: int = setting(100, least=1)

    def check(self) -> None:
        if isinstance(self.loss, ProxyAnchorLoss) and self.sub_centres != 1:
            raise ValueError(
                f"recipe.head.sub_centres is {self.sub_centres} with ProxyAnchor, which has one proxy a class; use 1, "
                "or the softmax loss"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSettings(Settings):
    """The text stage, fitted to the finished image stage.

    Attributes:
        encoder: "minilm" (packaged weights), "tiny", a Hub id or a folder; None trains without text.
        max_tokens: tokens of a text that are read, special tokens included.
        folds: out-of-fold folds over categories.
        weights: text weights to try; the largest whose validation metrics are not significantly worse is taken.
        lora: adapters on the text encoder, trained before the text stage is fitted (text_stage/adapters.py).
        tune_layers: train the query and value projections themselves instead.
        steps, documents_per_step, learning_rate, weight_decay: of that training.
        attention_steps: steps of the text-to-image attention at width 256; a wider model takes fewer.
    """

    place: ClassVar[str] = "recipe.text"
    encoder: str | None = None
    max_tokens: int = setting(32, least=3)
    folds: int = setting(5, least=2)
    weights: tuple[float, ...] = (0.0, 0.1, 0.2)
    attention_steps: int = setting(300, least=1)
    lora: Lora = Lora()
    tune_layers: bool = False
    steps: int = setting(100, least=1)
    documents_per_step: int = setting(64, least=2)
    learning_rate: float = setting(5e-4, above=0)
    weight_decay: float = setting(0.02, least=0)

    def check(self) -> None:
        adapted = {
            "lora.rank": (self.lora.rank, self.lora.rank > 0),
            "tune_layers": (self.tune_layers, self.tune_layers),
        }
        for name, (value, is_on) in adapted.items():
            if is_on and self.encoder is None:
                raise ValueError(
                    f"recipe.text.{name} is {value} with encoder null, where there is no text encoder to adapt; name "
                    f"one in text.encoder, or leave {name} out"
                )
        if self.lora.rank > 0 and self.tune_layers:
            raise ValueError(
                f"recipe.text.lora.rank is {self.lora.rank} with tune_layers true; adapters take the place of the "
                "tuned layers: use rank 0, or tune_layers false"
            )
        if not self.weights or min(self.weights) < 0:
            raise ValueError(f"recipe.text.weights is {list(self.weights)}; give at least one number, none below 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnsembleSettings(Settings):
    """Several image stages from one start, made into one model (ensemble/).

    Attributes:
        num_members: the image stage is trained so many times with other draws; steps and checkpoints are of each.
        distil_steps, distil_learning_rate: steps of a student that learns from all members together, and the rate of
            its backbone; with 0 steps the mean of the members' weights is published. Neither counts with one member.
    """

    place: ClassVar[str] = "recipe.ensemble"
    num_members: int = setting(1, least=1)
    distil_steps: int = setting(400, least=0)
    distil_learning_rate: float = setting(1e-3, above=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuntimeSettings(Settings):
    """Where state lives and how the same numbers are computed: a resumed run may differ in these, and in these alone.

    Attributes:
        head_storage: where class weights and their optimiser state live: "device", "memory" (main memory) or "disk"
            (mapped files). head_storage_folder: for "disk"; None is `class_rows` in the run folder.
        feature_storage: "cache" keeps the frozen part's output of every view on disk; "stream" decodes and embeds the
            rows of each step while the step before it runs, for data whose views do not fit there.
        activation_checkpointing: keep only the input of each block of the backbone, compute the rest again backwards.
        compile: torch.compile on the encoders.
        publish_prototypes: write `prototypes/` in the run folder, for more classes than `hub/` holds.
        hub_prototypes_gib: `hub/` holds the prototypes of all categories up to this size, in float32, and the main
            process three times as much while it writes them; beyond it see publish/hub.py.
        calibration_queries: at most so many training queries are published for CSLS.
        checkpoint_minutes: one more checkpoint once the newest is so old by the main process's clock; None is off.
        checkpoint_keep: how many of the newest stay; the one with the best metric stays beside them.
        checkpoint_async: training goes on while a checkpoint is written from a copy in main memory.
    """

    place: ClassVar[str] = "recipe.runtime"
    head_storage: str = setting("device", choices=("device", "memory", "disk"))
    head_storage_folder: str | None = None
    feature_storage: str = setting("cache", choices=("cache", "stream"))
    activation_checkpointing: bool = False
    compile: bool = False
    publish_prototypes: bool = False
    hub_prototypes_gib: float = setting(4.0, least=0)
    calibration_queries: int = setting(4096, least=0)
    checkpoint_minutes: float | None = setting(None, above=0)
    checkpoint_keep: int = setting(2, least=1)
    checkpoint_async: bool = False

    def check(self) -> None:
        if self.checkpoint_async and self.head_storage == "disk":
            raise ValueError(
                "recipe.runtime.checkpoint_async is true with head_storage disk; the copy of the class rows that it "
                "writes needs main memory: use false, or head_storage device or memory"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    """Everything that decides what a run learns, and, in `runtime`, how it is computed.

    Attributes:
        name: for people; recorded in the run folder and on the model card.
        publish: "best" publishes the best of frozen encoder and trained weights that held-out queries show to be surely
            not worse than the frozen encoder (selection/); "trained" publishes what was trained, whatever it is worth.
    """

    place: ClassVar[str] = "recipe"
    name: str
    publish: str = setting("best", choices=("best", "trained"))
    model: ModelSettings
    image: ImageSettings = ImageSettings()
    head: HeadSettings = HeadSettings()
    text: TextSettings = TextSettings()
    ensemble: EnsembleSettings = EnsembleSettings()
    runtime: RuntimeSettings = RuntimeSettings()

    def check(self) -> None:
        """Settings of two groups that contradict each other."""
        if isinstance(self.head.loss, ProxyAnchorLoss) and self.image.gradient_accumulation != 1:
            raise ValueError(
                f"recipe.image.gradient_accumulation is {self.image.gradient_accumulation} with ProxyAnchor, which "
                "weighs all samples of a step together; use 1, or the softmax loss"
            )
        if self.head.dtype is not None and (self.head.dtype == "float64") != (self.model.dtype == "float64"):
            raise ValueError(
                f"recipe.head.dtype is {self.head.dtype} with model.dtype {self.model.dtype}; float64 goes with "
                "float64 alone"
            )
        if self.ensemble.num_members == 1:
            return
        if self.runtime.publish_prototypes:
            raise ValueError(
                f"recipe.ensemble.num_members is {self.ensemble.num_members} with runtime.publish_prototypes true; "
                "prototypes in shards are those of one training: use num_members 1, or publish_prototypes false"
            )
        if self.ensemble.distil_steps and self.runtime.feature_storage == "stream":
            raise ValueError(
                f"recipe.ensemble.num_members is {self.ensemble.num_members} with runtime.feature_storage stream; the "
                "student reads the features again: use feature_storage cache, or distil_steps 0"
            )

    def with_changes(self, changes: Mapping[str, Any]) -> "Recipe":
        """The recipe with other values, by dotted names such as "image.steps", "head.loss" or "text.lora.rank".

        Raises:
            ValueError: a name that does not exist, or a value out of range.
        """
        return _replaced(self, changes, prefix="recipe")

    def to_json(self) -> dict[str, Any]:
        """Nested groups as JSON holds them (tuples become lists); `head.loss.kind` names the loss."""
        values = dataclasses.asdict(self)
        values["head"]["loss"] = {"kind": LOSS_KINDS[type(self.head.loss)], **values["head"]["loss"]}
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain


LOSS_KINDS: dict[type[Settings], str] = {SoftmaxLoss: "softmax", ProxyAnchorLoss: "proxy_anchor"}


def _replaced(settings: Any, changes: Mapping[str, Any], *, prefix: str) -> Any:
    known = [field.name for field in dataclasses.fields(settings)]
    here: dict[str, Any] = {}
    below: dict[str, dict[str, Any]] = {}
    for dotted, value in changes.items():
        name, _, rest = dotted.partition(".")
        if name not in known or (rest and not isinstance(getattr(settings, name), Settings)):
            raise ValueError(f"{prefix} has no setting {dotted!r}; known: {', '.join(known)}")
        if rest:
            below.setdefault(name, {})[rest] = value
        else:
            here[name] = value
    for name, inner in below.items():
        here[name] = _replaced(here.get(name, getattr(settings, name)), inner, prefix=f"{prefix}.{name}")
    return dataclasses.replace(settings, **here)


def recipe_from_json(values: Any) -> Recipe:
    """The recipe that `to_json` wrote; missing settings take their defaults.

    Raises:
        ValueError: a setting that does not exist, or a value out of range.
    """
    if not isinstance(values, dict):
        raise ValueError(f"a recipe is an object of groups, not {type(values).__name__}")
    missing = sorted({"name", "model"} - set(values))
    if missing or "vision" not in values["model"]:
        raise ValueError(f"it lacks {', '.join(missing) or 'model.vision'}; a recipe needs name and model.vision")
    changes = flattened(values)
    kind = changes.pop("head.loss.kind", "softmax")
    kinds = {name: loss for loss, name in LOSS_KINDS.items()}
    if kind not in kinds:
        raise ValueError(f"recipe.head.loss.kind is {kind!r}; choose one of {', '.join(kinds)}")
    for name, value in changes.items():
        if isinstance(value, list):
            changes[name] = tuple(value)
    start = Recipe(name=changes.pop("name"), model=ModelSettings(vision=changes.pop("model.vision")))
    return start.with_changes({"head.loss": kinds[kind](), **changes})


def flattened(values: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Dotted names of nested groups.

    >>> flattened({"name": "x", "image": {"steps": 3}})
    {'name': 'x', 'image.steps': 3}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flattened(value, prefix=f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def image_stage_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `to_json` that the trained image stage depends on: without name, publish, text and runtime."""
    return {name: value for name, value in values.items() if name not in ("name", "publish", "text", "runtime")}


def learned_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `to_json` that must be equal when a run is resumed: everything but `runtime`."""
    return {name: value for name, value in values.items() if name != "runtime"}


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """One line of the settings that differ: "image.steps: 400 here, 200 there"; empty when none does."""
    ours, theirs = flattened(ours), flattened(theirs)
    keys = sorted(set(ours) | set(theirs))
    return "; ".join(
        f"{key}: {ours.get(key)!r} here, {theirs.get(key)!r} there" for key in keys if ours.get(key) != theirs.get(key)
    )
