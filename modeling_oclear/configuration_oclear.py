"""Configuration of the OCLEAR retriever: which encoders, how wide, how strongly text counts.

Why: a model is built from its config alone, so everything that shapes it or its answers stands here as a plain value.
"""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_efficientnet_lite_oclear import EfficientNetLiteConfig
from .strict_config_oclear import reject_unknown_keys, with_value_errors

# Parts of an encoder that this model never reads: left in, they would be parameters without a gradient.
UNUSED_ENCODER_PARTS = {"vision_use_head": False, "use_mask_token": False}


@with_value_errors
@strict
class OclearConfig(PreTrainedConfig):
    """An image encoder for both sides, a text encoder for documents, and the fusion of the two.

    Attributes:
        vision_config, text_config: config (or its dict) of any Hugging Face encoder; no text_config = images only.
        hidden_size: width D of the embeddings.
        intermediate_size: inner width of the residual MLP of each side.
        num_concepts: concepts C that are read from a text.
        num_memory_slots: slots K of the memory that speaks for texts without image.
        memory_sharpness: how fast a slot falls silent with the distance of a text from its own.
        num_attention_heads: heads of the text-to-image attention.
        vision_feature_stage: index into the encoder's hidden_states whose cells the text attends to; None = its last
            hidden state.
        text_strength: factor on what text adds to an image embedding; 0 = text is ignored where there is an image.
        embed_dropout: dropout on projected image features in training.
        num_classes: categories of the classification head; 0 = no head.
        head_scale, head_margin, head_margin_type: scale and margin of the softmax over categories; "combined" takes
            three numbers (m1, m2, m3).
        head_label_smoothing, head_conflict_delta, head_conflict_tau: see `SoftmaxForm` in margins_oclear.py.
        head_sub_centres: prototypes per category, of which the nearest counts.
        head_sample_rate: share of the categories that a training step draws as negatives; 1 = all of them.

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
        """Take the bookkeeping of transformers, refuse other keys, switch off the encoder parts that are not read."""
        reject_unknown_keys(self, kwargs)
        super().__post_init__(**kwargs)
        for part, value in UNUSED_ENCODER_PARTS.items():
            if hasattr(self.vision_config, part):
                setattr(self.vision_config, part, value)

    def validate_widths(self) -> None:
        """Counts and widths."""
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
        """Strength of text, sharpness of the memory and dropout."""
        if not 0 <= self.text_strength < float("inf"):
            raise ValueError(
                f"text_strength is {self.text_strength}; it must be 0 (text ignored) or a positive number."
            )
        if not 0 <= self.memory_sharpness < float("inf"):
            raise ValueError(
                f"memory_sharpness is {self.memory_sharpness}; it must be 0 or a positive number, such as 4."
            )
        if not 0 <= self.embed_dropout < 1:
            raise ValueError(f"embed_dropout is {self.embed_dropout}; it must be at least 0 and below 1.")

    def validate_head(self) -> None:
        """The classification head."""
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
        if self.head_sub_centres < 1:
            raise ValueError(f"head_sub_centres is {self.head_sub_centres}; it must be at least 1.")
        if not 0 < self.head_sample_rate <= 1:
            raise ValueError(f"head_sample_rate is {self.head_sample_rate}; it must be above 0 and at most 1.")

    def validate_feature_stage(self) -> None:
        """An index into hidden_states counts from the front."""
        if self.vision_feature_stage is not None and self.vision_feature_stage < 0:
            raise ValueError(
                f"vision_feature_stage is {self.vision_feature_stage}; give an index from 0, or None for the last "
                "hidden state."
            )


@with_value_errors
@strict
class OclearQueryConfig(OclearConfig):
    """The query side alone: the image encoder and what turns its features into query embeddings."""

    model_type = "oclear_query"

    def validate_no_text(self) -> None:
        """Queries are images."""
        if self.text_config is not None:
            raise ValueError("text_config is given, but a query model reads images only: leave it out.")
