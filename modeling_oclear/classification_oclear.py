"""Retrieval model with a classification head: one prototype per category.

For fine-tuning with the Trainer of transformers, and for predicting the category of an image. The head is a plain
parameter, for class counts that fit on one device; train/ shards the classes over ranks instead.

Letters: B batch, D width, N classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils.generic import ModelOutput

from .configuration_oclear import OclearConfig
from .modeling_oclear import OclearModel, OclearPreTrainedModel, Side
from .partial_softmax_oclear import (
    SampledClasses,
    SoftmaxForm,
    class_logits,
    margin_by_name,
    partial_softmax_loss,
    sample_classes,
)
from .proxy_anchor_oclear import anchor_loss, anchor_sums
from .softmax_inputs_oclear import ClassRange

MOST_NAMED_CLASSES = 100_000


@dataclass
class OclearClassifierOutput(ModelOutput):
    """Output of the classifier for a batch.

    Attributes:
        loss: scalar, with labels.
        logits: (B, N) scale x cosine; None in training with labels and sampled classes, where computing all is a waste.
        embeds: (B, D) unit rows.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    embeds: torch.Tensor | None = None


def name_classes(config: Any, names: Sequence[str] | None = None) -> None:
    """Set `id2label` and `label2id` of a config with a head, which `pipeline("image-classification")` reads.

    Args:
        names: one for each of `num_classes` classes; None = "LABEL_0" and so on. Above `MOST_NAMED_CLASSES` classes
            nothing is set: the config would have megabytes.
    """
    if config.num_classes > MOST_NAMED_CLASSES:
        return
    labels = names or [f"LABEL_{number}" for number in range(config.num_classes)]
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: number for number, name in config.id2label.items()}


class OclearForCategoryClassification(OclearPreTrainedModel):
    """`OclearModel` and a head whose `weight` (N, D) holds one prototype per category, of any length.

    With `config.head_sub_centres` K it is (N K, D), row k of category j at j K + k.

    In training mode with `config.head_sample_rate` below 1, every call samples other negative classes, keyed by
    `sample_seed` and the call counter `sample_step`.
    """

    def __init__(self, config: OclearConfig) -> None:
        super().__init__(config)
        if config.num_classes < 1:
            raise ValueError(f"num_classes is {config.num_classes}; a classifier needs at least 1 category.")
        self.oclear = OclearModel(config)
        self.head = nn.Linear(config.hidden_size, config.num_classes * config.head_sub_centres, bias=False)
        self.sample_seed, self.sample_step = 0, 0
        if config.num_labels != config.num_classes:
            name_classes(config)
        self.post_init()

    @property
    def form(self) -> SoftmaxForm:
        """Softmax settings of the config."""
        margin = margin_by_name(self.config.head_margin_type, self.config.head_margin)
        return SoftmaxForm(
            margin=margin,
            scale=float(self.config.head_scale),
            label_smoothing=float(self.config.head_label_smoothing),
            sub_centres=self.config.head_sub_centres,
            conflict_delta=self.config.head_conflict_delta,
            conflict_tau=self.config.head_conflict_tau,
        )

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        has_image: torch.Tensor | None = None,
        has_text: torch.Tensor | None = None,
        side: Side = "query",
        labels: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
        return_dict: bool | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> OclearClassifierOutput | tuple[torch.Tensor, ...]:
        """Embed queries or documents and compare them with the prototypes.

        Args:
            pixel_values, input_ids, attention_mask, has_image, has_text: as in `OclearModel.get_document_embeds`; a
                query has pixel values only.
            side: "query" or "document".
            labels: (B,) int64 categories, or (B, Y) padded with -1 where samples have several.
            weights: (B,) weights of the samples in the softmax loss; ProxyAnchor takes none.
            token_type_ids: not read.

        Raises:
            ValueError: for text on the query side, an unknown side, labels that are not categories, or settings of the
                softmax out of range.
        """
        if side == "document":
            document = self.oclear.get_document_embeds(pixel_values, input_ids, attention_mask, has_image, has_text)
            embeds: torch.Tensor = document["embeds"]
        elif side == "query":
            if pixel_values is None or input_ids is not None:
                raise ValueError("a query is an image: give pixel_values and no input_ids, or side='document'.")
            embeds = self.oclear.get_query_embeds(pixel_values, has_image)
        else:
            raise ValueError(f"side is {side!r}; choose 'query' or 'document'.")
        is_sampled = self.training and self.config.head_sample_rate < 1
        output = OclearClassifierOutput(embeds=embeds)
        if labels is not None:
            output.loss = self._loss(embeds, labels, weights, is_sampled)
        if labels is None or not is_sampled:
            output.logits = class_logits(
                embeds,
                self.head.weight,
                scale=self.config.head_scale,
                sub_centres=self.config.head_sub_centres,
            )
        return output if return_dict is not False else output.to_tuple()

    def _loss(
        self, embeds: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None, is_sampled: bool
    ) -> torch.Tensor:
        sampled = None
        if is_sampled:
            sampled = sample_classes(
                self.config.num_classes,
                positives=labels[labels >= 0],
                rate=self.config.head_sample_rate,
                seed=self.sample_seed,
                step=self.sample_step,
            )
            self.sample_step += 1
        if self.config.head_loss == "proxy_anchor":
            return self._proxy_anchor_loss(embeds, labels, weights, sampled)
        return partial_softmax_loss(
            embeds,
            labels,
            self.head.weight,
            form=self.form,
            sampled=sampled,
            weights_B=weights,
        )

    def _proxy_anchor_loss(
        self, embeds: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None, sampled: SampledClasses | None
    ) -> torch.Tensor:
        """ProxyAnchor over all categories, or over the sampled ones."""
        if weights is not None:
            raise ValueError("weights were given with head_loss 'proxy_anchor', which takes none; leave them out.")
        rows = self.head.weight
        if sampled is None:
            class_ids = torch.arange(len(rows), device=rows.device)
            classes = ClassRange(rows, class_ids, torch.zeros(len(rows), device=rows.device, dtype=rows.dtype))
        else:
            class_ids = sampled.class_ids.to(rows.device)
            classes = ClassRange(rows[class_ids], class_ids, sampled.log_correction.to(rows.device))
        scale, margin = float(self.config.head_scale), float(self.config.head_margin)
        return anchor_loss(anchor_sums(embeds, labels, classes, scale=scale, margin=margin))
