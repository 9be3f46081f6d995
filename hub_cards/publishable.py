"""Checks of a folder before it is uploaded to the Hub.

Rejected are: pickled weights (they run code on the reader's machine), paths, addresses and host names of this machine,
folders without the code that their configs name, links, and files that do not belong to a model or a data set.
"""

import hashlib
import json
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, ModelCard
from safetensors import SafetensorError, safe_open

from modeling_oclear.code_files import code_modules

MODEL_SUFFIXES = {".safetensors", ".json", ".jsonl", ".py", ".md", ".txt", ".model", ".jinja"}
MODEL_NAMES = {"LICENSE", "NOTICE", ".gitattributes"}
EXPORTED = ("onnx/query.onnx", "onnx/document.onnx")
UNSAFE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npz", ".npy", ".h5", ".joblib", ".msgpack"}
DATASET_PATTERNS = ("samples/*.parquet", "categories.parquet", "category_map.parquet", "ledger.parquet", "ledger.json")
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DATASET_EXTRAS = ("policy.toml", "ATTRIBUTION.md")
VOCABULARIES = {"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt"}
TOP_FOLDERS = "home|root|work|mnt|tmp|var|Users|opt|data|srv|media|scratch|workspace|private|content|usr"
MACHINE_PATH = re.compile(
    rf"(?<![\w.:/$}}~-])(?:/(?:{TOP_FOLDERS})/[^\s\"'`)]+|[A-Za-z]:\\+\w[^\s\"'`)]*|~/[^\s\"'`)]+)"
)
PRIVATE_ADDRESS = re.compile(r"(?<![\d.])(?:10\.\d+|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d+\.\d+(?![\d.])")
NOT_A_HOST = {"localhost", "localhost.localdomain"}


