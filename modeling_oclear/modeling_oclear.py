"""Retrieval model: embeds image queries and image + text documents in one space.

One image encoder serves queries and documents (arXiv 2305.03972). Each side has its own standardisation, frozen before
training, and its own residual MLP. Text is used on the document side only, by the fusion. No row depends on the rest of
its batch, so a batch may be split over machines in any way.

Letters: B batch, P image patches, T tokens, C concepts, D width, H encoder width (of patches, pooled row or tokens),
N classes.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import ModelOutput

from .backbones_oclear import build_encoder, read_image, read_text, vision_widths
from .configuration_oclear import OclearConfig, OclearQueryConfig
from .fusion_oclear import OclearDocumentOutput, OclearFusion, unit_rows

Side = Literal["query", "document"]


@dataclass
class OclearOutput(ModelOutput):
    """Output of `OclearModel`; what was not computed is None.

    Attributes:
        query_embeds, document_embeds: (B, D) unit rows.
        gate: (B, C, 2) of documents. attention: (B, C, P) of documents; see `OclearDocumentOutput`.
        pooler_output: (B, D) the embeddings of the call, for tools that look for this name: of documents where there
            are any, else of queries.
    """

    query_embeds: torch.Tensor | None = None
    document_embeds: torch.Tensor | None = None
    gate: torch.Tensor | None = None
    attention: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None


class OclearResidual(nn.Module):
    """x + MLP(x). The last layer of the MLP starts at 0, so that the block starts as the identity."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, inner)
        self.outer = nn.Linear(inner, width)

    def forward(self, rows_BD: torch.Tensor) -> torch.Tensor:
        return rows_BD + self.outer(nn.functional.gelu(self.inner(rows_BD)))


class OclearImageHead(nn.Module):
    """Pooled image features -> unit rows.

    Standardisation per side (buffers, not trained), shared linear projection, residual MLP per side.
    """

    projection: nn.Linear

    def __init__(self, config: OclearConfig, *, pooled_width: int, sides: tuple[Side, ...]) -> None:
        super().__init__()
        for side in sides:
            self.register_buffer(f"{side}_mean", torch.empty(pooled_width))
            self.register_buffer(f"{side}_std", torch.empty(pooled_width))
            self.add_module(f"{side}_transform", OclearResidual(config.hidden_size, config.intermediate_size))
        self.sides = sides
        self.projection = nn.Linear(pooled_width, config.hidden_size, bias=False)
        self.dropout = nn.Dropout(config.embed_dropout)

    def forward(self, pooled_BH: torch.Tensor, *, side: Side) -> torch.Tensor:
        """(B, H) -> (B, D) unit rows, in at least fp32."""
        if side not in self.sides:
            raise ValueError(f"side is {side!r}; this model has {' and '.join(self.sides)}.")
        mean_H, std_H = getattr(self, f"{side}_mean"), getattr(self, f"{side}_std")
        rows_BH = (pooled_BH.to(mean_H.dtype) - mean_H) / std_H
        rows_BD = self.dropout(self.projection(rows_BH))
        return unit_rows(getattr(self, f"{side}_transform")(rows_BD))


