"""Policy: every threshold of governance, with unit and reason.

A TOML file with fields of `Policy` is the whole configuration. The digests of the stages cover it, and the ledger
contains it.
"""

import json
import math
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from modeling_oclear.image_decoding_oclear import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, MOST_IMAGE_PIXELS

# Largest side of the square that the image processor makes.
MOST_IMAGE_SIZE = 4096
# Bits of 64: see dedupe.hash_pairs.
MOST_RADIUS = 16


@dataclass(frozen=True)
class Policy:
    """Thresholds of all stages. Cosines are in the space that organise learns; shares lie in 0..1.

    Attributes:
        seed: of every random draw (k-means starts, Leiden).
        memory_limit: DuckDB's limit, e.g. "2GB"; larger joins spill to disk.
        threads: of DuckDB, torch and FAISS; 0 takes OMP_NUM_THREADS, or the idle cores.

        max_image_pixels: width x height above which an image is refused from its header, before decoding (a
            50,000 x 50,000 PNG of one colour is small on disk and 7.5 GB in memory). Training takes the limit from
            here, and index and search from the trained model.
        max_image_bytes: size on disk above which an image is refused.
        max_text_characters: longer texts are rejected: a product text of 100,000 characters is a page dump.
        image_size: side in pixels of the encoder's input; 112 gave the best features per second.

        kept_maps: pictures whose encoder maps are kept in `features/` of the output, about 17 kB each, so that training
            need not embed them again; 0 keeps none.

        duplicate_radius: bits of 64 in which the hashes of two equal drawings may differ.
        duplicate_cosine: least cosine of their raw features; by hash alone, flags that differ in one star are equal.
        duplicate_bucket: most rows of one 16-bit block that are compared; larger buckets are reported, not compared.

        click_prior: pseudo-impressions added to every rate, so that a single click is not certainty.
        position_power: position p is examined with probability p ** -power; negative: estimated from the log.
        min_edge_share: an edge below this share of its query's highest rate is dropped.
        max_documents_per_query: largest number of edges of a query; those with the highest rates are kept.

        content_candidates: nearest documents by content that a query may be assigned to without a click.
        pool_neighbours, pool_cosine: number of similar queries that share clicks (renderings of one drawing), and the
            least cosine.
        pool_temperature: a neighbour's weight is exp((cosine - 1) / temperature).
        scatter_shrinkage: share of identity in the within-pair scatter; negative: chosen on held-out clicks.
        content_width: dimensions of the learned space.
        content_temperature: of the softmax that turns cosines into soft assignments.
        trained_share: weight of an OCLEAR encoder in assigning queries; the packaged network has the rest and alone
            pairs documents, because the OCLEAR model was trained on the clicks that are judged here.
        click_weight: log-odds that a click (pooled, 0..1) adds to content.
        min_source_share: least share of held-out document pairs across the two sources for the sources to be used.
        same_source_weight: factor on the affinity of two documents of one source, once sources are used.
        min_affinity: least affinity at which two groups of documents may join.
        min_member_share: least evidence of a document in its category, as a share of that of the strongest one there; a
            document below it is parted from the category.
        min_query_margin: least difference between the assignment shares of a query's best and second category; a
            query below it is rejected.
        rounds: of learning the space; from the second on, clicks outside their query's group count less.

        clean_neighbours: nearest queries that vote on a low margin.
        min_separation: distance between the mean margins of right and wrong rows, in standard deviations, from which
            rows are relabelled.
        max_dropped_share: largest share of queries that cleaning may drop.

        wide_affinity: least affinity of further pairs of documents (also of one source) in the graph.
        merge_cosine, merge_click_share: categories with prototypes this close whose clicks cross at least this often
            are merged.
        split_gap: least difference of mean cosine inside and across two parts for a category to be split.
        max_queries_per_category: cap per category; the queries with the largest lead are kept.
        repeat_power: weight of a query is (median size / size of its category) ** power, within `weight_limits`.
        weight_low, weight_high: limits of that weight.
        min_queries_head, min_queries_body: least queries of a head or body category; the others are tail.
        validation_share: share held out for validation, of the categories with a query and a document; small data hold
            out more (output/export.py), 0 holds out none.
    """

    seed: int = 0
    memory_limit: str = "2GB"
    threads: int = 0
    max_image_pixels: int = MAX_IMAGE_PIXELS
    max_image_bytes: int = MAX_IMAGE_BYTES
    max_text_characters: int = 100_000
    image_size: int = 112
    kept_maps: int = 100_000
    duplicate_radius: int = 3
    duplicate_cosine: float = 0.998
    duplicate_bucket: int = 2_000
    click_prior: float = 1.0
    position_power: float = -1.0
    min_edge_share: float = 0.05
    max_documents_per_query: int = 50
    content_candidates: int = 48
    pool_neighbours: int = 24
    pool_cosine: float = 0.5
    pool_temperature: float = 0.05
    scatter_shrinkage: float = -1.0
    content_width: int = 256
    content_temperature: float = 0.08
    trained_share: float = 0.5
    click_weight: float = 2.0
    min_source_share: float = 0.6
    same_source_weight: float = 0.1
    min_affinity: float = 0.02
    min_member_share: float = 0.05
    min_query_margin: float = 0.2
    rounds: int = 2
    clean_neighbours: int = 10
    min_separation: float = 1.0
    max_dropped_share: float = 0.1
    wide_affinity: float = 0.6
    merge_cosine: float = 0.8
    merge_click_share: float = 0.25
    split_gap: float = 0.5
    max_queries_per_category: int = 5_000
    repeat_power: float = 0.0
    weight_low: float = 0.2
    weight_high: float = 5.0
    min_queries_head: int = 50
    min_queries_body: int = 8
    validation_share: float = 0.08

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"policy {field.name} = {value} is not a finite number: give one or omit it.")
        for name in ("max_image_pixels", "max_image_bytes", "max_text_characters", "image_size", "content_width"):
            _at_least(self, name, 1)
        for name in ("content_candidates", "pool_neighbours", "rounds", "clean_neighbours", "max_documents_per_query"):
            _at_least(self, name, 1)
        for name in ("max_queries_per_category", "duplicate_bucket"):
            _at_least(self, name, 1)
        for name in ("pool_temperature", "content_temperature", "weight_low"):
            _at_least(self, name, 1e-6)
        for name in ("threads", "kept_maps", "duplicate_radius", "click_prior", "min_affinity", "repeat_power", "seed"):
            _at_least(self, name, 0)
        for name in ("click_weight", "min_separation", "split_gap", "min_queries_head", "min_queries_body"):
            _at_least(self, name, 0)
        for name in ("duplicate_cosine", "min_edge_share", "same_source_weight", "pool_cosine"):
            _within_one(self, name)
        for name in (
            "min_member_share",
            "min_query_margin",
            "max_dropped_share",
            "min_source_share",
            "validation_share",
        ):
            _within_one(self, name)
        for name in ("wide_affinity", "merge_cosine", "merge_click_share", "trained_share"):
            _within_one(self, name)
        for low, high in (("weight_low", "weight_high"), ("min_queries_body", "min_queries_head")):
            if getattr(self, low) > getattr(self, high):
                both = f"{low} = {getattr(self, low)} is above {high} = {getattr(self, high)}"
                raise ValueError(f"policy {both}: exchange them or omit one.")
        for name, most in (("max_image_pixels", MOST_IMAGE_PIXELS), ("image_size", MOST_IMAGE_SIZE)):
            if getattr(self, name) > most:
                raise ValueError(f"policy {name} = {getattr(self, name)}: at most {most}; lower it or omit the line.")
        if self.duplicate_radius > MOST_RADIUS:
            raise ValueError(
                f"policy duplicate_radius = {self.duplicate_radius}: at most {MOST_RADIUS} of 64 bits; beyond, "
                "most pairs are chance."
            )

    def to_toml(self) -> str:
        """The policy as TOML, in the form that `--policy` reads."""
        return "".join(f"{name} = {json.dumps(value)}\n" for name, value in asdict(self).items())