@dataclass(frozen=True)
class PlannedFile:
    """One file of an upload: its path in the repository, and a file on disk or its bytes."""

    path_in_repo: str
    source: Path | bytes

    @property
    def size(self) -> int:
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    @property
    def sha256(self) -> str:
        if isinstance(self.source, bytes):
            return hashlib.sha256(self.source).hexdigest()
        with self.source.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def _relative_files(folder: Path) -> list[Path]:
    """Every file of the folder; raises ValueError for a link to a file or a folder."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder. Train first, or pass the folder that contains config.json.")
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"{path} is a link: only files inside the folder are published. Replace the link by a copy of the file."
            )
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}). Export the folder again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, not an object. Export the folder again.")
    return content


def machine_traces(text: str, host_names: Sequence[str]) -> Iterator[str]:
    """Find absolute paths, private IP addresses and host names in a text."""
    for pattern in (MACHINE_PATH, PRIVATE_ADDRESS):
        yield from (match.group(0) for match in pattern.finditer(text))
    for name in host_names:
        if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text):
            yield name


def this_host() -> list[str]:
    """Host names of this machine that must not be published.

    A name without digit, hyphen or dot ("demo", "ubuntu") is ignored: it is also an ordinary word in texts.
    """
    return [
        name for name in {platform.node()} if re.search(r"[\d.-]", name) and len(name) >= 4 and name not in NOT_A_HOST
    ]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}). Export the folder again.") from error


def _check_texts(files: list[Path], host_names: Sequence[str]) -> None:
    for path in files:
        if path.suffix not in (".json", ".jsonl", ".md", ".toml") or path.name in VOCABULARIES:
            continue
        for line_number, line in enumerate(_text(path).split("\n"), start=1):
            for trace in machine_traces(line, host_names):
                raise ValueError(
                    f"{path}, line {line_number}: '{trace}' names this machine. Use a relative path or remove it."
                )


def _check_weights(path: Path) -> None:
    try:
        with safe_open(path, framework="numpy") as weights:
            names = list(weights.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}). Export the folder again.") from error
    if not names:
        raise ValueError(f"{path} holds no tensor. Export the folder again.")


def _check_kind(folder: Path, path: Path) -> None:
    name = path.relative_to(folder).as_posix()
    if path.suffix in UNSAFE_SUFFIXES:
        raise ValueError(
            f"{folder}: '{name}' may contain pickled code; only safetensors weights are published. Remove it."
        )
    if path.suffix not in MODEL_SUFFIXES and path.name not in MODEL_NAMES and name not in EXPORTED:
        kinds = ", ".join(sorted(MODEL_SUFFIXES))
        raise ValueError(
            f"{folder}: '{name}' is not part of a model folder (allowed: {kinds}). Move it out of the folder."
        )
    if path.suffix == ".safetensors":
        _check_weights(path)


def _remote_modules(config: dict[str, Any], where: Path) -> set[str]:
    """Modules named by `auto_map`; `repo--module` is rejected, it would run the code of another repository."""
    modules = set()
    for inner in config.values():
        if isinstance(inner, dict):  # the config of a processor contains the configs of its parts
            modules |= _remote_modules(inner, where)
    for name, target in config.get("auto_map", {}).items():
        for one in target if isinstance(target, list) else [target]:
            if one is None:
                continue
            if "--" in one or "." not in one:
                raise ValueError(
                    f"{where}: auto_map {name} is '{one}': it must be 'module.Class' of this same folder. Export again."
                )
            modules.add(one.split(".")[0])
    return modules


def _check_remote_code(folder: Path, config_path: Path, required: set[str]) -> None:
    """Check that the code named by a config, and all files it imports, are at the ROOT of the repository.

    transformers looks for remote code at the root even if the config comes from a subfolder.
    """
    if not config_path.is_file():
        raise ValueError(f"{config_path} is missing: the folder could not be loaded. Publish it again from training.")
    config = _read_json(config_path)
    missing = required - set(config.get("auto_map", {}))
    if missing:
        raise ValueError(
            f"{config_path}: auto_map lacks {sorted(missing)}, so the Auto classes cannot find the code. Export again."
        )
    _, lost = code_modules(folder, _remote_modules(config, config_path))
    if lost:
        raise ValueError(
            f"{folder}: remote code '{lost[0]}.py' is missing, but {config_path.name} needs it. Export again."
        )


def _check_card(path: Path, card_class: type[ModelCard] | type[DatasetCard], remedy: str) -> None:
    if not path.is_file():
        raise ValueError(f"{path} is missing: a repository needs a card. {remedy}")
    text = _text(path)
    if not re.match(r"---\r?\n.+?\r?\n---\r?\n", text, re.S):
        raise ValueError(f"{path} has no metadata block. {remedy}")
    card_class(text)


def model_files(folder: Path, *, host_names: Sequence[str] | None = None, has_card: bool = True) -> list[PlannedFile]:
    """Check a published model folder and list its files.

    Args:
        folder: root of the future repository, with the query model in its subfolder `query`.
        host_names: names that must not occur in any text (default: those of this machine).
        has_card: whether the folder must contain a card; the card of an adapter's base model is written by `push`.

    Returns:
        Every file, sorted by path.

    Raises:
        ValueError: for the first file that must not or cannot be published, with reason and remedy.
    """
    files = _relative_files(folder)
    if has_card:
        _check_card(
            folder / "README.md",
            ModelCard,
            f"Run: python -m hub_cards render {folder.parent} (--without-evaluation where there are no judged queries)",
        )
    for path in files:
        _check_kind(folder, path)
    for side, required in ((folder, {"AutoConfig", "AutoModel"}), (folder / "query", {"AutoConfig", "AutoModel"})):
        _check_remote_code(folder, side / "config.json", required)
        if not any(
            path.parent == side and path.name.startswith("model") and path.suffix == ".safetensors" for path in files
        ):
            raise ValueError(
                f"{side} has no model*.safetensors: there are no weights to publish. Publish it again from training."
            )
    for path in files:
        if path.name in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
            _check_remote_code(folder, path, set())
    _check_texts(files, this_host() if host_names is None else host_names)
    return [PlannedFile(path.relative_to(folder).as_posix(), path) for path in files]


def adapter_files(folder: Path, *, host_names: Sequence[str] | None = None) -> list[PlannedFile]:
    """Check the folder of an adapter, as written by training, and list its files; `push` writes its card.

    Raises:
        ValueError: with file, reason and remedy.
    """
    files = _relative_files(folder)
    names = {path.relative_to(folder).as_posix() for path in files}
    for name in sorted({ADAPTER_CONFIG, ADAPTER_WEIGHTS} - names):
        raise ValueError(f"{folder} lacks {name}: it is not an adapter folder. Export it again from training.")
    for path in files:
        _check_kind(folder, path)
    _check_texts(files, this_host() if host_names is None else host_names)
    return [PlannedFile(path.relative_to(folder).as_posix(), path) for path in files]


def _check_image_paths(path: Path) -> None:
    """Check that the `path` of every image is a plain file name: an absolute path names the machine that wrote it."""
    import pyarrow.parquet as parquet  # lazy: a push without data set needs no pyarrow

    source = parquet.ParquetFile(path)
    if "image" not in source.schema_arrow.names:
        return
    for batch in source.iter_batches(columns=["image.path"]):
        for image in batch.column(0).to_pylist():
            name = (image or {}).get("path") or ""
            if name.startswith(("/", "~")) or ".." in name.split("/") or re.match(r"[A-Za-z]:\\", name):
                raise ValueError(
                    f"{path}: an image path is '{name}'. Use plain file names in the table and run governance again."
                )


def dataset_files(folder: Path, *, card: Path, host_names: Sequence[str] | None = None) -> list[PlannedFile]:
    """Check a governed folder and list the files to publish: samples, categories, ledger; not `dropped` or `stages`.

    Args:
        folder: the governed folder.
        card: the rendered README.md of the data set.
        host_names: names that must not occur in any text (default: those of this machine).

    Returns:
        The files, the card as README.md first.

    Raises:
        ValueError: with file, reason and remedy.
    """
    _relative_files(folder)
    _check_card(card, DatasetCard, "Run: python -m hub_cards render RUN")
    found = []
    for pattern in DATASET_PATTERNS:
        paths = sorted(folder.glob(pattern))
        if not paths:
            raise ValueError(
                f"{folder} lacks {pattern}: it is not a governed folder. Run: python -m data_governance run"
            )
        found += paths
    found += [folder / name for name in DATASET_EXTRAS if (folder / name).is_file()]
    for path in found:
        if path.parent.name == "samples":
            _check_image_paths(path)
    _check_texts([card, *found], this_host() if host_names is None else host_names)
    return [PlannedFile("README.md", card)] + [PlannedFile(path.relative_to(folder).as_posix(), path) for path in found]
