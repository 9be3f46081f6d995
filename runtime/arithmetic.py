"""Which floating-point type computes image features fastest on this processor."""

import platform


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
