"""Image encoder: a saved model, or the packaged EfficientNet-Lite0.

The packaged weights are in `modeling_oclear`, which is imported only inside a function.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runtime.arithmetic import IMAGES_AT_ONCE, fast_feature_dtype, with_fused_kernels
from runtime.map_store import store_key

MEAN, STD = 0.498, 0.502
LATER_STAGES = (5, 6, 7)
# Stages before the map that is kept for training, and the stage of the patches: as the shipped recipes cut the network.
KEPT_STAGE, PATCH_STAGE = 6, 5
# Side of the grid of mean colours.
COLOUR_GRID = 6
# Pooled output, later stages, colour grid.
PACKAGED_BLOCKS = 1 + len(LATER_STAGES) + 1


class Encoder:
    """Image features: several blocks side by side.

    The blocks are the pooled output of the network, the means of its later stages, and a coarse grid of mean colours:
    the last layer often loses what distinguishes two drawings of one kind. An OCLEAR model was trained on the same
    clicks that governance judges, so it is a second view beside the packaged network and never the only one.

    Attributes:
        name: identifies the encoder in the ledger and in the digests of the stages.
        is_oclear: whether the model is an OCLEAR model, which gives two views.
        dtype: arithmetic of the packaged network: "bfloat16", or "float32" where the processor emulates bfloat16.
    """

    name = "packaged efficientnet-lite0"
    is_oclear = False
    dtype = "float32"

    def __init__(self, folder: Path | None, *, threads: int) -> None:
        torch.set_num_threads(threads)
        self.dtype = fast_feature_dtype()
        self._packaged = _PackagedView(self.dtype)
        self._views: list[Callable[[torch.Tensor], list[torch.Tensor]]] = [self._packaged]
        if folder is not None:
            forward, self.is_oclear = _from_folder(folder)
            self._views = [self._packaged, forward] if self.is_oclear else [forward]
            self.name = f"{folder.name} {_digest(folder)}" + (f" beside {self.name}" if self.is_oclear else "")

    def maps_key(self, processor: Any) -> str | None:
        """Key of the store of maps that training reads; None where the packaged network does not run."""
        if self._packaged not in self._views:
            return None
        return store_key(self._packaged.module.network, processor, **self.maps_settings)

    @property
    def maps_settings(self) -> dict[str, Any]:
        """What the kept maps depend on beside the network and its pixels."""
        return {"stages": KEPT_STAGE, "patch_stage": PATCH_STAGE, "dtype": self.dtype}

    def features(self, squares_NSSC: np.ndarray, *, maps: list[dict[str, np.ndarray]] | None = None) -> np.ndarray:
        """(N, S, S, 3) uint8 -> (N, W) float16, W the sum of `block_widths`.

        Args:
            maps: the packaged network's maps of every part are appended: "inputs" and "cells", as training caches them.
        """
        parts = []
        for start in range(0, len(squares_NSSC), IMAGES_AT_ONCE):
            blocks = self._blocks(squares_NSSC[start : start + IMAGES_AT_ONCE])
            parts.append(torch.cat([block.to(torch.float16) for block in blocks], dim=1).numpy())
            if maps is not None:
                maps.append(self._packaged.last_maps)
        return np.concatenate(parts)

    def block_widths(self, image_size: int) -> list[int]:
        """Width of each block of `features`, measured by encoding one black image of that side."""
        blank = np.zeros((1, image_size, image_size, 3), dtype=np.uint8)
        return [block.shape[1] for block in self._blocks(blank)]

    def blocks_per_view(self, num_blocks: int) -> list[int]:
        """How many of all blocks belong to each view."""
        return [PACKAGED_BLOCKS, num_blocks - PACKAGED_BLOCKS] if self.is_oclear else [num_blocks]

    def _blocks(self, squares_NSSC: np.ndarray) -> list[torch.Tensor]:
        with torch.inference_mode():
            batch = torch.from_numpy(squares_NSSC).permute(0, 3, 1, 2)
            pixels = (batch.to(torch.float32) / 255 - MEAN) / STD
            colour = torch.nn.functional.adaptive_avg_pool2d(pixels, COLOUR_GRID).flatten(1)
            return [block for forward in self._views for block in (*forward(pixels), colour)]


class _Packaged(torch.nn.Module):
    """The packaged network with its later stages, as a module that torch can trace."""

    def __init__(self, dtype: torch.dtype) -> None:
        from modeling_oclear.packaged_weights import load_efficientnet_lite0

        super().__init__()
        network: Any = load_efficientnet_lite0()
        self.dtype = dtype
        self.network = network.to(dtype).to(memory_format=torch.channels_last)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, 3, S, S) -> kept map, map of the patches, pooled output, means of the later stages."""
        out = self.network(pixels.to(self.dtype).contiguous(memory_format=torch.channels_last))
        maps = out.hidden_states[KEPT_STAGE], out.hidden_states[PATCH_STAGE]
        return *maps, out.pooler_output, *(out.hidden_states[stage].mean(dim=(2, 3)) for stage in LATER_STAGES)


