"""Text-to-image attention, trained to look at the part of a composite image that the text names.

Letters: N documents, G composite images, B batch, C concepts, D width, P patches.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from train.image_stage.schedule import half_cosine
from train.inputs.cache import FeatureCache
from train.inputs.composites import half_weight

USUAL_WIDTH = 256  # a step costs with the square of the width, so that wider models take fewer
COMPOSITES_PER_STEP = 128
ATTENTION_RATE = 5e-3
# Parameters of the fusion that this training changes; all others stay as they are.
TRAINED_PARTS = ("evidence_query", "evidence_key", "concept_offset", "cell_norm", "cell_projection")


def pointing_loss(attention_BCP: Tensor, half_BP: Tensor) -> Tensor:
    """-log of the attention mass inside the named half, averaged over composites and concepts (ours)."""
    inside_BC = torch.einsum("bcp,bp->bc", attention_BCP, half_BP)
    return -inside_BC.clamp(min=1e-6).log().mean()


def train_attention(
    fusion: Any, cache: FeatureCache, concepts_ND: Tensor, composite_rows: np.ndarray, *, steps: int, seed: int
) -> None:
    """Train the attention on composite images: the attention of a text should lie in the half that it names.

    Map, memory, concepts and gates stay: fitting gates and evidence by classification on top lost recall on held-out
    categories in every trial (docs/log.md); the text's gate is fitted in closed form (gate.py).

    Args:
        concepts_ND: (N, D) out-of-fold concept of each document.
        composite_rows: composites whose text belongs to a training category.
        steps: at width 256; a wider model takes fewer.
    """
    trained = [value for name, value in fusion.named_parameters() if name.split(".")[0] in TRAINED_PARTS]
    optimizer = torch.optim.AdamW(trained, lr=ATTENTION_RATE, weight_decay=0.01)
    generator = np.random.default_rng([seed, 13])
    half_GP = torch.from_numpy(half_weight(cache.composite_layouts.place, cache.grid)).float()
    steps = max(1, min(steps, steps * USUAL_WIDTH // concepts_ND.shape[1]))
    for step in tqdm(range(steps), desc="text-to-image attention", unit="step"):
        for group in optimizer.param_groups:
            group["lr"] = ATTENTION_RATE * half_cosine(step, steps=steps)
        composites = generator.choice(composite_rows, min(COMPOSITES_PER_STEP, len(composite_rows)), replace=False)
        concepts_BCD = concepts_ND[cache.composite_layouts.named[composites]][:, None].expand(
            -1, fusion.config.num_concepts, -1
        )
        _, attention_BCP = fusion.read_evidence(
            concepts_BCD, torch.from_numpy(np.array(cache.page_cells[composites])).float()
        )
        loss = pointing_loss(attention_BCP, half_GP[composites])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def mass_in_named_half(fusion: Any, cache: FeatureCache, composite_rows: np.ndarray) -> float:
    """Mean attention mass inside the named half of composites (chance .5), the text through the published map."""
    half_GP = torch.from_numpy(half_weight(cache.composite_layouts.place, cache.grid)).float()
    inside = []
    for start in range(0, len(composite_rows), 256):
        composites = composite_rows[start : start + 256]
        named = cache.composite_layouts.named[composites]
        mask = torch.from_numpy(np.array(cache.document_mask[named]))
        tokens = fusion.project_tokens(torch.from_numpy(np.array(cache.document_tokens[named])).float(), mask)
        cells = torch.from_numpy(np.array(cache.page_cells[composites])).float()
        _, attention_BCP = fusion.read_evidence(fusion.read_concepts(tokens, mask), cells)
        inside.append(torch.einsum("bcp,bp->b", attention_BCP, half_GP[composites]) / attention_BCP.shape[1])
    return round(float(torch.cat(inside).mean()), 4)
