"""Learning-rate schedules as factors of the full rate: linear warm-up and half a cosine."""

import math


def half_cosine(step: int, *, steps: int) -> float:
    """0.5 * (1 + cos(pi * step / steps)): 1 at step 0, 0 at `steps`."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def learning_rate_factor(step: int, *, steps: int, warmup_steps: int) -> float:
    """Linear warm-up to 1, then half a cosine down to 0 at `steps`.

    >>> [round(learning_rate_factor(step, steps=4, warmup_steps=2), 2) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return half_cosine(step - warmup_steps, steps=max(1, steps - warmup_steps))


def warmed_half_cosine(step: int, *, steps: int, warmup_steps: int) -> float:
    """Half a cosine over all `steps`, times a linear warm-up.

    >>> [round(warmed_half_cosine(step, steps=100, warmup_steps=20), 3) for step in (0, 19, 50)]
    [0.05, 0.914, 0.5]
    """
    return min(1.0, (step + 1) / warmup_steps) * half_cosine(step, steps=steps)
