"""Count memory and operations of one sample in an image or text encoder.

Formulas for activations become wrong with every new attention kernel. PyTorch's fake tensors run the real model code
with shapes only, so the tensors that autograd keeps and the operations are counted in a second on any machine, for any
backbone of transformers whose construction reads no tensor values (ConvNext cannot be counted).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    Dinov2Config,
    SiglipVisionConfig,
    ViTConfig,
    XLMRobertaConfig,
)
from transformers.initialization import no_init_weights

from modeling_oclear.configuration_efficientnet_lite_oclear import EfficientNetLiteConfig
from modeling_oclear.modeling_efficientnet_lite_oclear import EfficientNetLiteModel
from train.encoders.lora import ATTENTION

SAMPLES = 2  # counted at once: tensors of batch size 1 may be treated differently

VISION: dict[str, Callable[[], Any]] = {
    "efficientnet-lite0": EfficientNetLiteConfig,
    "vit-b16": ViTConfig,
    "vit-l16": lambda: ViTConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    ),
    "dinov2-base": lambda: Dinov2Config(image_size=518),
    "siglip2-base": lambda: SiglipVisionConfig(image_size=224),
}
TEXT: dict[str, Callable[[], Any]] = {
    "minilm": lambda: BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
    "xlm-r-base": lambda: XLMRobertaConfig(vocab_size=250002, max_position_embeddings=514, type_vocab_size=1),
}


@dataclass(frozen=True)
class EncoderCost:
    """Cost of an encoder.

    Attributes:
        parameters: numbers in the whole encoder.
        largest_unit: parameters of the largest module that FSDP gathers at once (a block of `_no_split_modules`, or
            the parameters outside of all blocks).
        activations: bytes that autograd keeps for one sample, at `bytes_per_number`.
        block_inputs: bytes kept for one sample with activation checkpointing: the input of every block, and what one
            block keeps while it is recomputed.
        flops: multiplications and additions of the forward pass of one sample in matrix products and convolutions (a
            fused attention kernel is not counted: 4% of ViT-B/16).
        adapted_width: inputs + outputs of all query and value projections: an adapter of rank r trains r times that.
    """

    parameters: int
    largest_unit: int
    activations: int
    block_inputs: int
    flops: int
    adapted_width: int = 0


def vision_cost(name: str, *, image_size: int = 224, dtype: torch.dtype = torch.bfloat16) -> EncoderCost:
    """Cost of an image encoder for images of `image_size` pixels squared.

    Args:
        name: one of `VISION`, a folder or a cached Hub id.

    Raises:
        ValueError: no such encoder.
    """

    def inputs() -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.empty(SAMPLES, 3, image_size, image_size)}

    return _cost(_config(name, VISION, image_size=image_size), inputs, dtype)


def text_cost(name: str, *, tokens: int = 32, dtype: torch.dtype = torch.bfloat16) -> EncoderCost:
    """Cost of a text encoder for texts of `tokens` tokens; see `vision_cost`."""

    def inputs() -> dict[str, torch.Tensor]:
        return {"input_ids": torch.zeros(SAMPLES, tokens, dtype=torch.int64)}

    return _cost(_config(name, TEXT), inputs, dtype)


def _config(name: str, presets: dict[str, Callable[[], Any]], *, image_size: int | None = None) -> Any:
    if name in presets:
        config = presets[name]()
    else:
        try:
            config = AutoConfig.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"no encoder is called {name!r} here; choose one of {', '.join(presets)}, or give a folder with a "
                "config.json"
            ) from error
    config = getattr(config, "vision_config", config) if image_size is not None else config
    if image_size is not None and hasattr(config, "image_size"):
        config.image_size = image_size
    return config


def _cost(config: Any, inputs: Callable[[], dict[str, torch.Tensor]], dtype: torch.dtype) -> EncoderCost:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with FakeTensorMode(), no_init_weights():
            lite = isinstance(config, EfficientNetLiteConfig)
            model = (EfficientNetLiteModel(config) if lite else AutoModel.from_config(config)).train(not lite)
            return measure(model, inputs())
    finally:
        torch.set_default_dtype(before)


def measure(model: Any, inputs: dict[str, torch.Tensor]) -> EncoderCost:
    """Count one forward pass of `model` over a batch; works on fake and on real tensors."""
    blocks = _blocks(model)
    with FlopCounterMode(display=False) as counter:
        kept, inside, entering = _kept_bytes(model, inputs, blocks)
    samples = len(next(iter(inputs.values())))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    units = [sum(parameter.numel() for parameter in block.parameters()) for block in blocks]
    return EncoderCost(
        parameters=parameters,
        largest_unit=max([*units, parameters - sum(units)]),
        activations=kept // samples,
        block_inputs=(sum(entering) + max(inside, default=0) + kept - sum(inside)) // samples,
        flops=counter.get_total_flops() // samples,
        adapted_width=_adapted_width(model),
    )


def _adapted_width(model: Any) -> int:
    adapted = [module for name, module in model.named_modules() if name.rpartition(".")[2] in ATTENTION]
    return sum(module.in_features + module.out_features for module in adapted if isinstance(module, torch.nn.Linear))


def _blocks(model: Any) -> list[Any]:
    """Modules that FSDP wraps and checkpointing recomputes: transformers' `_no_split_modules`, outermost only."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    found: list[Any] = []
    for module in model.modules():
        inside = any(module is part for block in found for part in block.modules())
        if type(module).__name__ in names and not inside:
            found.append(module)
    return found


def _kept_bytes(model: Any, inputs: dict[str, torch.Tensor], blocks: list[Any]) -> tuple[int, list[int], list[int]]:
    """Bytes that autograd keeps: total, within each block, and of the inputs of each block."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, tuple[int, int | None]] = {}
    entering = [0] * len(blocks)
    current: list[int] = []
    alive = []  # keeps storages: a freed one could share its address with the next

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept.setdefault(storage._cdata, (storage.nbytes(), current[-1] if current else None))
            alive.append(tensor)
        return tensor

    def enter(number: int) -> Callable[..., None]:
        def hook(module: Any, positional: Any, named: Any) -> None:
            tensors = [value for value in (*positional, *named.values()) if isinstance(value, torch.Tensor)]
            entering[number] = tensors[0].untyped_storage().nbytes() if tensors else 0
            current.append(number)

        return hook

    def leave_block(module: Any, positional: Any, result: Any) -> None:
        current.pop()

    handles = [block.register_forward_pre_hook(enter(n), with_kwargs=True) for n, block in enumerate(blocks)]
    handles += [block.register_forward_hook(leave_block) for block in blocks]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = model(**inputs)
    for handle in handles:
        handle.remove()
    inside = [sum(size for size, block in kept.values() if block == n) for n in range(len(blocks))]
    del result
    return sum(size for size, _ in kept.values()), inside, entering
