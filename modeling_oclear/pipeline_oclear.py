"""`pipeline("image-feature-extraction")` of a published folder: pictures to query embeddings."""

from typing import Any

from transformers import ImageFeatureExtractionPipeline

from .modeling_oclear import OclearOutput


class OclearQueryPipeline(ImageFeatureExtractionPipeline):
    """Embeds pictures as queries.

    The usual pipeline calls the model itself, which embeds documents. With or without `pool` it gives one unit row of a
    picture, (1, D).
    """

    def _forward(self, model_inputs: Any) -> OclearOutput:  # type: ignore[override]
        model: Any = self.model
        embeds = model.get_query_embeds(**model_inputs)
        return OclearOutput(query_embeds=embeds, pooler_output=embeds)
