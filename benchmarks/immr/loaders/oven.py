"""OVEN and InfoSeek with the query text dropped: a photo asks for the Wikipedia entity it shows, with picture and text.

Files and fields (README of github.com/open-vision-language/oven; Hu et al., ICCV 2023): annotations as JSON lines with
data_id, image_id, question, entity_id (Wikidata), entity_text, data_split; knowledge base `Wiki6M_ver_1_0.jsonl` (or
.gz) with wikidata_id, wikipedia_title, wikipedia_summary, wikipedia_content, wikipedia_image_url. InfoSeek
(github.com/open-vision-language/infoseek; Chen et al., EMNLP 2023) keeps entity_id apart in a "withkb" file, joined by
data_id. Which file holds an image_id is the user's table, JSON lines with image_id and image_path, as the evaluation
code of both sets reads it (github.com/edchengg/oven_eval); pictures of entities are found the same way by wikidata_id.

Without its question a photo may ask for several entities (the car, its wheel): all entities that the part names for a
photo are right, and a photo is one query.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.immr.loaders.assembling import Document, Query, assembled, existing
from benchmarks.immr.protocol.task import Task


def load_oven(
    annotations: Path,
    knowledge: Path,
    images: Path,
    entity_images: Path | None = None,
    *,
    entities_of: Path | None = None,
    seen: Path | None = None,
    distractors: int | None = None,
) -> Task:
    """The task of one annotation file.

    Args:
        annotations: JSON lines of a part, for example oven_entity_val.jsonl or infoseek_val.jsonl.
        knowledge: JSON lines of the knowledge base.
        images: JSON lines with image_id and image_path; photos that it lacks are left out.
        entity_images: JSON lines with image_id (a wikidata_id) and image_path; entities that it lacks have no picture.
        entities_of: InfoSeek's withkb file (data_id, entity_id); OVEN's annotations hold the entity themselves.
        seen: annotations of training: entities that it names are seen, all others unseen.
        distractors: keep this many entities that no photo asks for (the first by id); None keeps all six million.

    Returns:
        A Task whose images are paths.

    Raises:
        ValueError: a missing file or field (named with its line), no query.
    """
    asked = _entities_of_photos(annotations, entities_of)
    path_of = {str(row["image_id"]): str(row["image_path"]) for row in _lines(images, ("image_id", "image_path"))}
    picture: dict[str, str] = {}
    if entity_images is not None:
        rows = _lines(entity_images, ("image_id", "image_path"))
        picture = {str(row["image_id"]): str(row["image_path"]) for row in rows}
    wanted = {entity for photo, found in asked.items() if photo in path_of for entity in found}
    documents = _documents(knowledge, picture, wanted=wanted, distractors=distractors)
    queries = [
        Query(photo, path_of[photo], frozenset(found), " ".join(sorted(found)))
        for photo, found in sorted(asked.items())
        if photo in path_of
    ]
    trained: set[str] = set()
    if seen is not None:
        trained = {str(row["entity_id"]) for row in _lines(seen, ("entity_id",))}
    unseen = [one.doc_id for one in documents if one.doc_id not in trained]
    return assembled(f"oven/{annotations.name.split('.')[0]}", documents, queries, unseen=unseen)


def _entities_of_photos(annotations: Path, entities_of: Path | None) -> dict[str, set[str]]:
    fields = ("data_id", "image_id") if entities_of is not None else ("data_id", "image_id", "entity_id")
    entity: dict[str, str] = {}
    if entities_of is not None:
        entity = {row["data_id"]: str(row["entity_id"]) for row in _lines(entities_of, ("data_id", "entity_id"))}
    found: dict[str, set[str]] = {}
    for row in _lines(annotations, fields):
        name = row.get("entity_id") if entities_of is None else entity.get(row["data_id"])
        if name is not None:
            found.setdefault(str(row["image_id"]), set()).add(str(name))
    return found


def _documents(
    knowledge: Path, picture: dict[str, str], *, wanted: set[str], distractors: int | None
) -> list[Document]:
    found: list[Document] = []
    spare: list[Document] = []
    for row in _lines(knowledge, ("wikidata_id", "wikipedia_title")):
        name = str(row["wikidata_id"])
        about = row.get("wikipedia_summary") or row.get("wikipedia_content") or ""
        text = f"{row['wikipedia_title']}. {about}".strip() if about else str(row["wikipedia_title"])
        one = Document(name, picture.get(name), text, "", name if name in wanted else None)
        (found if name in wanted else spare).append(one)
    spare.sort(key=lambda one: one.doc_id)
    return [*found, *(spare if distractors is None else spare[:distractors])]


def _lines(path: Path, fields: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Rows of a JSON lines file, plain or gzip.

    Raises:
        ValueError: the file is missing or a line lacks a field.
    """
    existing(path, what="download the annotations and the knowledge base of OVEN or InfoSeek")
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            row = json.loads(line)
            lacking = [name for name in fields if name not in row]
            if lacking:
                raise ValueError(f"{path.name}: line {number} lacks the fields {lacking}; it has {sorted(row)}")
            yield row
