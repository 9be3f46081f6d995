"""EfficientNet-Lite for transformers: an image encoder of 3.4M parameters.

Two things differ from other ports. Batch normalisation always uses its running statistics, so that a row does not
depend on the rest of its batch. The network can be split after any stage (`forward_trunk`, `forward_tail`), so that the
output of a frozen trunk can be cached.

Letters: B batch, C channels, H rows, W columns, N classes.
"""

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndNoAttention, ImageClassifierOutputWithNoAttention

from .configuration_efficientnet_lite_oclear import EfficientNetLiteConfig


class RunningBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d that uses its running statistics in training too; scale and shift are trainable."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W), each row of the batch independently."""
        return nn.functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class SamePadConv(nn.Conv2d):
    """Convolution with the "same" padding of TensorFlow: output ceil(size / stride), the odd pixel at the far edge."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        rows, columns = (
            max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in (input.shape[2], input.shape[3])
        )
        if rows % 2 == 0 and columns % 2 == 0:
            half = (rows // 2, columns // 2)
        else:
            half = (0, 0)
            edges = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
            input = nn.functional.pad(input, edges)
        return nn.functional.conv2d(input, self.weight, None, self.stride, half, 1, self.groups)


class ConvNorm(nn.Module):
    """Convolution, normalisation, and ReLU6 if `activate`."""

    def __init__(self, conv: SamePadConv, *, activate: bool = True, eps: float) -> None:
        super().__init__()
        self.conv = conv
        self.norm = RunningBatchNorm(conv.out_channels, eps=eps)
        self.activate = activate

    def forward(self, hidden_BCHW: torch.Tensor) -> torch.Tensor:
        hidden_BCHW = self.norm(self.conv(hidden_BCHW))
        return nn.functional.relu6(hidden_BCHW) if self.activate else hidden_BCHW


def _pointwise(num_in: int, num_out: int) -> SamePadConv:
    return SamePadConv(num_in, num_out, 1, bias=False)


class EfficientNetLiteBlock(GradientCheckpointingLayer):
    """Inverted residual (MobileNetV2): expand, depthwise convolution, project; plus the input if the shapes agree."""

    def __init__(self, num_in: int, num_out: int, *, kernel: int, stride: int, expand_ratio: int, eps: float) -> None:
        super().__init__()
        width = num_in * expand_ratio
        self.expand = ConvNorm(_pointwise(num_in, width), eps=eps) if expand_ratio > 1 else nn.Identity()
        depthwise = SamePadConv(width, width, kernel, stride=stride, groups=width, bias=False)
        self.depthwise = ConvNorm(depthwise, eps=eps)
        self.project = ConvNorm(_pointwise(width, num_out), activate=False, eps=eps)
        self.is_residual = stride == 1 and num_in == num_out

    def forward(self, hidden_BCHW: torch.Tensor) -> torch.Tensor:
        out_BCHW = self.project(self.depthwise(self.expand(hidden_BCHW)))
        return out_BCHW + hidden_BCHW if self.is_residual else out_BCHW


class EfficientNetLitePreTrainedModel(PreTrainedModel):
    """Base class: flags that transformers, Accelerate and FSDP read, and weight initialisation."""

    config_class = EfficientNetLiteConfig
    base_model_prefix = "efficientnet_lite"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _no_split_modules = ["EfficientNetLiteBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # With the default std of 0.02 activations would vanish, because these norms do not rescale by the batch.
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")


class EfficientNetLiteModel(EfficientNetLitePreTrainedModel):
    """The encoder without a classifier.

    `hidden_states` holds the output of the stem and of each stage (index 0 to the number of stages).
    `last_hidden_state` is the head convolution's map after its activation, `pooler_output` its average over the map.
    """

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        eps = config.batch_norm_eps
        stem = SamePadConv(config.num_channels, config.stem_channels, 3, stride=2, bias=False)
        self.stem = ConvNorm(stem, eps=eps)
        stages: list[nn.Sequential] = []
        num_in = config.stem_channels
        for stage, num_out in enumerate(config.out_channels):
            blocks: list[nn.Module] = []
            for repeat in range(config.num_block_repeats[stage]):
                blocks.append(
                    EfficientNetLiteBlock(
                        num_in,
                        num_out,
                        kernel=config.kernel_sizes[stage],
                        stride=config.strides[stage] if repeat == 0 else 1,
                        expand_ratio=config.expand_ratios[stage],
                        eps=eps,
                    )
                )
                num_in = num_out
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.head = ConvNorm(_pointwise(num_in, config.hidden_size), eps=eps)
        self.post_init()

    def forward_trunk(
        self, pixel_values: torch.Tensor, num_stages: int
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Run the stem and the first `num_stages` stages.

        Args:
            pixel_values: (B, 3, H, W), normalised by the processor.
            num_stages: 0 = the stem alone, up to the number of stages.

        Returns:
            The output of the last stage that ran, and the outputs of the stem and of every stage so far.

        Raises:
            ValueError: for more stages than the network has, or pixel values of another shape.
        """
        self._check_stages(num_stages)
        channels = self.config.num_channels
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}; (rows, {channels}, height, width) is needed, as "
                "the processor returns it."
            )
        hidden_BCHW = self.stem(pixel_values.to(self.dtype))
        hidden_states = [hidden_BCHW]
        for stage in self.stages[:num_stages]:
            hidden_BCHW = stage(hidden_BCHW)
            hidden_states.append(hidden_BCHW)
        return hidden_BCHW, tuple(hidden_states)

    def forward_tail(self, hidden_BCHW: torch.Tensor, num_stages: int) -> BaseModelOutputWithPoolingAndNoAttention:
        """Run the stages after `forward_trunk(..., num_stages)`, from its (possibly cached) output.

        Returns:
            The output of `forward`, with `hidden_states` from index `num_stages` on.
        """
        self._check_stages(num_stages)
        hidden_BCHW = hidden_BCHW.to(self.dtype)
        hidden_states = [hidden_BCHW]
        for stage in self.stages[num_stages:]:
            hidden_BCHW = stage(hidden_BCHW)
            hidden_states.append(hidden_BCHW)
        head_BCHW = self.head(hidden_BCHW)
        return BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=head_BCHW,
            pooler_output=head_BCHW.mean(dim=(2, 3)),
            hidden_states=tuple(hidden_states),
        )

    def forward(self, pixel_values: torch.Tensor, **kwargs: object) -> BaseModelOutputWithPoolingAndNoAttention:
        """(B, 3, H, W) -> stage outputs, head map (B, hidden_size, H/32, W/32) and its average (B, hidden_size)."""
        hidden_BCHW, hidden_states = self.forward_trunk(pixel_values, len(self.stages))
        output = self.forward_tail(hidden_BCHW, len(self.stages))
        output.hidden_states = hidden_states
        return output

    def _check_stages(self, num_stages: int) -> None:
        if not 0 <= num_stages <= len(self.stages):
            raise ValueError(f"num_stages is {num_stages}; it must be from 0 (the stem alone) to {len(self.stages)}.")


class EfficientNetLiteForImageClassification(EfficientNetLitePreTrainedModel):
    """The encoder with a linear classifier over `config.num_classes`, as it was trained on ImageNet."""

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        if config.num_classes < 1:
            raise ValueError(f"num_classes is {config.num_classes}; a classifier needs at least 1 class.")
        self.efficientnet_lite = EfficientNetLiteModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_classes)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **kwargs: object) -> ImageClassifierOutputWithNoAttention:
        """(B, 3, H, W) -> logits (B, N)."""
        output = self.efficientnet_lite(pixel_values)
        return ImageClassifierOutputWithNoAttention(
            logits=self.classifier(output.pooler_output), hidden_states=output.hidden_states
        )


# For AutoModel.from_config of a vision_config, also where only the published files are installed.
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)
