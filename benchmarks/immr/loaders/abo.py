"""Amazon Berkeley Objects: other views of a product against its listings.

Files and fields (the data set's README, https://amazon-berkeley-objects.s3.amazonaws.com/index.html, CC BY 4.0):
`listings/metadata/listings_<i>.json.gz`, one JSON object a line with item_id, domain_name (together unique), item_name
and other texts as lists of {language_tag, value}, main_image_id, other_image_id (list), product_type;
`images/metadata/images.csv.gz` with image_id, height, width, path (below images/small or images/original).

The data set has no retrieval split, so this one is ours: listings that share a product id or an image form a category,
and a hash assigns categories to subsets. An image in more than 20 listings (size charts, logos) shows no product and is
left out. A query is an image that is no listing's main image; relevant are all listings of the products that show it.
"""

import csv
import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.immr.loaders.assembling import (
    Document,
    Query,
    build_task,
    checked_subset,
    existing_path,
    subset_of,
)
from benchmarks.immr.protocol.task import Task
from retrieval.evaluation.judgements import connected

MAX_LISTINGS = 20  # of one image


@dataclass(frozen=True)
class Listing:
    """One listing: id, product id, images, name and product type."""

    doc_id: str
    item: str
    main: str
    others: tuple[str, ...]
    text: str
    leaf: str


def load_abo(root: Path, *, subset: str = "test", split: int = 0, language: str = "en", images: str = "small") -> Task:
    """Task of one subset.

    Args:
        root: folder that holds listings/ and images/.
        subset: "test" (the catalogue holds all listings), "validation" (no test listing) or "train" (training listings
            alone; its qrels may be trained on).
        split: 0, 1 or 2.
        language: prefix of the preferred language_tag; otherwise the first text is used.
        images: "small" (at most 256 px) or "original".

    Returns:
        A Task with images as paths; listings with the same main image are merged.

    Raises:
        ValueError: a missing file, an unknown subset or split, no query.
    """
    checked_subset(subset)
    paths = _image_paths(root, images)
    listings = [one for one in _listings(root, language) if one.main in paths]
    shown = _shown_in(listings)
    group = _groups(listings, shown)
    subset_of_listing = {one.doc_id: subset_of(group[one.doc_id], split=split) for one in listings}
    catalogue = {"train": {"train"}, "validation": {"train", "validation"}, "test": {"train", "validation", "test"}}
    own = {name for name, listing_subset in subset_of_listing.items() if listing_subset == subset}
    documents = [
        Document(one.doc_id, paths[one.main], one.text, one.leaf, group[one.doc_id])
        for one in listings
        if subset_of_listing[one.doc_id] in catalogue[subset]
    ]
    return build_task(
        f"abo/{split}/{subset}",
        documents,
        _queries(listings, shown, group, paths=paths, wanted=own),
        merged=_same_main(listings),
        unseen=() if subset == "train" else own,
    )


def _image_paths(root: Path, images: str) -> dict[str, str]:
    if images not in ("small", "original"):
        raise ValueError(f"images is {images!r}; it must be small or original")
    table = existing_path(root / "images/metadata/images.csv.gz", what="extract the images archive of ABO")
    with gzip.open(table, "rt", encoding="utf-8", newline="") as lines:
        return {row["image_id"]: str(root / "images" / images / row["path"]) for row in csv.DictReader(lines)}


def _listings(root: Path, language: str) -> Iterator[Listing]:
    folder = existing_path(root / "listings/metadata", what="extract the listings archive of ABO")
    for path in sorted(folder.glob("listings_*.json.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                if "main_image_id" in row:
                    others = tuple(one for one in row.get("other_image_id", ()) if one != row["main_image_id"])
                    text, leaf = _text(row.get("item_name"), language), _text(row.get("product_type"), "")
                    doc_id = f"{row['item_id']}@{row['domain_name']}"
                    yield Listing(doc_id, row["item_id"], row["main_image_id"], others, text, leaf)


def _text(value: Any, language: str) -> str:
    """Value of a string or of a list of {language_tag, value}: the first in the language, else the first."""
    if value is None or isinstance(value, str):
        return value or ""
    best = [one for one in value if one.get("language_tag", "").startswith(language)] or value
    return str(best[0]["value"]) if best else ""


def _shown_in(listings: list[Listing]) -> dict[str, list[Listing]]:
    """Listings of every image, without images in too many listings; main images are always kept."""
    shown: dict[str, list[Listing]] = {}
    for one in listings:
        for image in dict.fromkeys((one.main, *one.others)):
            shown.setdefault(image, []).append(one)
    mains = {one.main for one in listings}
    return {name: found for name, found in shown.items() if len(found) <= MAX_LISTINGS or name in mains}


def _groups(listings: list[Listing], shown: Mapping[str, list[Listing]]) -> dict[str, str]:
    pairs = [(one.doc_id, found[0].doc_id) for found in shown.values() for one in found]
    first: dict[str, str] = {}
    pairs += [(one.doc_id, first.setdefault(one.item, one.doc_id)) for one in listings]
    return connected(pairs)


def _same_main(listings: list[Listing]) -> list[tuple[str, str]]:
    first: dict[str, str] = {}
    pairs = [(one.doc_id, first.setdefault(one.main, one.doc_id)) for one in listings]
    return [pair for pair in pairs if pair[0] != pair[1]]


def _queries(
    listings: list[Listing],
    shown: Mapping[str, list[Listing]],
    group: Mapping[str, str],
    *,
    paths: Mapping[str, str],
    wanted: set[str],
) -> list[Query]:
    mains = {one.main for one in listings}
    of_item: dict[str, set[str]] = {}
    for one in listings:
        of_item.setdefault(one.item, set()).add(one.doc_id)
    found = []
    for image, showing in sorted(shown.items()):
        if image in mains or image not in paths or showing[0].doc_id not in wanted:
            continue
        right = frozenset(doc_id for one in showing for doc_id in of_item[one.item])
        found.append(Query(image, paths[image], right, group[showing[0].doc_id]))
    return found
