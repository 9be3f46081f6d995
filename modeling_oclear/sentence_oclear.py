"""A published folder as a module of sentence-transformers: `SentenceTransformer(folder, trust_remote_code=True)`.

`modules.json` of the folder names this module. `encode_query` takes pictures; `encode_document` takes pictures, texts
and {"image": ..., "text": ...}, in any mixture. The numbers are those of the model itself.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from sentence_transformers.base.modules import InputModule
from transformers import AutoModel, AutoProcessor

from .image_decoding_oclear import check_file_size

Item = tuple[Image.Image | None, str | None]


class OclearSentenceModule(InputModule):
    """Model and processor of a published folder.

    Args:
        model: an `OclearModel`. processor: the one of the same folder.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.model, self.processor = model, processor

    @property
    def modalities(self) -> list[Any]:
        """What a document may be: a picture, a text, or both.

        "message" is the library's name for a batch that mixes them. Chat messages are refused by `preprocess`.
        """
        return ["image", "text", ("image", "text"), "message"] if self.reads_text else ["image", "message"]

    @property
    def reads_text(self) -> bool:
        """Whether the model has a text encoder."""
        return self.model.config.text_config is not None

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, task: str | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Inputs of the model for a batch.

        Args:
            task: "query" takes pictures alone; "document" and None take any mixture.

        Raises:
            ValueError: a prompt, a query with text, or an item that is neither picture nor text; names its row.
        """
        if prompt:
            raise ValueError(f"prompt is {prompt!r}; this model was trained without prompts: leave it out.")
        items = [self._item(value, row, is_query=task == "query") for row, value in enumerate(inputs)]
        pictures, texts = [image for image, _ in items], [text for _, text in items]
        words = {"text": texts} if self.reads_text and any(texts) else {}
        return {**self.processor(images=pictures, **words), "is_query": task == "query"}

    def _item(self, value: Any, row: int, *, is_query: bool) -> Item:
        kind = "query" if is_query else "document"
        if isinstance(value, Mapping):
            if unknown := sorted(set(value) - {"image", "text"}):
                raise ValueError(f"{kind} {row} has the field {unknown[0]!r}; it may have image and text.")
            image, text = value.get("image"), value.get("text")
        else:
            image, text = (None, value) if isinstance(value, str) and not is_query else (value, None)
        if isinstance(image, str | Path):
            image = self._opened(image, f"{kind} {row}")
        if image is not None and not isinstance(image, Image.Image):
            raise ValueError(f"{kind} {row} is a {type(image).__name__}; give a PIL image or the path of a picture.")
        if is_query and (image is None or text is not None):
            raise ValueError(f"query {row} is no picture alone: this model has no text queries.")
        if image is None and not (text and self.reads_text):
            raise ValueError(f"document {row} has neither a picture nor a text that this model reads.")
        return image, text

    def _opened(self, path: str | Path, place: str) -> Image.Image:
        if not Path(path).is_file():
            raise ValueError(f"{place} is {str(path)!r}, which is no file here; nothing is downloaded.")
        processor = self.processor.image_processor
        try:
            check_file_size(Path(path).stat().st_size, processor.max_image_bytes)
            picture: Image.Image = processor.decode(Path(path).read_bytes())
        except ValueError as error:  # the processor may be of another copy of this code, with its own error class
            raise ValueError(f"{place}: {error}") from error
        return picture

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add `sentence_embedding` (B, D), unit rows."""
        inputs = {name: value for name, value in features.items() if name != "is_query"}
        if features.get("is_query"):
            embeds = self.model.get_query_embeds(**inputs)
        else:
            embeds = self.model.get_document_embeds(**inputs).embeds
        return {**features, "sentence_embedding": embeds}

    def get_embedding_dimension(self) -> int:
        """Width D."""
        return int(self.model.config.hidden_size)

    get_sentence_embedding_dimension = get_embedding_dimension

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write weights, processor and the code of this folder."""
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)
        for path in Path(__file__).parent.glob("*_oclear.py"):
            shutil.copyfile(path, Path(output_path) / path.name)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        trust_remote_code: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> "OclearSentenceModule":
        """Load a published folder or Hub repository; the arguments are those of sentence-transformers."""
        where: dict[str, Any] = {
            "token": token,
            "cache_dir": cache_folder,
            "revision": revision,
            "local_files_only": local_files_only,
            "trust_remote_code": trust_remote_code,
        }
        model = AutoModel.from_pretrained(model_name_or_path, **where, **(model_kwargs or {}))
        processor = AutoProcessor.from_pretrained(model_name_or_path, **where, **(processor_kwargs or {}))
        return cls(model.eval(), processor)