class _PackagedView:
    """Blocks of the packaged network for up to `IMAGES_AT_ONCE` images; fewer are filled up with zeros.

    Attributes:
        last_maps: float16 maps of the images of the last call.
    """

    def __init__(self, dtype: str) -> None:
        self.module = _Packaged(getattr(torch, dtype)).eval()
        self.last_maps: dict[str, np.ndarray] = {}
        self._fused: dict[tuple[int, ...], Callable[[torch.Tensor], tuple[torch.Tensor, ...]]] = {}

    def __call__(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        kept, patches, *blocks = (block[: len(pixels)] for block in self._forward(pixels))
        self.last_maps = {
            "inputs": kept.to(torch.float16).numpy(),
            "cells": patches.flatten(2).transpose(1, 2).to(torch.float16).numpy(),
        }
        return blocks

    def _forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.module.dtype != torch.float32:
            found: tuple[torch.Tensor, ...] = self.module(pixels)
            return found
        filled = torch.cat([pixels, pixels.new_zeros(-len(pixels) % IMAGES_AT_ONCE, *pixels.shape[1:])])
        if filled.shape not in self._fused:
            self._fused[filled.shape] = with_fused_kernels(self.module, filled)
        return self._fused[filled.shape](filled)


def _from_folder(folder: Path) -> tuple[Callable[[torch.Tensor], list[torch.Tensor]], bool]:
    """(forward function, whether it is an OCLEAR model) of a vision model or the image tower of a two-tower model.

    Input size and normalisation are those of the folder's image processor, if it has one. An OCLEAR model adds its
    trained embedding, and the means of the later stages where the network is convolutional.

    Raises:
        ValueError: when the folder does not hold a loadable model.
    """
    from transformers import AutoModel

    if not (folder / "config.json").exists():
        raise ValueError(f"--encoder {folder}: no config.json there. Give a folder written by save_pretrained.")
    try:
        # The user chose this folder, so its custom code is trusted like the user's own.
        model: Any = AutoModel.from_pretrained(folder, trust_remote_code=True, local_files_only=True).eval()
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(f"--encoder {folder}: cannot be loaded ({' '.join(str(error).split())[:200]}).") from error
    size, mean, std = _input_scale(folder)
    hidden: list[Any] = []
    if hasattr(model, "embed_pooled"):
        model.vision_model.register_forward_hook(lambda _module, _args, out: hidden.append(out))

    def forward(pixels: torch.Tensor) -> list[torch.Tensor]:
        pixels = (pixels * STD + MEAN - mean) / std
        if size is not None and size != pixels.shape[-1]:
            pixels = torch.nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
        if hasattr(model, "embed_pooled"):
            pooled = model.encode_image(pixels)[1]
            maps = [state for state in getattr(hidden.pop(), "hidden_states", None) or () if state.ndim == 4]
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
    """(side in pixels or None, mean (3, 1, 1), deviation (3, 1, 1)) of a saved image processor, or the defaults."""
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
    """Digest of the weight files' sizes and times and of the config: cheap for large files."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    if (folder / "config.json").exists():
        digest.update((folder / "config.json").read_bytes())
    return digest.hexdigest()[:16]
