"""Digests that name cached features and identify the image encoder of a run."""

import hashlib
import inspect
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from train.inputs import augment, composites, views
from train.inputs.frozen_part import feature_dtype
from train.inputs.sample_table import SIDES, SampleTable
from train.recipes.recipe import Recipe


@dataclass(frozen=True)
class FeatureExtraction:
    """Governed samples that pass through the frozen part of a model, and under which settings.

    Attributes:
        model: an `OclearModel`; its frozen part is run in inference mode. processor: its processor.
        samples: the governed samples.
        recipe: how many stages are frozen, how many views per side, the feature dtype.
        seed: of augmentation and composite images.
    """

    model: Any
    processor: Any
    samples: SampleTable
    recipe: Recipe
    seed: int


def cache_keys(extraction: FeatureExtraction, *, trained: dict[str, np.ndarray] | None = None) -> tuple[str, str]:
    """Folder names of cached image features, and of composite images and texts; stale features are never read.

    Images depend on encoder, processor, recipe, seed, image bytes and source code of the augmentation; composite images
    and texts also on the text encoder, texts, labels and the source code of composites.py. So a recipe without text
    shares the images of one with text. The samples are read once, row group by row group.
    """
    model, recipe = extraction.model, extraction.recipe
    image_digests, text_digests = _sample_digests(extraction.samples)
    digest = hashlib.sha256(_weights_digest(model, "vision_model").encode())
    settings = [
        recipe.model.frozen_stages,
        recipe.image.query_views,
        recipe.image.document_views,
        feature_dtype(recipe),
        extraction.seed,
    ]
    image_processor = extraction.processor.image_processor
    settings += [model.config.vision_feature_stage, image_processor.to_json_string(), image_processor.pixel_code]
    digest.update(json.dumps([*settings, image_digests]).encode())
    for rows in (trained or {}).values():
        digest.update(np.packbits(rows).tobytes())
    for source in (augment, views):
        digest.update(inspect.getsource(source).encode())
    images = digest.hexdigest()[:16]
    digest.update(_weights_digest(model, "text_model").encode())
    digest.update(inspect.getsource(composites).encode())
    digest.update(json.dumps([recipe.text.encoder, recipe.text.max_tokens, text_digests]).encode())
    return f"images-{images}", f"texts-{digest.hexdigest()[:16]}"


def _sample_digests(samples: SampleTable) -> tuple[list[str], list[str]]:
    """Per side, in the order of its rows: digest of ids and images; digest of texts and categories."""
    image_digests = {side: hashlib.sha256() for side in SIDES}
    text_digests = {side: hashlib.sha256() for side in SIDES}
    for part in samples.in_order(("side", "sample_id", "image", "text", "category_id")):
        columns = (part.column(name).to_pylist() for name in ("side", "sample_id", "image", "text", "category_id"))
        for side, sample_id, image, text, category in zip(*columns, strict=True):
            seen = b"-" if image is None else hashlib.sha256(image).digest()
            image_digests[side].update(json.dumps(sample_id).encode() + seen)
            text_digests[side].update(json.dumps([text or "", category]).encode())
    return [image_digests[side].hexdigest() for side in SIDES], [text_digests[side].hexdigest() for side in SIDES]


def _weights_digest(model: torch.nn.Module, encoder: str) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(f"{encoder}."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def model_identity(model: Any) -> dict[str, str]:
    """Type, digest of the configuration and digest of the weights of the untrained image encoder.

    A recipe names the encoder by a folder or a Hub id, whose content can change between two calls. A resumed run with
    other frozen stages than it began with would continue without an error and learn nonsense.
    """
    vision = model.vision_model
    config = {key: value for key, value in vision.config.to_dict().items() if not key.startswith(("_", "transformers"))}
    weights = hashlib.sha256()
    for name, tensor in sorted(vision.state_dict().items()):
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return {
        "vision": vision.config.model_type,
        "config": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16],
        "weights": weights.hexdigest()[:16],
    }
