"""Dataclass fields that carry their limits beside their default.

A class of settings derives from `Settings`; every instance is checked when it is made.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar


def setting(
    default: Any,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[Any] | None = None,
) -> Any:
    """A field with its limits: least <= value <= most, above < value < below, or one of `choices`; None is exempt."""
    limits = {"least": least, "most": most, "above": above, "below": below, "choices": choices}
    return dataclasses.field(default=default, metadata={k: v for k, v in limits.items() if v is not None})


class Settings:
    """Base of the groups of a recipe.

    Attributes:
        place: where the group stands in a recipe, for messages.
    """

    place: ClassVar[str]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            _check_range(f"{self.place}.{field.name}", getattr(self, field.name), field)
        self.check()

    def check(self) -> None:
        """Settings of this group that contradict each other; ValueError with value and remedy."""


def _check_range(name: str, value: Any, field: "dataclasses.Field[Any]") -> None:
    limits = field.metadata
    if field.type is bool and not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; choose one of False, True")
    if "choices" in limits and value not in limits["choices"]:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(map(str, limits['choices']))}")
    if value is None or not limits or "choices" in limits:
        return
    kept = {
        "least": lambda bound: value >= bound,
        "above": lambda bound: value > bound,
        "most": lambda bound: value <= bound,
        "below": lambda bound: value < bound,
    }
    words = {"least": "at least", "above": "above", "most": "at most", "below": "below"}
    if not all(kept[limit](bound) for limit, bound in limits.items()):
        bounds = " and ".join(f"{words[limit]} {limits[limit]:g}" for limit in kept if limit in limits)
        null = ", or null" if "None" in str(field.type) else ""
        raise ValueError(f"{name} is {value}; it must be {bounds}{null}")
