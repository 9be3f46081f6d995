"""Compare the weights of two models bit for bit."""

import torch
from torch import nn


def assert_equal_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Both models have the same tensors by name, type and every bit."""
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == other.keys()
    for name, value in other.items():
        assert mine[name].dtype == value.dtype, name
        assert torch.equal(mine[name], value), name
