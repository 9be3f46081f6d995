"""Write and check a model folder that loads with `trust_remote_code=True`.

A folder holds weights, configs, processor and the code, flat, and the query model in the subfolder `query`.
`save_pretrained` alone writes the auto_map entry of one class and none of the code, so that the folder would load only
where this package is installed.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from .backbones_oclear import text_positions
from .code_files import code_modules
from .modeling_oclear import OclearModel, OclearQueryModel
from .processing_oclear import OclearProcessor, OclearQueryProcessor

CODE = "*_oclear.py"
EXPORTED = "onnx"  # the folder that `oclear export` writes
QUERY_FOLDER = "query"
IMAGE_PROCESSOR = {"AutoImageProcessor": "image_processing_oclear.OclearImageProcessor"}
MODEL_CLASSES = {
    "AutoConfig": "configuration_oclear.OclearConfig",
    "AutoModel": "modeling_oclear.OclearModel",
    "AutoModelForImageClassification": "classification_oclear.OclearForCategoryClassification",
}
# Read by sentence-transformers, and by `pipeline` of transformers.
MODULES = [{"idx": 0, "name": "0", "path": "", "type": "sentence_oclear.OclearSentenceModule"}]
SENTENCE_SETTINGS = {"model_type": "SentenceTransformer", "prompts": {}, "similarity_fn_name": "cosine"}
PIPELINES = {
    "image-feature-extraction": {"impl": "pipeline_oclear.OclearQueryPipeline", "pt": ["AutoModel"], "type": "image"}
}
QUERY_CLASSES = {
    "AutoConfig": "configuration_oclear.OclearQueryConfig",
    "AutoModel": "modeling_oclear.OclearQueryModel",
}


def publish(model: Any, processor: OclearProcessor | OclearQueryProcessor, folder: str | Path) -> Path:
    """Write a model folder; files of other names in the folder are kept, an export of the weights before is not.

    Args:
        model: an `OclearModel`, or an `OclearForCategoryClassification` to publish its prototypes too.
        processor: the processor it was trained with.
        folder: created if it does not exist.

    Returns:
        The folder.

    Raises:
        ValueError: when the model reads text and the processor has no tokenizer, or the folder is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; a model is published as a folder. Choose another name.")
    base: OclearModel = getattr(model, "oclear", model)
    if base.text_model is not None and not hasattr(processor, "tokenizer"):
        raise ValueError("this model reads text, but its processor has no tokenizer: pass an OclearProcessor.")
    if base.text_model is not None:
        _check_tokenizer(processor, base.text_model.config)
    for stale in [*folder.glob(CODE), *folder.glob("*.safetensors"), *folder.glob(f"{QUERY_FOLDER}/*.safetensors")]:
        if stale.suffix == ".py" or stale.name.startswith("model"):
            stale.unlink()
    shutil.rmtree(folder / EXPORTED, ignore_errors=True)  # of the weights that were here before
    _write(model, processor, folder, classes=MODEL_CLASSES)
    query_processor = OclearQueryProcessor(processor.image_processor)
    _write(OclearQueryModel.from_model(base), query_processor, folder / QUERY_FOLDER, classes=QUERY_CLASSES)
    _edit(folder / "config.json", {"custom_pipelines": PIPELINES})
    for name, content in (("modules.json", MODULES), ("config_sentence_transformers.json", SENTENCE_SETTINGS)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    for path in sorted(Path(__file__).parent.glob(CODE)):
        shutil.copyfile(path, folder / path.name)
    return folder


def _check_tokenizer(processor: Any, text_config: Any) -> None:
    """Check that the tokenizer fits the text encoder; otherwise the first rare word or long text would fail later."""
    if len(processor.tokenizer) > text_config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(processor.tokenizer)} tokens, the text encoder {text_config.vocab_size}: pass the "
            "tokenizer that belongs to the encoder."
        )
    if processor.max_length > text_positions(text_config):
        raise ValueError(
            f"max_length of the processor is {processor.max_length}, but the text encoder reads at most "
            f"{text_positions(text_config)} tokens: lower it."
        )


def _write(model: Any, processor: Any, folder: Path, *, classes: dict[str, str]) -> None:
    """Write model and processor into one folder, with the auto_map entries of their code."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    own = {"AutoProcessor": f"processing_oclear.{type(processor).__name__}"}
    _edit(folder / "config.json", {"auto_map": {**classes, **own, **IMAGE_PROCESSOR}})
    settings = json.loads((folder / "processor_config.json").read_text())
    image_settings = {**settings["image_processor"], "auto_map": IMAGE_PROCESSOR}
    _edit(folder / "processor_config.json", {"image_processor": image_settings, "auto_map": {**own, **IMAGE_PROCESSOR}})
    for path in folder.glob("*config.json"):
        _edit(path, {})


def _edit(path: Path, changes: dict[str, Any]) -> None:
    content = _without_source_paths({**json.loads(path.read_text()), **changes})
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _without_source_paths(content: Any) -> Any:
    """Remove the paths that the settings were loaded from: they name folders of the publisher's machine."""
    if isinstance(content, dict):
        kept = {name: value for name, value in content.items() if name not in ("_name_or_path", "name_or_path")}
        return {name: _without_source_paths(value) for name, value in kept.items()}
    return [_without_source_paths(value) for value in content] if isinstance(content, list) else content


def check_folder(folder: str | Path) -> Path:
    """Check that a local folder is a complete published model, for a clearer error than a library would give.

    Returns:
        The folder.

    Raises:
        ValueError: naming the missing or damaged file and the remedy.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: pass the folder of a published model, such as runs/x/hub.")
    config = _read_json(folder / "config.json")
    if str(config.get("model_type", "")) not in ("oclear", "oclear_query"):
        raise ValueError(
            f"{folder / 'config.json'} is of model_type {config.get('model_type')!r}, not an OCLEAR model."
        )
    if not list(folder.glob("model*.safetensors")):
        raise _missing(folder / "model.safetensors")
    # The code of the query model is in the folder above it.
    code = folder.parent if config["model_type"] == "oclear_query" and not list(folder.glob(CODE)) else folder
    entries = config.get("auto_map") or {}
    if "AutoModel" not in entries:
        raise ValueError(f"{folder / 'config.json'} has no auto_map: write the folder with modeling_oclear.publish.")
    _, missing = code_modules(code, {str(entry).split(".")[0] for entry in entries.values()})
    if missing:
        raise _missing(code / f"{missing[0]}.py")
    _read_json(folder / "processor_config.json")
    return folder


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise _missing(path)
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): write the folder again with publish.") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__}, not an object: write the folder again with publish."
        )
    return content


def _missing(path: Path) -> ValueError:
    return ValueError(
        f"{path} is missing: the folder is not a complete published model. Write it with modeling_oclear.publish, or "
        "copy or download all of its files."
    )
