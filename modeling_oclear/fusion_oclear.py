"""Fusion of the image and the text of a document into one embedding.

    P          = Linear(tokens / |masked mean of tokens| - text_mean)
    concept_c  = sum_t softmax_t(concept_query_c . key(P_t)) P_t         the mean of P at initialisation
    evidence_c = attention(concept_c + concept_offset_c -> patches)      weights sum to 1 over the patches
    gate_c     = sigmoid(W [u; evidence_c; concept_c] + b + a <u, unit(W_c concept_c)>)         two values per concept
    shift      = text_strength * mean_c(gate_c0 W_e evidence_c + gate_c1 W_c concept_c)
    recall     = sum_k exp(sharpness (<t, memory_k> - 1)) value_k        t = unit masked mean of tokens
    z          = unit(u + shift);        without image: z = unit(mean_c W_c concept_c + recall)

u is the image embedding. Without text, or at text_strength 0, z = u bit for bit. The attention, the two gates and the
memory follow the idea of arXiv 2305.03972; the equations are ours. Our training (train/text_stage) fits `text_mean`,
`text_projection`, `concept_projection`, the memory, the attention weights and the gate of the concept (index 1). It
leaves `concept_query`, `concept_key`, `evidence_value`, `evidence_projection` and the gate of the evidence (index 0) at
their initial values: each concept is then the mean of the tokens, and the evidence adds next to nothing.

Letters: B batch, P image patches, T tokens, K memory slots, C concepts, D width, N heads, H encoder width, E width per
head.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedConfig
from transformers.utils.generic import ModelOutput


@dataclass
class OclearDocumentOutput(ModelOutput):
    """Embeddings of a batch of documents, with the intermediate values of the fusion.

    Attributes:
        embeds: (B, D) unit rows.
        gate: (B, C, 2) gates of evidence and concept, 0 to 1; 0 where image or text is missing.
        attention: (B, C, P) attention weights over patches; rows sum to 1, or are 0 where image or text is missing.
        grid: (rows, columns) of the P patches.
        image_embeds: (B, D) u, the embedding of the image alone; 0 where the image is missing.
        text_shift: (B, D) what text adds to u; the embedding itself for a document without image; 0 without text.
    """

    embeds: torch.Tensor | None = None
    gate: torch.Tensor | None = None
    attention: torch.Tensor | None = None
    grid: tuple[int, int] | None = None
    image_embeds: torch.Tensor | None = None
    text_shift: torch.Tensor | None = None


def unit_rows(rows_XD: torch.Tensor) -> torch.Tensor:
    """Normalise rows to length 1 in at least fp32; a row of zeros stays zero."""
    wide_XD = rows_XD if rows_XD.dtype == torch.float64 else rows_XD.float()
    return functional.normalize(wide_XD, dim=-1)


def _masked_mean(rows_BTH: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """(B, H) mean of the tokens; 0 for a row without tokens."""
    return (rows_BTH * mask_BT.unsqueeze(-1)).sum(dim=1) / mask_BT.sum(dim=1, keepdim=True).clamp(min=1)


def _scaled_tokens(tokens_BTH: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Tokens in at least fp32, divided by the length of their masked mean, which is then of length 1."""
    wide_BTH = tokens_BTH if tokens_BTH.dtype == torch.float64 else tokens_BTH.float()
    length_B1 = torch.linalg.vector_norm(_masked_mean(wide_BTH, mask_BT), dim=-1, keepdim=True)
    scale_B1 = torch.where(length_B1 > 0, 1 / length_B1.clamp(min=1e-12), 0.0)
    return wide_BTH * scale_B1.unsqueeze(1)


