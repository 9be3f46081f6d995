"""Public API of the OCLEAR models: configs, models, processors, loss, publishing.

Names are loaded at first use, which also registers the classes with the auto classes of transformers. Pretrained
weights that are distributed as Python packages: `modeling_oclear.packaged_weights`.
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

# Lazy: the model classes of transformers import whatever is installed (Accelerate alone takes two seconds), which a
# command that only prints its help should not pay for.
_MODULE_OF = {
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
__all__ = list(_MODULE_OF)  # noqa: PLE0605 - one list, not two to keep equal


def __getattr__(name: str) -> Any:
    """Import the module of a public name at its first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _register()
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])


def _register() -> None:
    """Register the classes with the auto classes of transformers; a second call changes nothing."""
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
