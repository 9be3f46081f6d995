"""Configuration of the OCLEAR models: encoders, widths, fusion, classifier.

A model is built from its config alone: every setting that changes its shape or its output is a field here.
"""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_efficientnet_lite_oclear import EfficientNetLiteConfig
from .strict_config_oclear import reject_unknown_keys, with_value_errors

# Parts of an encoder whose output this model does not use. Left on, they would be parameters without a gradient, which
# stops data-parallel training.
UNUSED_ENCODER_PARTS = {"vision_use_head": False, "use_mask_token": False}


@with_value_errors
@strict
class OclearConfig(PreTrainedConfig):
    """An image encoder for queries and documents, a text encoder for documents, and their fusion.

    The `head_*` fields describe the loss that `OclearForCategoryClassification` computes from `labels`; training writes
    the loss that the published weights were trained with.

    Attributes:
        vision_config, text_config: config (or its dict) of any Hugging Face encoder; no text_config = images only.
        hidden_size: width D of the embeddings.
        intermediate_size: inner width of the residual MLP after the projection, one for queries, one for documents.
        num_concepts: concept vectors C per text; each has its own attention over the image.
        num_memory_slots: slots K of the memory used for documents that have a text and no image.
        memory_sharpness: inverse kernel bandwidth of the memory: a slot counts exp(sharpness * (cos - 1)).
        num_attention_heads: heads of the text-to-image attention.
        vision_feature_stage: index into the encoder's hidden_states; the text attends to the patches of that stage.
            None = the last hidden state.
        text_strength: text weight: factor on what text adds to an image embedding. 0 = text is ignored where there is
            an image.
        embed_dropout: dropout on projected image features in training.
        num_classes: categories of the classification head; 0 = no head.
        head_loss: "softmax" over categories, or "proxy_anchor".
        head_scale, head_margin: scale and margin of the loss; for ProxyAnchor its alpha and delta.
        head_margin_type: margin of the softmax; "combined" takes three numbers (m1, m2, m3). ProxyAnchor has none.
        head_label_smoothing, head_conflict_delta, head_conflict_tau: see `SoftmaxForm` in margins_oclear.py.
        head_sub_centres: prototypes per category; the one with the largest cosine counts.
        head_sample_rate: fraction of the categories drawn as negatives in a training step; 1 = all of them.

    Raises:
        ValueError: for an unknown argument, a wrong type or a value out of range.
    """

    model_type = "oclear"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type=EfficientNetLiteConfig.model_type),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert", optional=True),
    }

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    hidden_size: int = 256
    intermediate_size: int = 256
    num_concepts: int = 4
    num_memory_slots: int = 64
    memory_sharpness: float | int = 4.0
    num_attention_heads: int = 4
    vision_feature_stage: int | None = None
    text_strength: float | int = 1.0
    embed_dropout: float | int = 0.0
    num_classes: int = 0
    head_loss: Literal["softmax", "proxy_anchor"] = "softmax"
    head_scale: float | int = 32.0
    head_margin: float | int | list[float | int] | tuple[float | int, ...] = 0.2
    head_margin_type: Literal["cosface", "arcface", "combined"] = "cosface"
    head_label_smoothing: float | int = 0.0
    head_sub_centres: int = 1
    head_conflict_delta: float | int | None = None
    head_conflict_tau: float | int | None = None
    head_sample_rate: float | int = 1.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        """Reject unknown keys and switch off the encoder parts whose output is not used."""
        reject_unknown_keys(self, kwargs)
        super().__post_init__(**kwargs)
        for part, value in UNUSED_ENCODER_PARTS.items():
            if hasattr(self.vision_config, part):
                setattr(self.vision_config, part, value)

    def validate_widths(self) -> None:
        """Check counts and widths."""
        for name in ("hidden_size", "intermediate_size", "num_concepts", "num_memory_slots", "num_attention_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        # Only the fusion has heads, and only a model that reads text has a fusion.
        if self.text_config is not None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}; "
                "choose a number of heads that divides it."
            )

    def validate_strengths(self) -> None:
        """Check text weight, sharpness of the memory and dropout."""
        if not 0 <= self.text_strength < float("inf"):
            raise ValueError(
                f"text_strength is {self.text_strength}; it must be 0 (text is ignored) or a positive number."
            )
        if not 0 <= self.memory_sharpness < float("inf"):
            raise ValueError(
                f"memory_sharpness is {self.memory_sharpness}; it must be 0 or a positive number, such as 4."
            )
        if not 0 <= self.embed_dropout < 1:
            raise ValueError(f"embed_dropout is {self.embed_dropout}; it must be at least 0 and below 1.")

    def validate_head(self) -> None:
        """Check the settings of the classification head."""
        if self.num_classes < 0:
            raise ValueError(f"num_classes is {self.num_classes}; it must be 0 (no head) or the number of categories.")
        if not 0 < self.head_scale < float("inf"):
            raise ValueError(f"head_scale is {self.head_scale}; it must be a positive number, such as 32.")
        margins = self.head_margin if isinstance(self.head_margin, list | tuple) else [self.head_margin]
        if len(margins) != (3 if self.head_margin_type == "combined" else 1) or (
            isinstance(self.head_margin, list | tuple) != (self.head_margin_type == "combined")
        ):
            raise ValueError(
                f"head_margin is {self.head_margin} with head_margin_type {self.head_margin_type!r}; give one number "
                "to cosface and arcface, and (m1, m2, m3) to combined."
            )
        if self.head_margin_type != "combined" and not 0 <= margins[0] < 1:
            raise ValueError(f"head_margin is {self.head_margin}; it must be at least 0 and below 1, such as 0.2.")
        if self.head_loss == "proxy_anchor" and (self.head_sub_centres != 1 or self.head_margin_type == "combined"):
            raise ValueError(
                f"head_sub_centres is {self.head_sub_centres} and head_margin_type {self.head_margin_type!r} with "
                "head_loss 'proxy_anchor', which has one proxy and one margin; use 1 and one number."
            )
        if self.head_sub_centres < 1:
            raise ValueError(f"head_sub_centres is {self.head_sub_centres}; it must be at least 1.")
        if not 0 < self.head_sample_rate <= 1:
            raise ValueError(f"head_sample_rate is {self.head_sample_rate}; it must be above 0 and at most 1.")

    def validate_feature_stage(self) -> None:
        """Check that the index into hidden_states is not negative."""
        if self.vision_feature_stage is not None and self.vision_feature_stage < 0:
            raise ValueError(
                f"vision_feature_stage is {self.vision_feature_stage}; give an index from 0, or None for the last "
                "hidden state."
            )


@with_value_errors
@strict
class OclearQueryConfig(OclearConfig):
    """The query side alone: the image encoder and the projection of its features to query embeddings."""

    model_type = "oclear_query"

    def validate_no_text(self) -> None:
        """Check that there is no text encoder: queries are images."""
        if self.text_config is not None:
            raise ValueError("text_config is given, but a query model reads images only: leave it out.")
