"""Prototypes of all categories, those without a trained class included."""

import numpy as np
import torch
from torch import Tensor

from train.encoders.pair import EncoderPair, embed_rows
from train.inputs.cache import FeatureCache
from train.inputs.samples import GovernedSamples


def category_prototypes(
    encoders: EncoderPair, cache: FeatureCache, samples: GovernedSamples, class_weights: Tensor | None
) -> Tensor:
    """(N, D) unit rows: trained class weights, and for every other category the mean of its embeddings.

    Without class weights it is the mean for all categories.

    The mean is that of its documents with images, or of its queries without such; a category without any image keeps a
    row of zeros, which no embedding is near to.
    """
    found = torch.zeros(samples.num_categories, encoders.image_head.projection.weight.shape[0])
    known = np.zeros(samples.num_categories, dtype=bool)
    if class_weights is not None:
        found[torch.from_numpy(samples.classes)] = class_weights
        known[samples.classes] = True
    labels = samples.labels
    for side, category_ids, usable, inputs in (
        ("document", labels.document, samples.document_has_image, cache.document_inputs),
        ("query", labels.query, np.ones(len(labels.query), dtype=bool), cache.query_inputs),
    ):
        rows = np.flatnonzero(usable & ~known[category_ids])
        for chunk, embeds_BD in embed_rows(encoders, inputs, rows, side=side):
            found.index_add_(0, torch.from_numpy(category_ids[chunk]), embeds_BD.float().cpu())
        known[category_ids[rows]] = True
    return torch.nn.functional.normalize(found, dim=1, out=found)
