"""The Python API of OCLEAR, loaded at first use, and the command `oclear`.

    governed = oclear.govern(behaviour=clicks, queries=queries, catalogue="catalogue.parquet")
    run = oclear.train(governed)
    model = run.load()  # or oclear.load("org/name")
    index = model.index("catalogue.parquet")
    answers = index.search("photo.jpg", k=10).to_pandas()

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
    from oclear.governed import Governed as Governed
    from oclear.governed import govern as govern
    from oclear.loading import load as load
    from oclear.model import Hits as Hits
    from oclear.model import Model as Model
    from oclear.model import SearchIndex as SearchIndex
    from oclear.onnx_model import OnnxModel as OnnxModel
    from oclear.trained import Run as Run
    from oclear.trained import train as train
    from retrieval import build_index as build_index
    from retrieval import load_encoder as load_encoder
    from retrieval import load_index as load_index
    from retrieval import load_query_encoder as load_query_encoder
    from retrieval import read_table as read_table
    from retrieval import search as search
    from train.recipes.registry import recipe_by_name as recipe_by_name

# public name -> the module that defines it
_SOURCES = {
    "Governed": "oclear.governed",
    "Hits": "oclear.model",
    "Model": "oclear.model",
    "OclearConfig": "modeling_oclear",
    "OclearModel": "modeling_oclear",
    "OclearProcessor": "modeling_oclear",
    "OclearQueryModel": "modeling_oclear",
    "OnnxModel": "oclear.onnx_model",
    "Policy": "data_governance.policy",
    "Run": "oclear.trained",
    "SearchIndex": "oclear.model",
    "build_index": "retrieval",
    "govern": "oclear.governed",
    "load": "oclear.loading",
    "load_encoder": "retrieval",
    "load_index": "retrieval",
    "load_query_encoder": "retrieval",
    "read_table": "retrieval",
    "recipe_by_name": "train.recipes.registry",
    "search": "retrieval",
    "train": "oclear.trained",
}

__all__ = [
    "Governed",
    "Hits",
    "Model",
    "OnnxModel",
    "OclearConfig",
    "OclearModel",
    "OclearProcessor",
    "OclearQueryModel",
    "Policy",
    "Run",
    "SearchIndex",
    "__version__",
    "build_index",
    "govern",
    "load",
    "load_encoder",
    "load_index",
    "load_query_encoder",
    "read_table",
    "recipe_by_name",
    "search",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _SOURCES:
        raise AttributeError(f"module 'oclear' has no attribute {name!r}")
    return getattr(importlib.import_module(_SOURCES[name]), name)


def __dir__() -> list[str]:
    return __all__
