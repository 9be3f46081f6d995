"""The public names of OCLEAR in one place, loaded at first use, and the command `oclear`.

`import oclear` reads no other library, so the command line starts at once. The packages themselves stay importable
(`import retrieval`); this is the list of what a user of the results needs by name.
"""

import importlib
from typing import TYPE_CHECKING, Any

from modeling_oclear import __version__

if TYPE_CHECKING:
    from data_governance.policy import Policy as Policy
    from modeling_oclear import OclearConfig as OclearConfig
    from modeling_oclear import OclearModel as OclearModel
    from modeling_oclear import OclearProcessor as OclearProcessor
    from modeling_oclear import OclearQueryModel as OclearQueryModel
    from retrieval import build_index as build_index
    from retrieval import load_encoder as load_encoder
    from retrieval import load_index as load_index
    from retrieval import load_query_encoder as load_query_encoder
    from retrieval import read_table as read_table
    from retrieval import search as search
    from train.recipes.registry import recipe_by_name as recipe_by_name

# public name -> the module that defines it
_SOURCES = {
    "OclearConfig": "modeling_oclear",
    "OclearModel": "modeling_oclear",
    "OclearProcessor": "modeling_oclear",
    "OclearQueryModel": "modeling_oclear",
    "Policy": "data_governance.policy",
    "build_index": "retrieval",
    "load_encoder": "retrieval",
    "load_index": "retrieval",
    "load_query_encoder": "retrieval",
    "read_table": "retrieval",
    "recipe_by_name": "train.recipes.registry",
    "search": "retrieval",
}

__all__ = [
    "OclearConfig",
    "OclearModel",
    "OclearProcessor",
    "OclearQueryModel",
    "Policy",
    "__version__",
    "build_index",
    "load_encoder",
    "load_index",
    "load_query_encoder",
    "read_table",
    "recipe_by_name",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _SOURCES:
        raise AttributeError(f"module 'oclear' has no attribute {name!r}")
    return getattr(importlib.import_module(_SOURCES[name]), name)


def __dir__() -> list[str]:
    return __all__
