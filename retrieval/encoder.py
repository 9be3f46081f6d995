"""Load a published model folder with AutoModel and AutoProcessor, and embed pictures and texts.

Indexing needs the whole model; search and the query half of evaluation take the `query` subfolder alone, which holds no
text weights. Loading runs the Python files of the folder (remote code) unless modeling_oclear is installed, whose
registered classes are used instead: load only folders and Hub repositories that you trust.

Letters: B batch, D width.
"""

import contextlib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoModel, AutoProcessor
from transformers.utils import logging as transformers_logging

import modeling_oclear
from modeling_oclear.image_decoding_oclear import MAX_IMAGE_PIXELS
from retrieval.fused_vision import KnownMaps, with_fused_vision
from runtime.devices import device_named

THUMBNAIL_PIXELS = 96


@dataclass(frozen=True)
class RetrievalEncoder:
    """A model in evaluation mode with its processor."""

    model: Any
    processor: Any
    folder: Path
    bf16: bool = False

    @property
    def width(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def text_strength(self) -> float:
        return float(getattr(self.model.config, "text_strength", 0.0))

    @property
    def reads_text(self) -> bool:
        return getattr(self.model.config, "text_config", None) is not None

    @cached_property
    def documents_fingerprint(self) -> str:
        """sha256 over all weights and the text weight: the documents of one index must be embedded alike.

        Ask before the files of the folder can change: what was loaded stays in memory.
        """
        digest = hashlib.sha256(repr(self.text_strength).encode())
        for file in sorted(self.folder.glob("model*.safetensors")):
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    @property
    def decoding(self) -> dict[str, Any]:
        """How the model's image processor wants pictures decoded: arguments of `pictures.decode`."""
        image_processor = getattr(self.processor, "image_processor", self.processor)
        # A folder that was published with an earlier version may bring its own processor, which decodes at full size.
        earlier = {
            "max_pixels": int(getattr(image_processor, "max_image_pixels", None) or MAX_IMAGE_PIXELS),
            "exif_orientation": bool(getattr(image_processor, "exif_orientation", True)),
        }
        found: dict[str, Any] = getattr(image_processor, "decoding", earlier)
        return found

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        found: torch.device = self.model.device
        return found

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    @torch.inference_mode()
    def queries(self, pictures: Sequence[Image.Image]) -> tuple[NDArray[np.float32], list[Image.Image]]:
        """(B, D) unit rows of query pictures, and the pictures as the model saw them."""
        pixels = self.processor(images=list(pictures), text=None)["pixel_values"]
        with self._autocast():
            embeds = self.model.get_query_embeds(pixels.to(self.device))
        return embeds.float().cpu().numpy(), self.seen(pixels)

    @torch.inference_mode()
    def documents(
        self, pictures: Sequence[Image.Image | None], texts: Sequence[str], *, known: KnownMaps | None = None
    ) -> tuple[Any, list[Image.Image]]:
        """The model's OclearDocumentOutput of a batch, and the pictures as it saw them (blank where missing).

        Args:
            known: maps of some of the pictures, for a model with fused kernels (stored_maps.py).
        """
        # A batch without any text leaves the text encoder out: there would be nothing to pad to.
        read = self.reads_text and any(texts)
        words = {"text": [text or None for text in texts]} if read else {}
        inputs = self.processor(images=list(pictures), **words)
        context = contextlib.nullcontext() if known is None else self.model.vision_model.knowing(known)
        with self._autocast(), context:
            found = self.model.get_document_embeds(**{name: value.to(self.device) for name, value in inputs.items()})
        return found, self.seen(inputs["pixel_values"])

    def seen(self, pixel_values: torch.Tensor) -> list[Image.Image]:
        """Convert pixel values back to pictures: an attention map fits these, not the uncropped original."""
        image_processor = getattr(self.processor, "image_processor", self.processor)
        mean = torch.as_tensor(image_processor.image_mean).view(1, -1, 1, 1)
        std = torch.as_tensor(image_processor.image_std).view(1, -1, 1, 1)
        level = ((pixel_values * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
        return [Image.fromarray(array) for array in level.permute(0, 2, 3, 1).numpy()]


def load_encoder(name: str, *, bf16: bool = False, device: str = "auto") -> RetrievalEncoder:
    """Load the whole model of a published folder or Hub repository.

    Args:
        name: a folder, or owner/name on the Hub.
        bf16: compute in bfloat16.
        device: "auto" is a GPU where there is one.

    Raises:
        ValueError: no such folder, no config, no weights, remote code missing, a folder that does not load, or a device
            that is not there.
    """
    return _load(published_folder(name), {}, bf16=bf16, device=device_named(device))


def load_query_encoder(name: str, *, bf16: bool = False, device: str = "auto") -> RetrievalEncoder:
    """Load the query side alone, from the `query` subfolder. Arguments and errors as in load_encoder."""
    return _load(
        published_folder(name, query_only=True), {"subfolder": "query"}, bf16=bf16, device=device_named(device)
    )


def _load(folder: Path, where: dict[str, str], *, bf16: bool, device: torch.device) -> RetrievalEncoder:
    # The head's weights are not part of the bare model; transformers would print a long report about that.
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32, **where)
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True, **where)
    except (OSError, ValueError, KeyError, AttributeError, ImportError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"model {folder.name}: the folder does not load: {reason}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    if not hasattr(model, "get_query_embeds"):
        raise ValueError(
            f"model {folder.name}: {type(model).__name__} has no get_query_embeds: not a folder of this kind"
        )
    # Channels last: the same numbers, and convolutions on a CPU run faster.
    model = model.eval().to(memory_format=torch.channels_last).to(device)
    fused = not bf16 and device.type == "cpu"
    return RetrievalEncoder(with_fused_vision(model) if fused else model, processor, folder, bf16)


def published_folder(name: str, *, query_only: bool = False) -> Path:
    """The local folder of a model, checked; a Hub id is downloaded first.

    Raises:
        ValueError: see load_encoder.
    """
    folder = Path(name) if Path(name).exists() else _download(name, query_only)
    modeling_oclear.check_folder(folder / "query" if query_only else folder)
    return folder


def _download(name: str, query_only: bool) -> Path:
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise ValueError(f"model {name}: there is no such folder")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    patterns = ["*.py", "config.json", "query/*", "calibration.safetensors"] if query_only else None
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"model {name}: no such folder here, and the Hub says: {reason}") from error


def fingerprint(folder: Path) -> str:
    """sha256 over the query side's weights: an index answers only queries of the model that it was built with."""
    files = sorted((folder / "query").glob("*.safetensors"))
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest() if files else ""
