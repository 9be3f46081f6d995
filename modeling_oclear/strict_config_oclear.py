"""Config validation: reject unknown arguments, report every error as ValueError.

transformers silently stores a misspelt keyword argument, and the strict dataclasses of huggingface_hub raise their own
error classes, which a caller who catches ValueError would miss.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

ConfigClass = TypeVar("ConfigClass", bound=type[PreTrainedConfig])

# Keys besides the fields that transformers itself passes to a config: when it loads a folder, builds a model, or trains
# one (Trainer sets use_cache on every config).
BOOKKEEPING_KEYS = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_commit_hash",
        "_name_or_path",
        "attn_implementation",
        "auto_map",
        "custom_pipelines",
        "experts_implementation",
        "model_type",
        "name_or_path",
        "output_attentions",
        "quantization_config",
        "torch_dtype",
        "use_cache",
    }
)


def reject_unknown_keys(config: PreTrainedConfig, given: dict[str, Any]) -> None:
    """Raise for keyword arguments that are not fields.

    Raises:
        ValueError: naming the unknown keys and the fields that exist.
    """
    unknown = sorted(set(given) - BOOKKEEPING_KEYS)
    if unknown:
        fields = set(type(config).__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__)
        raise ValueError(
            f"{type(config).__name__} has no field {', '.join(unknown)}; its own fields are "
            f"{', '.join(sorted(fields))}. Correct the name, or leave the argument out."
        )


def with_value_errors(config_class: ConfigClass) -> ConfigClass:
    """Class decorator: raise the validation errors of a strict dataclass as ValueError, with their reason."""
    checked_init: Callable[..., None] = config_class.__init__

    @functools.wraps(checked_init)
    def plain_init(self: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        try:
            checked_init(self, *args, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(f"{type(self).__name__}: {error.__cause__ or error}") from error

    setattr(config_class, "__init__", plain_init)  # noqa: B010 - mypy refuses to assign a method
    return config_class
