"""The linear map from sentence vectors to the space of prototypes, fitted out of fold over categories.

Inside the classification loss, text is a shortcut to the label that an image query cannot see: it lifts the categories
that were trained on and harms unseen ones. So a ridge map is fitted to finished prototypes, and whatever is learned on
top of it sees, for every training document, only the map of the folds without its category: its text is then as
informative as that of a new document.

Letters: N documents, R documents with text, T tokens, H token width, D width, C categories.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

RIDGE = 3.0  # ridge strength in units of the mean eigenvalue of the sentence vectors' covariance
LEAST_SPREAD = 1e-9  # mean square distance of unit sentence vectors from their mean, below which it is rounding


@dataclass(frozen=True)
class TextRows:
    """Training documents with text: `rows` (R,), sentence vectors (R, H), targets (R, D), `folds` (R,)."""

    rows: np.ndarray
    sentences: Tensor
    targets: Tensor
    folds: np.ndarray


def sentence_vectors(tokens_NTH: np.ndarray, mask_NT: np.ndarray) -> Tensor:
    """(N, H) unit masked means of the tokens; 0 for a row without tokens."""
    parts = []
    for start in range(0, len(tokens_NTH), 512):
        mask = torch.from_numpy(np.array(mask_NT[start : start + 512])).double()[..., None]
        tokens = torch.from_numpy(np.array(tokens_NTH[start : start + 512])).double()
        parts.append(functional.normalize((tokens * mask).sum(1), dim=1))
    return torch.cat(parts)


def ridge_map(sentences_RH: Tensor, targets_RD: Tensor, mean_H: Tensor, *, strength: float = RIDGE) -> Tensor:
    """B (H, D) that minimises |(t - mean) B - y|^2 / R + lambda |B|^2, lambda = strength * mean|t - mean|^2 / H.

    Equal texts carry no information: their map is 0 instead of amplified rounding.
    """
    centred_RH = sentences_RH - mean_H
    spread = float(centred_RH.square().sum(1).mean())
    if spread < LEAST_SPREAD:
        return torch.zeros(sentences_RH.shape[1], targets_RD.shape[1], dtype=sentences_RH.dtype)
    weight = strength * spread / sentences_RH.shape[1]
    gram_HH = centred_RH.T @ centred_RH / len(centred_RH)
    gram_HH.diagonal().add_(weight)
    return torch.linalg.solve(gram_HH, centred_RH.T @ targets_RD / len(centred_RH))


def folds_of(labels_R: np.ndarray, *, folds: int, seed: int) -> np.ndarray:
    """(R,) fold of every row; a category lies in one fold whole."""
    categories, inverse = np.unique(labels_R, return_inverse=True)
    order = np.random.default_rng([seed, 11]).permutation(len(categories))
    return (order % folds)[inverse]


def centred_targets(prototypes_CD: Tensor, labels_R: np.ndarray) -> Tensor:
    """(R, D) unit prototype of each row's category minus the mean prototype of the categories at hand."""
    own_RD, seen_CD = (
        functional.normalize(prototypes_CD[torch.from_numpy(rows)].double(), dim=1)
        for rows in (labels_R, np.unique(labels_R))
    )
    return own_RD - seen_CD.mean(0)


@dataclass(frozen=True)
class SentenceMap:
    """Text to the space of prototypes: `(t - mean_H) @ map_HD`, scaled to length 1 on average where it was fitted."""

    mean_H: Tensor
    map_HD: Tensor

    @classmethod
    def fitted(cls, sentences_RH: Tensor, targets_RD: Tensor) -> "SentenceMap":
        """Ridge map; the scale makes a concept as long as an image embedding."""
        mean_H = sentences_RH.mean(0)
        map_HD = ridge_map(sentences_RH, targets_RD, mean_H)
        length = ((sentences_RH - mean_H) @ map_HD).norm(dim=1).mean()
        return cls(mean_H, map_HD / length if length > 0 else map_HD)

    def concepts(self, sentences_RH: Tensor) -> Tensor:
        """(R, H) -> (R, D)."""
        return (sentences_RH - self.mean_H) @ self.map_HD


@torch.no_grad()
def install_map(fusion: Any, rows: TextRows) -> None:
    """Write the map of all rows into the fusion; at the gate's initial value the shift is the concept itself."""
    full = SentenceMap.fitted(rows.sentences, rows.targets)
    fusion.text_mean.copy_(full.mean_H)
    fusion.text_projection.weight.copy_(full.map_HD.T)
    opening = float(torch.sigmoid(fusion.gate.bias[1]))
    fusion.concept_projection.weight.copy_(torch.eye(full.map_HD.shape[1]) / opening)


def out_of_fold_concepts(rows: TextRows, *, total: int) -> Tensor:
    """(total, D): the text of every training row through the map of the folds without its category."""
    concepts_ND = torch.zeros(total, rows.targets.shape[1])
    for fold in np.unique(rows.folds):
        mine, seen = (torch.from_numpy(kept) for kept in (rows.folds == fold, rows.folds != fold))
        fold_map = SentenceMap.fitted(rows.sentences[seen], rows.targets[seen])
        concepts_ND[torch.from_numpy(rows.rows)[mine]] = fold_map.concepts(rows.sentences[mine]).float()
    return concepts_ND
