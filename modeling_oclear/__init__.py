"""OCLEAR models: image queries and image + text documents as unit vectors of one space.

What a user needs by name, loaded at first use: the model classes of transformers bring in whatever is installed beside
them (Accelerate alone takes two seconds), which a command that only prints its help should not pay for. The first use
also makes the classes known to the auto classes of transformers. The weights that come as Python packages are in
`modeling_oclear.packaged_weights`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .classification_oclear import OclearClassifierOutput as OclearClassifierOutput
    from .classification_oclear import OclearForCategoryClassification as OclearForCategoryClassification
    from .configuration_efficientnet_lite_oclear import EfficientNetLiteConfig as EfficientNetLiteConfig
    from .configuration_oclear import OclearConfig as OclearConfig
    from .configuration_oclear import OclearQueryConfig as OclearQueryConfig
    from .fusion_oclear import OclearDocumentOutput as OclearDocumentOutput
    from .image_processing_oclear import OclearImageProcessor as OclearImageProcessor
    from .modeling_efficientnet_lite_oclear import (
        EfficientNetLiteForImageClassification as EfficientNetLiteForImageClassification,
    )
    from .modeling_efficientnet_lite_oclear import EfficientNetLiteModel as EfficientNetLiteModel
    from .modeling_oclear import OclearModel as OclearModel
    from .modeling_oclear import OclearOutput as OclearOutput
    from .modeling_oclear import OclearQueryModel as OclearQueryModel
    from .partial_softmax_oclear import ArcFace as ArcFace
    from .partial_softmax_oclear import CombinedMargin as CombinedMargin
    from .partial_softmax_oclear import CosFace as CosFace
    from .partial_softmax_oclear import SoftmaxForm as SoftmaxForm
    from .partial_softmax_oclear import partial_softmax_loss as partial_softmax_loss
    from .partial_softmax_oclear import sample_classes as sample_classes
    from .processing_oclear import OclearProcessor as OclearProcessor
    from .processing_oclear import OclearQueryProcessor as OclearQueryProcessor
    from .publishing import check_folder as check_folder
    from .publishing import publish as publish

__version__ = "0.1.0"

_HOMES = {
    "ArcFace": "partial_softmax_oclear",
    "CombinedMargin": "partial_softmax_oclear",
    "CosFace": "partial_softmax_oclear",
    "EfficientNetLiteConfig": "configuration_efficientnet_lite_oclear",
    "EfficientNetLiteForImageClassification": "modeling_efficientnet_lite_oclear",
    "EfficientNetLiteModel": "modeling_efficientnet_lite_oclear",
    "OclearClassifierOutput": "classification_oclear",
    "OclearConfig": "configuration_oclear",
    "OclearDocumentOutput": "fusion_oclear",
    "OclearForCategoryClassification": "classification_oclear",
    "OclearImageProcessor": "image_processing_oclear",
    "OclearModel": "modeling_oclear",
    "OclearOutput": "modeling_oclear",
    "OclearProcessor": "processing_oclear",
    "OclearQueryConfig": "configuration_oclear",
    "OclearQueryModel": "modeling_oclear",
    "OclearQueryProcessor": "processing_oclear",
    "SoftmaxForm": "partial_softmax_oclear",
    "check_folder": "publishing",
    "partial_softmax_loss": "partial_softmax_oclear",
    "publish": "publishing",
    "sample_classes": "partial_softmax_oclear",
}
__all__ = list(_HOMES)  # noqa: PLE0605 - one list, not two to keep equal


def __getattr__(name: str) -> Any:
    """Load a public name at its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _register()
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


def _register() -> None:
    """Make the classes known to the auto classes of transformers; doing so again changes nothing."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoProcessor

    from .classification_oclear import OclearForCategoryClassification
    from .configuration_oclear import OclearConfig, OclearQueryConfig
    from .image_processing_oclear import OclearImageProcessor
    from .modeling_oclear import OclearModel, OclearQueryModel
    from .processing_oclear import OclearProcessor, OclearQueryProcessor

    for config, model, processor in (
        (OclearConfig, OclearModel, OclearProcessor),
        (OclearQueryConfig, OclearQueryModel, OclearQueryProcessor),
    ):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoImageProcessor.register(config, slow_image_processor_class=OclearImageProcessor, exist_ok=True)
        AutoProcessor.register(config, processor, exist_ok=True)
    AutoModelForImageClassification.register(OclearConfig, OclearForCategoryClassification, exist_ok=True)