class OclearPreTrainedModel(PreTrainedModel):
    """Base class: flags that transformers, Accelerate and FSDP read, and weight initialisation."""

    config_class = OclearConfig
    base_model_prefix = "oclear"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["OclearFusion", "OclearImageHead"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # transformers calls this only for modules with parameters or buffers of their own. The MLP of a side is
        # therefore initialised here, by the module that holds it.
        if isinstance(module, OclearImageHead):
            init.orthogonal_(module.projection.weight)
            for side in module.sides:
                init.zeros_(getattr(module, f"{side}_transform").outer.weight)
                init.zeros_(getattr(module, f"{side}_mean"))
                init.ones_(getattr(module, f"{side}_std"))
        elif isinstance(module, OclearFusion):
            self._init_fusion(module)

    def _init_fusion(self, fusion: OclearFusion) -> None:
        """Start close to the image embedding alone, with a gradient everywhere: small gates and text projections."""
        width = self.config.hidden_size
        init.zeros_(fusion.text_mean)
        init.zeros_(fusion.memory)
        init.zeros_(fusion.memory_value)
        # Queries of 0 give a uniform softmax: every concept starts as the mean of the tokens.
        init.zeros_(fusion.concept_query)
        init.normal_(fusion.concept_offset, std=width**-0.5)
        for linear in (fusion.text_projection, fusion.concept_key):
            init.orthogonal_(linear.weight)
        for linear in (fusion.cell_projection, fusion.evidence_query, fusion.evidence_key, fusion.evidence_value):
            init.orthogonal_(linear.weight)
        for linear in (fusion.evidence_projection, fusion.concept_projection):
            init.orthogonal_(linear.weight, gain=1e-3)
        init.normal_(fusion.gate.weight, std=1e-3)
        init.constant_(fusion.gate.bias, -2.0)  # both gates open to sigmoid(-2) = 0.12
        init.zeros_(fusion.agreement)

    def encode_image(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
        """Raw output of the image encoder: patches (B, P, H), pooled (B, H'), grid (rows, columns)."""
        return read_image(self.vision_model, pixel_values, stage=self.config.vision_feature_stage)

    def embed_pooled(self, pooled: torch.Tensor, *, side: Side) -> torch.Tensor:
        """Pooled image features (B, H') -> (B, D) unit rows of one side.

        Raises:
            ValueError: for a side that this model does not have.
        """
        head: Any = self.image_head
        return head(pooled, side=side)

    def get_query_embeds(self, pixel_values: torch.Tensor, has_image: torch.Tensor | None = None) -> torch.Tensor:
        """Query images (B, 3, H, W) -> (B, D) unit rows.

        Raises:
            ValueError: a query without image: `has_image` (B,) is False there.
        """
        if has_image is not None:
            _check_query_images(has_image)
        return self.embed_pooled(self.encode_image(pixel_values)[1], side="query")


class OclearModel(OclearPreTrainedModel):
    """Embeds image queries, and documents of image, text or both."""

    # The base model loads a folder of the classification model and skips its prototypes.
    _keys_to_ignore_on_load_unexpected = [r"^head\."]

    def __init__(self, config: OclearConfig) -> None:
        super().__init__(config)
        patch_width, pooled_width = vision_widths(config.vision_config, config.vision_feature_stage)
        self.vision_model: Any = build_encoder(config.vision_config)
        self.image_head = OclearImageHead(config, pooled_width=pooled_width, sides=("query", "document"))
        self.text_model: Any = None
        self.fusion: OclearFusion | None = None
        if config.text_config is not None:
            self.text_model = build_encoder(config.text_config)
            token_width = self.text_model.config.hidden_size
            self.fusion = OclearFusion(config, patch_width=patch_width, token_width=token_width)
        self.post_init()

    @classmethod
    def from_encoders(
        cls, vision_model: PreTrainedModel, text_model: PreTrainedModel | None = None, **fields: Any
    ) -> Any:
        """Build a model around pretrained encoders; `fields` are fields of `OclearConfig`.

        Poolers and other parts of the encoders that this model does not use are not copied.

        Raises:
            ValueError: when an encoder lacks a weight that the model needs.
        """
        text_config = text_model.config.to_dict() if text_model is not None else None
        config = OclearConfig(vision_config=vision_model.config.to_dict(), text_config=text_config, **fields)
        model = cls(config)
        for name, encoder in (("vision_model", vision_model), ("text_model", text_model)):
            if encoder is not None:
                missing = getattr(model, name).load_state_dict(encoder.state_dict(), strict=False).missing_keys
                if missing:
                    raise ValueError(f"{name} lacks the weight {missing[0]} (and {len(missing) - 1} more).")
        return model

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Raw output of the text encoder: tokens (B, T, H), special tokens included, and mask (B, T) bool.

        Raises:
            ValueError: when the model has no text encoder.
        """
        if self.text_model is None:
            raise ValueError("this model has no text encoder (text_config is None): leave the text out.")
        return read_text(self.text_model, input_ids, attention_mask)

    def embed_document(
        self,
        image_embeds: torch.Tensor,
        patches: torch.Tensor,
        tokens: torch.Tensor,
        mask: torch.Tensor,
        *,
        has_image: torch.Tensor,
        has_text: torch.Tensor,
    ) -> OclearDocumentOutput:
        """Apply the fusion to outputs of the encoders, which may come from a cache.

        Args:
            image_embeds: (B, D) from `embed_pooled(..., side="document")`; ignored where `has_image` is False.
            patches: (B, P, H) from `encode_image`.
            tokens: (B, T, H) and `mask` (B, T) from `encode_text`; ignored where `has_text` is False.
            has_image, has_text: (B,) bool. A row with neither gives zeros here; `get_document_embeds` rejects it.
        """
        if self.fusion is None:
            embeds = torch.where(has_image[:, None], image_embeds, 0.0)
            gate = embeds.new_zeros(embeds.shape[0], self.config.num_concepts, 2)
            attention = embeds.new_zeros(embeds.shape[0], self.config.num_concepts, patches.shape[1])
            return OclearDocumentOutput(
                embeds=embeds, gate=gate, attention=attention, image_embeds=embeds, text_shift=torch.zeros_like(embeds)
            )
        output: OclearDocumentOutput = self.fusion(
            image_embeds, patches, tokens, mask, has_image_B=has_image, has_text_B=has_text
        )
        return output

    def get_document_embeds(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        has_image: torch.Tensor | None = None,
        has_text: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> OclearDocumentOutput:
        """Embed documents; in one batch some rows may lack the image, others the text.

        Args:
            pixel_values: (B, 3, H, W), or None for texts alone.
            input_ids, attention_mask: (B, T), or None for images alone; without a mask every token counts.
            has_image, has_text: (B,) bool, which rows have an image or a text; default: all rows of an input that was
                passed.
            token_type_ids: not read: a document has one text.

        Raises:
            ValueError: for a document with neither image nor text (an empty text counts as no text), or text passed to
                a model without text encoder.
        """
        if pixel_values is None and input_ids is None:
            raise ValueError("a document needs pixel_values, input_ids or both; neither was given.")
        _check_equal_rows(
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            has_image=has_image,
            has_text=has_text,
        )
        given = pixel_values if pixel_values is not None else input_ids
        assert given is not None
        rows = given.shape[0]  # not len(): a traced graph would keep the number of rows of its example
        none_B = torch.zeros(rows, dtype=torch.bool, device=given.device)
        if pixel_values is not None:
            patches, pooled, grid = self.encode_image(pixel_values)
            image_embeds = self.embed_pooled(pooled, side="document")
            has_image = ~none_B if has_image is None else has_image.bool()
        else:
            patch_width, _ = vision_widths(self.config.vision_config, self.config.vision_feature_stage)
            patches, grid, has_image = self._zeros(given, rows, 0, patch_width), (0, 0), none_B
            image_embeds = self._zeros(given, rows, self.config.hidden_size).float()
        if input_ids is not None:
            tokens, mask = self.encode_text(
                input_ids, attention_mask if attention_mask is not None else torch.ones_like(input_ids)
            )
            has_text = mask.any(dim=1) & (~none_B if has_text is None else has_text.bool())
        else:
            text_width = self.config.text_config.hidden_size if self.text_model is not None else 1
            tokens, mask, has_text = self._zeros(given, rows, 0, text_width), none_B[:, None][:, :0], none_B
        _check_no_empty_document(has_image, has_text)
        output = self.embed_document(image_embeds, patches, tokens, mask, has_image=has_image, has_text=has_text)
        output.grid = grid
        return output

    def _zeros(self, like: torch.Tensor, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=like.device)

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        has_image: torch.Tensor | None = None,
        has_text: torch.Tensor | None = None,
        query_pixel_values: torch.Tensor | None = None,
        return_dict: bool | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> OclearOutput | tuple[Any, ...]:
        """Embed documents (see `get_document_embeds`), queries (`query_pixel_values`), or both in one call.

        `token_type_ids` are accepted, since a tokenizer may give them, and not read: a document has one text.

        Raises:
            ValueError: without any input, or for a document with neither image nor text.
        """
        output = OclearOutput()
        if query_pixel_values is not None:
            output.query_embeds = self.get_query_embeds(query_pixel_values)
            output.pooler_output = output.query_embeds
        if pixel_values is not None or input_ids is not None or query_pixel_values is None:
            document = self.get_document_embeds(pixel_values, input_ids, attention_mask, has_image, has_text)
            output.document_embeds, output.gate, output.attention = document.embeds, document.gate, document.attention
            output.pooler_output = document.embeds
        return output if return_dict is not False else output.to_tuple()


def _check_query_images(has_image_B: torch.Tensor) -> None:
    if torch.compiler.is_compiling() or has_image_B.is_meta:
        return
    missing = torch.nonzero(~has_image_B.bool()).flatten()
    if len(missing):
        raise ValueError(
            f"query {int(missing[0])} (and {len(missing) - 1} more of {len(has_image_B)}) has no image: leave it out."
        )


def _check_equal_rows(**inputs: torch.Tensor | None) -> None:
    if torch.compiler.is_compiling():
        return
    rows = {name: len(tensor) for name, tensor in inputs.items() if tensor is not None}
    if len(set(rows.values())) > 1:
        raise ValueError(
            f"the inputs disagree in their number of documents: {rows}. Give one row per document in each."
        )
    for needed, optional in (("pixel_values", "has_image"), ("input_ids", "has_text"), ("input_ids", "attention_mask")):
        if optional in rows and needed not in rows:
            raise ValueError(f"{optional} is given without {needed}: give both or neither.")


def _check_no_empty_document(has_image_B: torch.Tensor, has_text_B: torch.Tensor) -> None:
    if torch.compiler.is_compiling() or has_image_B.is_meta:
        return  # a compiled graph cannot raise depending on values; such a row is returned as zeros
    empty = torch.nonzero(~(has_image_B | has_text_B)).flatten()
    if len(empty):
        raise ValueError(
            f"row {int(empty[0])} (and {len(empty) - 1} more of {len(has_image_B)}) has neither image nor text: "
            "leave such documents out."
        )


class OclearQueryModel(OclearPreTrainedModel):
    """Embeds image queries; holds no text weights."""

    config_class = OclearQueryConfig
    input_modalities = ("image",)  # type: ignore[assignment]
    _no_split_modules = ["OclearImageHead"]

    def __init__(self, config: OclearQueryConfig) -> None:
        super().__init__(config)
        _, pooled_width = vision_widths(config.vision_config, config.vision_feature_stage)
        self.vision_model: Any = build_encoder(config.vision_config)
        self.image_head = OclearImageHead(config, pooled_width=pooled_width, sides=("query",))
        self.post_init()

    @classmethod
    def from_model(cls, model: OclearModel) -> Any:
        """Build the query model of a trained model, with copies of its weights."""
        kept = {name: value for name, value in model.config.to_dict().items() if name in QUERY_FIELDS}
        query_model: Any = cls(OclearQueryConfig(**kept))
        query_model = query_model.to(model.dtype)
        wanted = query_model.state_dict().keys()
        query_model.load_state_dict({name: value for name, value in model.state_dict().items() if name in wanted})
        return query_model.train(model.training)

    def forward(
        self, pixel_values: torch.Tensor, has_image: torch.Tensor | None = None, return_dict: bool | None = None
    ) -> OclearOutput | tuple[Any, ...]:
        """Query images (B, 3, H, W) -> `query_embeds` (B, D), also as `pooler_output`.

        Raises:
            ValueError: a query without image.
        """
        embeds = self.get_query_embeds(pixel_values, has_image)
        output = OclearOutput(query_embeds=embeds, pooler_output=embeds)
        return output if return_dict is not False else output.to_tuple()


QUERY_FIELDS = (
    "vision_config",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "vision_feature_stage",
    "dtype",
)
