"""The type of image features follows the processor."""

import platform

import pytest
import torch

from runtime.arithmetic import fast_feature_dtype


@pytest.mark.parametrize(
    ("machine", "capability", "expected"),
    [
        ("x86_64", "AVX2", "float32"),
        ("x86_64", "DEFAULT", "float32"),
        ("AMD64", "AVX512", "bfloat16"),
        ("x86_64", "AVX512_BF16", "bfloat16"),
        ("aarch64", "DEFAULT", "bfloat16"),
    ],
)
def test_bfloat16_is_chosen_where_the_processor_does_not_emulate_it(
    monkeypatch: pytest.MonkeyPatch, machine: str, capability: str, expected: str
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert fast_feature_dtype() == expected
