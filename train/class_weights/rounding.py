"""Stochastic rounding to bfloat16, equal for any number of ranks.

A bfloat16 weight has 8 significant bits. An update below half of its last bit is lost when it is rounded to nearest,
so training stalls; rounded up with the probability of its fraction it is kept on average (Gupta et al., Deep Learning
with Limited Numerical Precision, ICML 2015). The noise of an element depends on (seed, step, class, column) alone,
by an integer hash: the state of a generator would depend on the order of ranks.

Letters: S rows, D columns.
"""

import torch
from torch import Tensor

# Multipliers of the 64-bit mixer of Steele, Lea and Flood (Fast Splittable Pseudorandom Number Generators, 2014), as
# signed numbers.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64
_LOW_16 = 0xFFFF


def mixed(values: Tensor) -> Tensor:
    """64-bit mixer: a bijection of int64 in which every output bit depends on every input bit."""
    values = values * _GOLDEN
    values = (values ^ _shifted(values, 30)) * _MIX_1
    values = (values ^ _shifted(values, 27)) * _MIX_2
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch shifts signed numbers arithmetically."""
    return (values >> bits) & (2 ** (64 - bits) - 1)


def row_keys(class_ids_S: Tensor, *, seed: int, step: int) -> Tensor:
    """(S,) int32 keys of rows at one step, from (seed, step, class id)."""
    key = mixed(torch.tensor([seed], dtype=torch.int64, device=class_ids_S.device) + 1)
    key = mixed(key ^ (step + 1))
    return (mixed(key ^ (class_ids_S + 1)) >> 32).to(torch.int32)


def column_factors(width: int, *, device: torch.device) -> Tensor:
    """(D,) odd int32 numbers, one per column."""
    columns = torch.arange(1, width + 1, dtype=torch.int64, device=device)
    return ((mixed(columns) >> 32) | 1).to(torch.int32)


def round_to_bfloat16(value_SD: Tensor, keys_S: Tensor, factors_D: Tensor) -> Tensor:
    """fp32 -> bfloat16, up or down with the probability that makes the mean exact; overwrites `value_SD`.

    The noise is the upper half of key x factor modulo 2**32 (multiply-shift hashing: Dietzfelbinger et al., 1997). It
    is added to the 16 bits that bfloat16 drops, and these are cut off:

        for each element: bits = bits of value + (0 .. 65535); result = bits >> 16

    A factor is odd, so that over all keys each of the 65,536 values of the noise is equally likely. Values that
    bfloat16 represents exactly do not change. Values that are not finite stay so.

    Args:
        value_SD: (S, D) float32, contiguous. keys_S: from `row_keys`. factors_D: from `column_factors`.

    Returns:
        (S, D) bfloat16.
    """
    assert value_SD.dtype == torch.float32
    assert value_SD.is_contiguous()
    noise_SD = keys_S[:, None] * factors_D
    noise_SD >>= 16
    noise_SD &= _LOW_16
    bits_SD = value_SD.view(torch.int32)
    bits_SD += noise_SD
    bits_SD >>= 16
    return bits_SD.to(torch.int16).view(torch.bfloat16)
