"""DeepFashion In-Shop: a photo of an item against its other photos and text.

Files and fields (described by MMFashion, docs/dataset/IN_SHOP_DATASET.md of github.com/open-mmlab/mmfashion; the set is
Liu et al., DeepFashion, CVPR 2016; non-commercial research): `Eval/list_eval_partition.txt`: number of images, names of
the entries, then rows of image name, item id, evaluation status (train, query, gallery; no item is in two of train and
test); `Anno/list_description_inshop.json`: rows of item id, colour, description (keys item, color, description; the
last is a list of lines); images below `Img/`.

The official partition is kept: query against gallery. Training items form further tasks (one in ten, by a hash, for
validation): an item's first photo by name is the document, the others are queries. A description belongs to the item;
its colour is used only if the item has a single one, since rows do not say which photo shows which colour.
"""

import json
from pathlib import Path

from benchmarks.immr.loaders.assembling import Document, Query, build_task, checked_subset, existing_path, subset_of
from benchmarks.immr.protocol.task import Task

STATUS = ("train", "query", "gallery")


def load_inshop(root: Path, *, subset: str = "test") -> Task:
    """Task of one subset.

    Args:
        root: folder that holds Eval/, Anno/ and Img/.
        subset: "test" (the official query and gallery sets), "train" or "validation".

    Returns:
        A Task with images as paths below Img/; every document is unseen in "test" and "validation".

    Raises:
        ValueError: a missing file, a malformed row (named by its line), an unknown subset.
    """
    checked_subset(subset)
    rows = _partition(existing_path(root / "Eval/list_eval_partition.txt", what="extract Eval of In-Shop"))
    texts = _descriptions(existing_path(root / "Anno/list_description_inshop.json", what="extract Anno of In-Shop"))
    if subset == "test":
        gallery = [(image, item) for image, item, status in rows if status == "gallery"]
        query_photos = [(image, item) for image, item, status in rows if status == "query"]
    else:
        trained = sorted((item, image) for image, item, status in rows if status == "train")
        chosen = [(image, item) for item, image in trained if _training_subset(item) == subset]
        first: dict[str, str] = {}
        for image, item in chosen:
            first.setdefault(item, image)
        gallery = [(image, item) for item, image in first.items()]
        query_photos = [(image, item) for image, item in chosen if first[item] != image]
    documents = [
        Document(image, str(root / "Img" / image), texts.get(item, ""), _leaf(image), item) for image, item in gallery
    ]
    of_item: dict[str, set[str]] = {}
    for image, item in gallery:
        of_item.setdefault(item, set()).add(image)
    queries = [
        Query(image, str(root / "Img" / image), frozenset(of_item.get(item, ())), item) for image, item in query_photos
    ]
    unseen = () if subset == "train" else [one.doc_id for one in documents]
    return build_task(f"deepfashion_inshop/{subset}", documents, queries, unseen=unseen)


def _training_subset(item: str) -> str:
    return "validation" if subset_of(item, split=0) == "validation" else "train"


def _partition(path: Path) -> list[tuple[str, str, str]]:
    """(image name, item id, status) of every row; the first two lines are a count and the names of the entries."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines[2:], start=3):
        words = line.split()
        if not words:
            continue
        if len(words) != 3 or words[2] not in STATUS:
            raise ValueError(
                f"{path.name}: line {number} is {line!r}; it must be image, item and one of {list(STATUS)}"
            )
        rows.append((words[0], words[1], words[2]))
    if not lines or not lines[0].strip().isdigit() or int(lines[0]) != len(rows):
        count = lines[0].strip() if lines else "nothing"
        raise ValueError(
            f"{path.name}: the first line says {count}, there are {len(rows)} rows; the file is incomplete"
        )
    return rows


def _descriptions(path: Path) -> dict[str, str]:
    colours: dict[str, set[str]] = {}
    lines: dict[str, dict[str, None]] = {}
    for row in json.loads(path.read_text(encoding="utf-8")):
        colours.setdefault(row["item"], set()).add(row.get("color", "").strip())
        found = row.get("description", [])
        for line in [found] if isinstance(found, str) else found:
            if line.strip():
                lines.setdefault(row["item"], {})[line.strip()] = None
    texts = {}
    for item, named in colours.items():
        one_colour = sorted(named - {""}) if len(named) == 1 else []
        texts[item] = " ".join([*(f"{colour}." for colour in one_colour), *lines.get(item, {})])
    return texts


def _leaf(image: str) -> str:
    """Department and type from img/WOMEN/Dresses/id_00000002/02_1_front.jpg: "WOMEN/Dresses"."""
    folders = image.split("/")[1:-2]
    return "/".join(folders)