def _at_least(policy: Policy, name: str, low: float) -> None:
    if not getattr(policy, name) >= low:
        raise ValueError(f"policy {name} = {getattr(policy, name)} is below {low}: raise it or omit the line.")


def _within_one(policy: Policy, name: str) -> None:
    if not 0 <= getattr(policy, name) <= 1:
        raise ValueError(f"policy {name} = {getattr(policy, name)} must lie between 0 and 1.")


def load_policy(path: Path | None) -> Policy:
    """Read a policy from TOML; missing fields keep their defaults.

    Raises:
        ValueError: naming the unknown key, the wrong type or the invalid value.
    """
    if path is None:
        return Policy()
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"policy {path}: cannot be read ({error.strerror}). Give an existing TOML file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"policy {path}: not valid TOML ({error}). --print-policy shows a valid one.") from error
    types = {field.name: type(field.default) for field in fields(Policy)}
    for name, value in values.items():
        if name not in types:
            raise ValueError(f"policy {path}: unknown key {name!r}. --print-policy lists the known ones.")
        wanted = types[name]
        if isinstance(value, bool) or not isinstance(value, (int, float) if wanted is float else wanted):
            raise ValueError(f"policy {path}: {name} = {value!r} must be of type {wanted.__name__}.")
    arguments: dict[str, Any] = {name: float(v) if types[name] is float else v for name, v in values.items()}
    return Policy(**arguments)
