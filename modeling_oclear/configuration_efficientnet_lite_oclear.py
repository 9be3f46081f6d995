"""Configuration of EfficientNet-Lite, the small image encoder of the demo recipes.

transformers has EfficientNet, but not its Lite variant: no squeeze-excitation, ReLU6, a stem and a head of fixed width.
Compact ImageNet weights exist for it, see packaged_weights.py.
"""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .strict_config_oclear import reject_unknown_keys, with_value_errors


@with_value_errors
@strict
class EfficientNetLiteConfig(PreTrainedConfig):
    """EfficientNet-Lite by its stages; the defaults are Lite0 (Tan and Le, EfficientNet, 2019; Lite variant, 2020).

    Attributes:
        stem_channels: channels after the first convolution (stride 2).
        out_channels, num_block_repeats, kernel_sizes, strides, expand_ratios: one entry per stage.
        hidden_size: channels of the head convolution, the width of `pooler_output`.
        num_classes: size of the classifier of `EfficientNetLiteForImageClassification`; 0 = none.

    Raises:
        ValueError: stages of unequal number, a count below one, an even kernel, an unknown keyword.
    """

    model_type = "efficientnet_lite_oclear"

    num_channels: int = 3
    stem_channels: int = 32
    out_channels: list[int] | tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    num_block_repeats: list[int] | tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    kernel_sizes: list[int] | tuple[int, ...] = (3, 3, 5, 3, 5, 5, 3)
    strides: list[int] | tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    expand_ratios: list[int] | tuple[int, ...] = (1, 6, 6, 6, 6, 6, 6)
    hidden_size: int = 1280
    batch_norm_eps: float = 1e-3
    num_classes: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        """Reject unknown keys."""
        reject_unknown_keys(self, kwargs)
        super().__post_init__(**kwargs)

    def validate_stages(self) -> None:
        """Check that every stage has five values, each in range."""
        names = ("out_channels", "num_block_repeats", "kernel_sizes", "strides", "expand_ratios")
        lengths = {name: len(getattr(self, name)) for name in names}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise ValueError(f"the lists have different lengths: {lengths}. Give one entry per stage in each list.")
        for name in names:
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} is {list(getattr(self, name))}; every entry must be at least 1.")
        if any(kernel % 2 == 0 for kernel in self.kernel_sizes):
            raise ValueError(f"kernel_sizes is {list(self.kernel_sizes)}; every kernel must be odd, such as 3 or 5.")
        if max(self.strides) > 2:
            raise ValueError(f"strides is {list(self.strides)}; a stage has stride 1 or 2.")

    def validate_widths(self) -> None:
        """Check counts and widths."""
        for name, least in (("num_channels", 1), ("stem_channels", 1), ("hidden_size", 1), ("num_classes", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        if not self.batch_norm_eps > 0:
            raise ValueError(f"batch_norm_eps is {self.batch_norm_eps}; it must be above 0, such as 1e-3.")


# A sub-config is looked up by its model_type, also where only the published files are installed.
AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
