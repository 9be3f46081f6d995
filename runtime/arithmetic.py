"""How image features are computed fastest on this processor: floating-point type, fused kernels."""

import logging
import platform
import warnings
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

IMAGES_AT_ONCE = 16  # more of them at once are slower on a CPU: their maps leave its cache
LARGEST_DIFFERENCE = 1e-3  # of fused kernels from the module itself, relative to its largest output


def has_fast_bfloat16() -> bool:
    """Whether bfloat16 is at least as fast as float32 on this CPU.

    x86 processors below AVX-512 emulate bfloat16: EfficientNet-Lite0 took twelve times as long as in float32 on an
    AVX2 machine. `ATEN_CPU_CAPABILITY` selects the kernels of torch, and so this answer.
    """
    import torch

    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return not is_x86 or "AVX512" in torch.backends.cpu.get_cpu_capability()


def fast_feature_dtype() -> str:
    """ "bfloat16" where that is fast, else "float32"."""
    return "bfloat16" if has_fast_bfloat16() else "float32"


def with_fused_kernels(module: Any, example: Any) -> Callable[[Any], Any]:
    """A module in evaluation mode with kernels fused for inputs of one shape, about twice as fast on a CPU.

    torch traces the module, folds normalisations into convolutions and chooses memory formats by oneDNN. The module
    itself is returned where that fails, or where its outputs differ by more than rounding.

    Args:
        module: returns a tensor or a tuple of tensors. example: an input, float32 on the CPU.
    """
    import torch

    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # checks of shapes are constants in a trace, which is what is wanted
            traced = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(module, example).eval()))
            wanted, found = module(example), traced(example)
    except (RuntimeError, TypeError, ValueError) as error:
        logger.debug("kernels are not fused: %s", error)
        return module
    pairs = [(wanted, found)] if isinstance(wanted, torch.Tensor) else list(zip(wanted, found, strict=True))
    equal = all(float((a - b).abs().max()) <= LARGEST_DIFFERENCE * float(a.abs().max()) for a, b in pairs)
    return traced if equal else module
