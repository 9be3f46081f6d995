"""Calibrated query and document embeddings of trained systems.

A baseline is embedded by its own modules, the product by the model in its published folder. Both get what retrieval
applies to an index: calibration against training queries, and for the product imputation of missing texts. Only the
frozen part of the encoders is read from a cache.

Legend: Q queries, N documents, S calibration queries, D embedding width.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.immr.baselines.labels import LabelledRows
from benchmarks.immr.baselines.training import TrainedBaseline
from retrieval.encoder import load_encoder
from retrieval.index.calibration import calibrated_documents, calibrated_queries, load_calibration
from retrieval.index.imputation import impute
from train.command import read_options
from train.encoders.backbones import build_model
from train.encoders.pair import EncoderPair, embed_rows
from train.inputs.cache import FeatureCache
from train.inputs.samples import GovernedSamples
from train.pipeline import Parts, train
from train.run import context_of
from train.text_stage.fit import embed_documents
from train.text_stage.sentence_map import sentence_vectors

MAX_CALIBRATION = 4096


@dataclass(frozen=True)
class System:
    """Embedding functions of a system, and its calibration queries.

    Attributes:
        queries: (Q, ...) inputs -> (Q, D) unit rows.
        documents: features of N documents -> (N, D) unit rows, NaN where a document cannot be indexed.
        calibration: (S, D) embeddings of training queries.
    """

    queries: Callable[[np.ndarray], Tensor]
    documents: Callable[[FeatureCache], Tensor]
    calibration: np.ndarray

    def query_vectors(self, inputs: np.ndarray) -> np.ndarray:
        """(Q, D + 1)."""
        embeds_QD = self.queries(inputs).numpy()
        return calibrated_queries(embeds_QD, index_width=embeds_QD.shape[1] + 1)

    def document_vectors(self, cache: FeatureCache) -> np.ndarray:
        """(N, D + 1), NaN where a document cannot be indexed."""
        embeds_ND = self.documents(cache).numpy()
        indexed = np.isfinite(embeds_ND).all(axis=1)
        found = np.full((len(embeds_ND), embeds_ND.shape[1] + 1), np.nan, dtype=np.float32)
        if indexed.any():
            has_image = np.asarray(cache.document_has_image)[indexed]
            found[indexed] = calibrated_documents(embeds_ND[indexed], self.calibration, has_image=has_image)[0]
        return found


def baseline_system(baseline: TrainedBaseline, rows: LabelledRows, query_inputs: np.ndarray) -> System:
    """A baseline, calibrated by training queries in the number and precision of the product."""
    count = min(len(rows.calibration), MAX_CALIBRATION)
    chosen = rows.calibration[np.arange(count) * len(rows.calibration) // max(count, 1)]
    sample = baseline.queries(query_inputs[chosen, 0]).to(torch.float16).float().numpy()

    def documents(cache: FeatureCache) -> Tensor:
        sentences = sentence_vectors(cache.document_tokens, cache.document_mask)
        has_text = _has_text(cache)
        return baseline.documents(cache.document_inputs, sentences, cache.document_has_image, has_text)

    return System(baseline.queries, documents, sample)


def published_system(
    hub: Path,
    *,
    frozen_stages: int | None,
    with_text: bool,
    edit: Callable[[Any], None] = lambda model: None,
    imputes: bool = True,
) -> System:
    """The model of a published folder as a system.

    Args:
        frozen_stages: stage at which its inputs are cached.
        with_text: False indexes documents by their image alone.
        edit: change to the loaded model, for ablations.
        imputes: whether missing texts are imputed.
    """
    encoder = load_encoder(str(hub))
    edit(encoder.model)
    encoders = EncoderPair(encoder.model, frozen_stages=frozen_stages)
    sample = load_calibration(hub, width=encoder.width)
    assert sample is not None, "train/ publishes calibration queries"

    def embedded(inputs: np.ndarray, side: str) -> Tensor:
        views = inputs[:, None]
        return torch.cat([rows for _, rows in embed_rows(encoders, views, np.arange(len(views)), side=side)])

    def documents(cache: FeatureCache) -> Tensor:
        images_ND = embedded(cache.document_inputs, "document")
        reads_text = with_text and encoder.reads_text
        found = _fused(encoder.model, cache, images_ND, imputes=imputes) if reads_text else images_ND.clone()
        readable = cache.document_has_image | (_has_text(cache) & reads_text)
        found[torch.from_numpy(~readable)] = torch.nan
        return found

    return System(lambda inputs: embedded(inputs, "query"), documents, sample)


def _has_text(cache: FeatureCache) -> np.ndarray:
    """(N,) bool."""
    return np.asarray(np.asarray(cache.document_mask).any(1), dtype=bool)


def _fused(model: Any, cache: FeatureCache, images_ND: Tensor, *, imputes: bool) -> Tensor:
    """(N, D) fused embeddings, with the imputation of `retrieval index` unless ablated."""
    embeds_ND, shifts_ND = embed_documents(model.fusion, cache, images_ND)
    if not (imputes and model.config.text_strength > 0):
        return embeds_ND
    has_text = _has_text(cache)
    found, _ = impute(
        embeds_ND.numpy(), images_ND.numpy(), shifts_ND.numpy(), has_image=cache.document_has_image, has_text=has_text
    )
    return torch.from_numpy(found)


def parts_of(cache: FeatureCache, *, build: Callable[..., tuple[Any, Any]] = build_model) -> Parts:
    """Parts of training that use cached features, and optionally another model builder."""

    def cached(model: Any, processor: Any, samples: GovernedSamples, **_: Any) -> FeatureCache:
        assert len(samples.labels.document) == len(cache.document_inputs), (
            "the features do not belong to the governed folder"
        )
        return cache

    return Parts(build_model=build, features_of=cached)


def train_product(folder: Path, *, governed: Path, recipe: str, seed: int, max_steps: int | None, parts: Parts) -> Path:
    """Train the product as `accelerate launch train/run.py` does.

    Features are those of seed 0 for every training seed, so that all cells of a dataset split share them.

    Args:
        recipe: a name, or a recipe.json. parts: cached features of the governed samples, and the model builder.

    Returns:
        The published folder; the record of the run is beside it, checkpoints are removed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    arguments = ["--data", str(governed), "--out", str(folder), "--recipe", recipe, "--seed", str(seed)]
    options = read_options(arguments + ([] if max_steps is None else ["--max-steps", str(max_steps)]))
    assert options is not None
    train(context_of(options), parts=parts)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return folder / "hub"