class OclearFusion(nn.Module):
    """Adds the text of a document to its image embedding; equations at the top of this file."""

    text_mean: torch.Tensor

    def __init__(self, config: PreTrainedConfig, *, patch_width: int, token_width: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.num_heads = config.num_attention_heads
        self.register_buffer("text_mean", torch.empty(token_width))
        self.text_projection = nn.Linear(token_width, width, bias=False)
        self.memory = nn.Parameter(torch.empty(config.num_memory_slots, token_width))
        self.memory_value = nn.Parameter(torch.empty(config.num_memory_slots, width))
        self.concept_query = nn.Parameter(torch.empty(config.num_concepts, width))
        self.concept_key = nn.Linear(width, width, bias=False)
        # All concepts start as the same mean of the text; different offsets give them different attention.
        self.concept_offset = nn.Parameter(torch.empty(config.num_concepts, width))
        # "cell" means patch: published weights have these names.
        self.cell_norm = nn.LayerNorm(patch_width)
        self.cell_projection = nn.Linear(patch_width, width)
        self.evidence_query = nn.Linear(width, width, bias=False)
        self.evidence_key = nn.Linear(width, width, bias=False)
        self.evidence_value = nn.Linear(width, width, bias=False)
        # Row 0 gates the evidence, row 1 the concept. The two are independent, not a convex combination.
        self.gate = nn.Linear(3 * width, 2)
        self.agreement = nn.Parameter(torch.empty(2))  # a in the equation of the gate
        self.evidence_projection = nn.Linear(width, width, bias=False)
        self.concept_projection = nn.Linear(width, width, bias=False)

    def project_tokens(self, tokens_BTH: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """P (B, T, D): scaled, centred, projected tokens.

        Their masked mean is the projection of the centred unit sentence vector.
        """
        return self._project(_scaled_tokens(tokens_BTH, mask_BT))

    def _project(self, scaled_BTH: torch.Tensor) -> torch.Tensor:
        return self.text_projection((scaled_BTH - self.text_mean).to(self.text_projection.weight.dtype))

    def recall(self, sentence_BH: torch.Tensor) -> torch.Tensor:
        """Read the memory with unit sentence vectors: (B, D); 0 while the memory is empty."""
        cos_BK = sentence_BH.to(self.memory.dtype) @ self.memory.T
        return torch.exp(self.config.memory_sharpness * (cos_BK - 1)) @ self.memory_value

    def _heads(self, rows_BXD: torch.Tensor) -> torch.Tensor:
        """(B, X, D) -> (B, N, X, E)."""
        return rows_BXD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def read_concepts(self, token_BTD: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Concepts (B, C, D): weighted means of the tokens; 0 for a row without tokens."""
        scale = 1 / math.sqrt(token_BTD.shape[-1])
        score_BCT = torch.einsum("cd,btd->bct", self.concept_query * scale, self.concept_key(token_BTD))
        # For a row without tokens a masked softmax would be nan: it is computed without mask and then set to 0.
        has_tokens_B11 = mask_BT.any(dim=1)[:, None, None]
        score_BCT = score_BCT.masked_fill(~mask_BT.unsqueeze(1) & has_tokens_B11, -math.inf)
        concept_BCD = torch.einsum("bct,btd->bcd", score_BCT.softmax(dim=-1), token_BTD)
        return torch.where(has_tokens_B11, concept_BCD, 0.0)

    def read_evidence(self, concept_BCD: torch.Tensor, patches_BPH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend from concepts to patches: evidence (B, C, D) and attention (B, C, P), averaged over heads."""
        patches_BPH = patches_BPH.to(self.cell_norm.weight.dtype)
        patches_BPD = functional.gelu(self.cell_projection(self.cell_norm(patches_BPH)))
        query_BNCE = self._heads(self.evidence_query(concept_BCD) + self.concept_offset)
        key_BNPE = self._heads(self.evidence_key(patches_BPD))
        value_BNPE = self._heads(self.evidence_value(patches_BPD))
        score_BNCP = torch.einsum("bnce,bnpe->bncp", query_BNCE, key_BNPE) / math.sqrt(query_BNCE.shape[-1])
        weight_BNCP = score_BNCP.softmax(dim=-1)
        evidence_BNCE = torch.einsum("bncp,bnpe->bnce", weight_BNCP, value_BNPE)
        return evidence_BNCE.transpose(1, 2).flatten(2), weight_BNCP.mean(dim=1)

    def forward(
        self,
        image_embeds_BD: torch.Tensor,
        patches_BPH: torch.Tensor,
        tokens_BTH: torch.Tensor,
        mask_BT: torch.Tensor,
        *,
        has_image_B: torch.Tensor,
        has_text_B: torch.Tensor,
    ) -> OclearDocumentOutput:
        """Fuse a batch in which any row may lack its image or its text.

        `image_embeds_BD` and `patches_BPH` are ignored in rows without image, `tokens_BTH` in rows without text. A row
        without both is returned as zeros.
        """
        mask_BT = mask_BT.bool() & has_text_B[:, None]
        has_text_B = has_text_B & mask_BT.any(dim=1)
        scaled_BTH = _scaled_tokens(tokens_BTH, mask_BT)
        concept_BCD = self.read_concepts(self._project(scaled_BTH), mask_BT)
        return self.fuse(
            image_embeds_BD,
            patches_BPH,
            concept_BCD,
            has_image_B=has_image_B,
            has_text_B=has_text_B,
            recall_BD=self.recall(_masked_mean(scaled_BTH, mask_BT)),
        )

    def fuse(
        self,
        image_embeds_BD: torch.Tensor,
        patches_BPH: torch.Tensor,
        concept_BCD: torch.Tensor,
        *,
        has_image_B: torch.Tensor,
        has_text_B: torch.Tensor,
        recall_BD: torch.Tensor | None = None,
    ) -> OclearDocumentOutput:
        """Fuse concepts that were computed elsewhere, for example out of fold; the second part of `forward`.

        `recall_BD` is the output of `recall`; None = 0.
        """
        both_B11 = (has_image_B & has_text_B)[:, None, None]
        image_embeds_BD = torch.where(has_image_B[:, None], image_embeds_BD, 0.0)
        evidence_BCD, attention_BCP = self.read_evidence(concept_BCD, patches_BPH)
        evidence_BCD = torch.where(both_B11, evidence_BCD, 0.0)
        image_BCD = image_embeds_BD[:, None].to(concept_BCD.dtype).expand_as(concept_BCD)
        text_BCD, visual_BCD = self.concept_projection(concept_BCD), self.evidence_projection(evidence_BCD)
        agree_BC1 = (image_BCD * functional.normalize(text_BCD, dim=-1)).sum(-1, keepdim=True)
        score_BC2 = self.gate(torch.cat([image_BCD, evidence_BCD, concept_BCD], dim=-1)) + self.agreement * agree_BC1
        gate_BC2 = torch.where(both_B11, torch.sigmoid(score_BC2), 0.0)
        shift_BD = (gate_BC2[..., :1] * visual_BCD + gate_BC2[..., 1:] * text_BCD).mean(dim=1)
        shift_BD = shift_BD.to(image_embeds_BD.dtype) * self.config.text_strength
        # The memory is used for documents without image only: with an image it repeats the training documents that it
        # was fitted to, which costs recall@1 (docs/log.md).
        text_BD = text_BCD.mean(dim=1) if recall_BD is None else text_BCD.mean(dim=1) + recall_BD
        embeds_BD, added_BD = self._combine(
            image_embeds_BD, shift_BD, text_BD, has_image_B[:, None], has_text_B[:, None]
        )
        return OclearDocumentOutput(
            embeds=embeds_BD,
            gate=gate_BC2,
            attention=torch.where(both_B11, attention_BCP, 0.0),
            image_embeds=image_embeds_BD,
            text_shift=added_BD,
        )

    def _combine(
        self,
        image_BD: torch.Tensor,
        shift_BD: torch.Tensor,
        text_BD: torch.Tensor,
        has_image_B1: torch.Tensor,
        has_text_B1: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(document embedding, what text added), selected per row so that the fallbacks are exact in a mixed batch."""
        text_only_BD = torch.where(has_text_B1 & ~has_image_B1, unit_rows(text_BD), 0.0).to(image_BD.dtype)
        if self.config.text_strength == 0:
            return torch.where(has_image_B1, image_BD, text_only_BD), text_only_BD
        both_B1 = has_image_B1 & has_text_B1
        fused_BD = torch.where(both_B1, unit_rows(image_BD + shift_BD).to(image_BD.dtype), text_only_BD)
        embeds_BD = torch.where(has_image_B1 & ~has_text_B1, image_BD, fused_BD)
        return embeds_BD, torch.where(both_B1, shift_BD, text_only_BD)
