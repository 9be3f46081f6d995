"""What cached features depend on, as a name: a stale answer cannot be read."""

import hashlib
import inspect
import json
from typing import Any

import torch

from train.inputs import augment, composites, views
from train.inputs.sample_table import SIDES, SampleTable
from train.recipes.recipe import Recipe


def cache_keys(model: Any, processor: Any, samples: SampleTable, *, recipe: Recipe, seed: int) -> tuple[str, str]:
    """What the features depend on, for images and for pages and texts: a recipe without text shares the images.

    Images: encoder, processor, recipe, seed, image bytes, source of the augmentation. Pages and texts: all that, the
    text encoder, texts, labels, and the source of the pages. The samples are read once, row group by row group.
    """
    pictures, words = _sample_digests(samples)
    digest = hashlib.sha256(_weights_digest(model, "vision_model").encode())
    facts = [
        recipe.model.frozen_stages,
        recipe.image.query_views,
        recipe.image.document_views,
        recipe.model.feature_dtype,
        seed,
    ]
    facts += [model.config.vision_feature_stage, processor.image_processor.to_json_string()]
    digest.update(json.dumps([*facts, pictures]).encode())
    for source in (augment, views):
        digest.update(inspect.getsource(source).encode())
    images = digest.hexdigest()[:16]
    digest.update(_weights_digest(model, "text_model").encode())
    digest.update(inspect.getsource(composites).encode())
    digest.update(json.dumps([recipe.text.encoder, recipe.text.max_tokens, words]).encode())
    return f"images-{images}", f"texts-{digest.hexdigest()[:16]}"


def _sample_digests(samples: SampleTable) -> tuple[list[str], list[str]]:
    """Per side, in the order of its rows: digest of ids and images; digest of texts and categories."""
    pictures = {side: hashlib.sha256() for side in SIDES}
    words = {side: hashlib.sha256() for side in SIDES}
    for part in samples.in_order(("side", "sample_id", "image", "text", "category_id")):
        columns = (part.column(name).to_pylist() for name in ("side", "sample_id", "image", "text", "category_id"))
        for side, sample_id, image, text, category in zip(*columns, strict=True):
            seen = b"-" if image is None else hashlib.sha256(image).digest()
            pictures[side].update(json.dumps(sample_id).encode() + seen)
            words[side].update(json.dumps([text or "", category]).encode())
    return [pictures[side].hexdigest() for side in SIDES], [words[side].hexdigest() for side in SIDES]


def _weights_digest(model: torch.nn.Module, encoder: str) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(f"{encoder}."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
