"""The policy: every threshold of governance, with its unit and the reason for its default.

Why one frozen dataclass: a TOML file of its fields is the whole configuration, its digest decides whether a finished
stage may be reused, and the ledger carries it.
"""

import json
import math
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

# Bits of 64: see dedupe.hash_pairs.
MOST_RADIUS = 16


@dataclass(frozen=True)
class Policy:
    """Thresholds of all stages. Cosines are in the space that organise learns; shares and probabilities lie in 0..1.

    Attributes:
        seed: of every random draw (k-means starts, Leiden).
        memory_limit: DuckDB's limit, e.g. "2GB"; beyond it joins spill to disk.
        threads: of DuckDB, torch and FAISS; 0 takes OMP_NUM_THREADS, or the idle cores.

        max_image_pixels: width x height above which an image is refused from its header, before decoding (a
            50,000 x 50,000 PNG of one colour is small on disk and 7.5 GB in memory).
        max_image_bytes: size on disk above which an image is refused.
        max_text_characters: longer texts are quarantined: a product text of 100,000 characters is a page dump.
        image_size: side in pixels of the square that the encoder sees; 112 gave the best features per second.

        duplicate_radius: bits of 64 in which the hashes of two equal drawings may differ.
        duplicate_cosine: least cosine of their raw features; hashes alone join flags that differ in one star.
        duplicate_bucket: most rows sharing a 16-bit block that are compared; a larger bucket is reported, not compared.

        click_prior: pseudo-impressions added to every rate; a single lucky click must not look certain.
        position_power: chance that position p is seen is p ** -power; estimated from the log when negative.
        min_edge_share: an edge below this share of its query's strongest rate is dropped.
        max_documents_per_query: fan-out cap; the strongest edges stay.

        content_candidates: nearest documents by content that may win a query without a click.
        pool_neighbours, pool_cosine: queries that look this alike share their clicks (same drawing, other rendering).
        pool_temperature: how fast a neighbour's say falls with 1 - cosine.
        scatter_shrinkage: share of identity in the scatter learned from clicks; negative: chosen on hidden clicks.
        content_width: dimensions of the learned space.
        content_temperature: of the softmax that turns cosines into shares of a query.
        trained_share: of dividing the queries, where --encoder is a model of ours; the packaged network has the rest
            and pairs the documents, because the model has learned from the clicks that are to be judged.
        click_weight: log-odds that a click (pooled, 0..1) adds to content.
        min_source_share: share of held-out co-relevant pairs that must lie in two sources before sources are believed.
        same_source_weight: factor on the affinity of two documents of one source, once sources are believed.
        min_affinity: least affinity at which two groups of documents may join.
        min_query_margin: least lead of a query's best category over the next (shares); below it is set aside.
        rounds: of learning the space from the clicks that the previous round believed.

        clean_neighbours: queries asked for the second vote.
        min_separation: standard deviations between the margins of right and wrong rows; below it nothing is relabelled.
        max_dropped_share: no more than this share of queries is dropped by the margin, whatever the mixture says.

        wide_affinity: affinity above which further pairs of documents (also of one source) enter the graph.
        merge_cosine, merge_click_share: prototypes this close whose clicks cross at least so often become one category.
        split_gap: a category splits when two parts are this much closer inside than across (cosine).
        max_queries_per_category: cap per category; the most certain stay.
        repeat_power: weight of a query is (median size / size of its category) ** power, within `weight_limits`.
        weight_low, weight_high: limits of that weight.
        min_queries_head, min_queries_body: queries from which a category counts as head or body; below is tail.
        validation_share: of the categories with a query and two documents, held out whole for choosing settings.
    """

    seed: int = 0
    memory_limit: str = "2GB"
    threads: int = 0
    max_image_pixels: int = 40_000_000
    max_image_bytes: int = 30_000_000
    max_text_characters: int = 100_000
    image_size: int = 112
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
                raise ValueError(f"policy {field.name} = {value} is not a finite number: give one or leave it out.")
        for name in ("max_image_pixels", "max_image_bytes", "max_text_characters", "image_size", "content_width"):
            _at_least(self, name, 1)
        for name in ("content_candidates", "pool_neighbours", "rounds", "clean_neighbours", "max_documents_per_query"):
            _at_least(self, name, 1)
        for name in ("max_queries_per_category", "duplicate_bucket"):
            _at_least(self, name, 1)
        for name in ("pool_temperature", "content_temperature", "weight_low"):
            _at_least(self, name, 1e-6)
        for name in ("threads", "duplicate_radius", "click_prior", "min_affinity", "repeat_power", "seed"):
            _at_least(self, name, 0)
        for name in ("click_weight", "min_separation", "split_gap", "min_queries_head", "min_queries_body"):
            _at_least(self, name, 0)
        for name in ("duplicate_cosine", "min_edge_share", "same_source_weight", "pool_cosine"):
            _within_one(self, name)
        for name in ("min_query_margin", "max_dropped_share", "min_source_share", "validation_share"):
            _within_one(self, name)
        for name in ("wide_affinity", "merge_cosine", "merge_click_share", "trained_share"):
            _within_one(self, name)
        for low, high in (("weight_low", "weight_high"), ("min_queries_body", "min_queries_head")):
            if getattr(self, low) > getattr(self, high):
                both = f"{low} = {getattr(self, low)} is above {high} = {getattr(self, high)}"
                raise ValueError(f"policy {both}: exchange them or leave one out.")
        if self.duplicate_radius > MOST_RADIUS:
            raise ValueError(
                f"policy duplicate_radius = {self.duplicate_radius}: at most {MOST_RADIUS} of 64 bits; further apart, "
                "most pairs meet by chance."
            )

    def to_toml(self) -> str:
        """The policy as TOML: what `--policy` reads."""
        return "".join(f"{name} = {json.dumps(value)}\n" for name, value in asdict(self).items())


def _at_least(policy: Policy, name: str, low: float) -> None:
    if not getattr(policy, name) >= low:
        raise ValueError(f"policy {name} = {getattr(policy, name)} is below {low}: raise it or leave the line out.")


def _within_one(policy: Policy, name: str) -> None:
    if not 0 <= getattr(policy, name) <= 1:
        raise ValueError(f"policy {name} = {getattr(policy, name)} must lie between 0 and 1.")


def load_policy(path: Path | None) -> Policy:
    """Read a policy from TOML; what the file does not name keeps its default.

    Raises:
        ValueError: naming the unknown key, the wrong type or the impossible threshold.
    """
    if path is None:
        return Policy()
    try:
        given = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"policy {path}: cannot be read ({error.strerror}). Give an existing TOML file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"policy {path}: not valid TOML ({error}). --print-policy shows a valid one.") from error
    known = {field.name: type(field.default) for field in fields(Policy)}
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"policy {path}: unknown key {name!r}. --print-policy lists the known ones.")
        wanted = known[name]
        if isinstance(value, bool) or not isinstance(value, (int, float) if wanted is float else wanted):
            raise ValueError(f"policy {path}: {name} = {value!r} must be of type {wanted.__name__}.")
    fitting: dict[str, Any] = {name: float(v) if known[name] is float else v for name, v in given.items()}
    return Policy(**fitting)
