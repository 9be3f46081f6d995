"""OVEN and InfoSeek without the question: a photo against Wikipedia entities.

Files and fields (README of github.com/open-vision-language/oven; Hu et al., ICCV 2023): annotations as JSON lines with
data_id, image_id, question, entity_id (Wikidata), entity_text, data_split; knowledge base `Wiki6M_ver_1_0.jsonl` (or
.gz) with wikidata_id, wikipedia_title, wikipedia_summary, wikipedia_content, wikipedia_image_url. InfoSeek
(github.com/open-vision-language/infoseek; Chen et al., EMNLP 2023) keeps entity_id apart in a "withkb" file, joined by
data_id. Which file holds an image_id is the user's table, JSON lines with image_id and image_path, as the evaluation
code of both sets reads it (github.com/edchengg/oven_eval); images of entities are found the same way by wikidata_id.

Without its question a photo may show several entities (a car, its wheel): all entities that the annotations name for a
photo are relevant, and a photo is one query.
"""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.immr.loaders.assembling import Document, Query, build_task, existing_path
from benchmarks.immr.protocol.task import Task


@dataclass(frozen=True)
class OvenFiles:
    """Files of one annotation set.

    Attributes:
        annotations: JSON lines of a subset, for example oven_entity_val.jsonl or infoseek_val.jsonl.
        knowledge: JSON lines of the knowledge base.
        images: JSON lines with image_id and image_path; photos without a row are left out.
        entity_images: JSON lines with image_id (a wikidata_id) and image_path; entities without a row have no image.
        entities: InfoSeek's withkb file (data_id, entity_id); the annotations of OVEN contain the entity themselves.
        seen: annotations of the training data: the entities in it are seen, all others unseen.
    """

    annotations: Path
    knowledge: Path
    images: Path
    entity_images: Path | None = None
    entities: Path | None = None
    seen: Path | None = None


def load_oven(files: OvenFiles, *, distractors: int | None = None) -> Task:
    """Task of one annotation file.

    Args:
        distractors: keep this many entities that no photo shows (the first by id); None keeps all six million.

    Returns:
        A Task with images as paths.

    Raises:
        ValueError: a missing file or field (named with its line), no query.
    """
    entities_of = _entities_of_photos(files.annotations, files.entities)
    path_of = _image_paths(files.images)
    entity_image = {} if files.entity_images is None else _image_paths(files.entity_images)
    relevant = {entity for photo, entities in entities_of.items() if photo in path_of for entity in entities}
    documents = _documents(files.knowledge, entity_image, relevant=relevant, distractors=distractors)
    queries = [
        Query(photo, path_of[photo], frozenset(entities), " ".join(sorted(entities)))
        for photo, entities in sorted(entities_of.items())
        if photo in path_of
    ]
    seen: set[str] = set()
    if files.seen is not None:
        seen = {str(row["entity_id"]) for row in _lines(files.seen, ("entity_id",))}
    unseen = [one.doc_id for one in documents if one.doc_id not in seen]
    return build_task(f"oven/{files.annotations.name.split('.')[0]}", documents, queries, unseen=unseen)


def _image_paths(table: Path) -> dict[str, str]:
    return {str(row["image_id"]): str(row["image_path"]) for row in _lines(table, ("image_id", "image_path"))}


def _entities_of_photos(annotations: Path, entities: Path | None) -> dict[str, set[str]]:
    fields = ("data_id", "image_id") if entities is not None else ("data_id", "image_id", "entity_id")
    entity: dict[str, str] = {}
    if entities is not None:
        entity = {row["data_id"]: str(row["entity_id"]) for row in _lines(entities, ("data_id", "entity_id"))}
    found: dict[str, set[str]] = {}
    for row in _lines(annotations, fields):
        name = row.get("entity_id") if entities is None else entity.get(row["data_id"])
        if name is not None:
            found.setdefault(str(row["image_id"]), set()).add(str(name))
    return found


def _documents(
    knowledge: Path, entity_image: dict[str, str], *, relevant: set[str], distractors: int | None
) -> list[Document]:
    found: list[Document] = []
    others: list[Document] = []
    for row in _lines(knowledge, ("wikidata_id", "wikipedia_title")):
        name = str(row["wikidata_id"])
        summary = row.get("wikipedia_summary") or row.get("wikipedia_content") or ""
        text = f"{row['wikipedia_title']}. {summary}".strip() if summary else str(row["wikipedia_title"])
        one = Document(name, entity_image.get(name), text, "", name if name in relevant else None)
        (found if name in relevant else others).append(one)
    others.sort(key=lambda one: one.doc_id)
    return [*found, *(others if distractors is None else others[:distractors])]


def _lines(path: Path, fields: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Rows of a JSON lines file, plain or gzip.

    Raises:
        ValueError: the file is missing or a line lacks a field.
    """
    existing_path(path, what="download the annotations and the knowledge base of OVEN or InfoSeek")
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            row = json.loads(line)
            lacking = [name for name in fields if name not in row]
            if lacking:
                raise ValueError(f"{path.name}: line {number} lacks the fields {lacking}; it has {sorted(row)}")
            yield row
