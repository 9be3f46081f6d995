"""The image encoder of governance: a folder that the user gives, or the packaged EfficientNet-Lite0.

This is the one file that touches the model package, and only inside a function: the packaged weights live there.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

BATCH = 64
MEAN, STD = 0.498, 0.502
LATER_STAGES = (5, 6, 7)
# The colour layout is a grid of this side.
COLOUR_CELLS = 6
# Pooled output, later stages, colour.
PACKAGED_BLOCKS = 1 + len(LATER_STAGES) + 1


class Encoder:
    """Image features in bfloat16: one block per source of them, side by side.

    Besides the pooled output of the network, the means of its later stages and a coarse colour layout: what tells two
    drawings of one kind apart is often gone in the last layer. A model of ours is a second view beside the packaged
    network's: it has learned from the clicks that are to be judged. `name` goes to the ledger and into the digest of
    the stages; `blocks` are the widths, known after the first call, and `views` how many of them each view has.
    """

    is_ours = False

    def __init__(self, folder: Path | None, *, threads: int) -> None:
        torch.set_num_threads(threads)
        self.blocks: list[int] = []
        self.name = "packaged efficientnet-lite0"
        if folder is None:
            self._views = [_packaged()]
        else:
            forward, self.is_ours = _from_folder(folder)
            self._views = [_packaged(), forward] if self.is_ours else [forward]
            self.name = f"{folder.name} {_digest(folder)}" + (f" beside {self.name}" if self.is_ours else "")

    @property
    def views(self) -> list[int]:
        """Blocks of each view; the packaged network has always the same."""
        return [PACKAGED_BLOCKS, len(self.blocks) - PACKAGED_BLOCKS] if self.is_ours else [len(self.blocks)]

    def features(self, squares_NSSC: np.ndarray) -> np.ndarray:
        """(N, S, S, 3) uint8 -> (N, W) float16, W the sum of `blocks`."""
        parts = []
        with torch.inference_mode():
            for start in range(0, len(squares_NSSC), BATCH):
                batch = torch.from_numpy(squares_NSSC[start : start + BATCH]).permute(0, 3, 1, 2)
                pixels = (batch.to(torch.float32) / 255 - MEAN) / STD
                colour = torch.nn.functional.adaptive_avg_pool2d(pixels, COLOUR_CELLS).flatten(1)
                blocks = [block for forward in self._views for block in (*forward(pixels), colour)]
                self.blocks = [block.shape[1] for block in blocks]
                parts.append(torch.cat([block.to(torch.float16) for block in blocks], dim=1).numpy())
        return np.concatenate(parts)


def _packaged() -> Callable[[torch.Tensor], list[torch.Tensor]]:
    from modeling_oclear.packaged_weights import load_efficientnet_lite0

    model: Any = load_efficientnet_lite0()
    model = model.to(torch.bfloat16).to(memory_format=torch.channels_last)

    def forward(pixels: torch.Tensor) -> list[torch.Tensor]:
        out = model(pixels.to(torch.bfloat16).contiguous(memory_format=torch.channels_last))
        return [out.pooler_output, *(out.hidden_states[stage].mean(dim=(2, 3)) for stage in LATER_STAGES)]

    return forward


def _from_folder(folder: Path) -> tuple[Callable[[torch.Tensor], list[torch.Tensor]], bool]:
    """A vision model, or the image side of a two-tower model, and whether it is ours.

    Its own input size and scale where the folder says so. Our own models add their trained embedding, and the means of
    the later stages where the network has maps.

    Raises:
        ValueError: when the folder is no model.
    """
    from transformers import AutoModel

    if not (folder / "config.json").exists():
        raise ValueError(f"--encoder {folder}: no config.json there. Give a folder that save_pretrained wrote.")
    try:
        # The user named this folder, so its code is run like the user's own.
        model: Any = AutoModel.from_pretrained(folder, trust_remote_code=True, local_files_only=True).eval()
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(f"--encoder {folder}: cannot be loaded ({' '.join(str(error).split())[:200]}).") from error
    size, mean, std = _input_scale(folder)
    seen: list[Any] = []
    if hasattr(model, "embed_pooled"):
        model.vision_model.register_forward_hook(lambda _module, _given, out: seen.append(out))

    def forward(pixels: torch.Tensor) -> list[torch.Tensor]:
        pixels = (pixels * STD + MEAN - mean) / std
        if size is not None and size != pixels.shape[-1]:
            pixels = torch.nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
        if hasattr(model, "embed_pooled"):
            pooled = model.encode_image(pixels)[1]
            maps = [state for state in getattr(seen.pop(), "hidden_states", None) or () if state.ndim == 4]
            later = [state.mean(dim=(2, 3)) for state in maps[-len(LATER_STAGES) :]]
            return [pooled, model.embed_pooled(pooled, side="query"), *later]
        if hasattr(model, "get_query_embeds"):
            return [model.get_query_embeds(pixels)]
        out = model.get_image_features(pixels) if hasattr(model, "get_image_features") else model(pixels)
        if isinstance(out, torch.Tensor):
            return [out]
        pooled = getattr(out, "pooler_output", None)
        return [out.last_hidden_state.mean(dim=1) if pooled is None else pooled.flatten(1)]

    return forward, hasattr(model, "embed_pooled")


def _input_scale(folder: Path) -> tuple[int | None, torch.Tensor, torch.Tensor]:
    """(side in pixels or None, mean (3, 1, 1), deviation (3, 1, 1)) of a saved image processor; our own without one."""
    facts: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).exists():
            facts = json.loads((folder / name).read_text())
            facts = facts.get("image_processor", facts)
            break
    size = facts.get("size")
    side = size.get("height", size.get("shortest_edge")) if isinstance(size, dict) else size
    scale = [
        torch.tensor(facts.get(key) or [default] * 3) for key, default in (("image_mean", MEAN), ("image_std", STD))
    ]
    return side, scale[0].view(3, 1, 1), scale[1].view(3, 1, 1)


def _digest(folder: Path) -> str:
    """Of the weights' sizes and the config: enough to notice another encoder, cheap for large files."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    if (folder / "config.json").exists():
        digest.update((folder / "config.json").read_bytes())
    return digest.hexdigest()[:16]
