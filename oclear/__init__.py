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

# public name -> the module that defines it
_SOURCES = {
    "OclearConfig": "modeling_oclear",
    "OclearModel": "modeling_oclear",
    "OclearProcessor": "modeling_oclear",
    "OclearQueryModel": "modeling_oclear",
    "Policy": "data_governance.policy",
}

__all__ = ["OclearConfig", "OclearModel", "OclearProcessor", "OclearQueryModel", "Policy", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _SOURCES:
        raise AttributeError(f"module 'oclear' has no attribute {name!r}")
    return getattr(importlib.import_module(_SOURCES[name]), name)


def __dir__() -> list[str]:
    return __all__
