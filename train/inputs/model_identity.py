"""Which image encoder a run is about: its configuration and its weights as they were before training.

Why: a recipe names the encoder by a folder or a Hub id, whose content can change between two calls. A resumed run whose
frozen stages are others than those that it began with would go on without an error and learn nonsense.
"""

import hashlib
import json
from typing import Any

import torch


def model_identity(model: Any) -> dict[str, str]:
    """Type, digest of the configuration and digest of the weights of the image encoder."""
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
