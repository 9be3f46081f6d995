"""Baseline losses: InfoNCE, SupCon, SigLIP, triplet, ProxyAnchor, CosFace.

Each follows its paper, with the same learned parameters (temperature, bias, proxies). Proxies and class weights start
from the mean of their documents, as the product's prototypes do.

    infonce     -log softmax of the paired document over the batch, both directions, temperature learned;
                CLIP (Radford et al., 2021), Figure 3. Other positives of a query are masked in its denominator.
    supcon      the same with the mean over all positives; Khosla et al., 2020, equation 2 (L_out), across sides
    siglip      log-sigmoid over all pairs, temperature and bias learned; Zhai et al., 2023, Algorithm 1
    triplet     max(0, d(q, d+) - d(q, d-) + m) on mined triplets; pytorch-metric-learning
    proxyanchor Kim et al., 2020; pytorch-metric-learning, over the rows of both sides
    cosface     full softmax with a margin, -log softmax(s (cos - m [right class])); Wang et al., 2018

Legend: B rows of a side, D embedding width, N classes.
"""

import math
from dataclasses import dataclass

import torch
from pytorch_metric_learning.losses import ProxyAnchorLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner, TripletMarginMiner
from torch import Tensor, nn
from torch.nn import functional

PAIRED = ("infonce", "supcon", "siglip", "triplet")  # need a relevant document of every query in the batch
CLASSIFYING = ("proxyanchor", "cosface")  # learn one weight row per class
LOSSES = (*PAIRED, *CLASSIFYING)
MAX_LOGIT_SCALE = math.log(100.0)  # the limit of CLIP


@dataclass(frozen=True)
class BatchLabels:
    """Class index of the queries (Bq,) and documents (Bd,) of a batch, and its positive pairs (Bq, Bd) bool.

    For the losses in `PAIRED`, the document drawn for query i is in row i, so the diagonal of `positive_BB` is True.
    """

    query_labels_B: Tensor
    document_labels_B: Tensor
    positive_BB: Tensor


def infonce(logit_BB: Tensor, positive_BB: Tensor) -> Tensor:
    """Mean over rows of -log(exp l_ii / (exp l_ii + sum of exp l_ij over j that are no positives of i))."""
    paired_BB = torch.eye(len(logit_BB), dtype=torch.bool, device=logit_BB.device)
    kept_BB = logit_BB.masked_fill(positive_BB & ~paired_BB, -math.inf)
    return functional.cross_entropy(kept_BB, torch.arange(len(logit_BB), device=logit_BB.device))


def supcon(logit_BB: Tensor, positive_BB: Tensor) -> Tensor:
    """Mean over rows of -(1 / |P_i|) sum over p in P_i of log softmax_j(l_ij)[p]; every row has a positive."""
    log_BB = logit_BB.log_softmax(dim=1)
    per_row_B = torch.where(positive_BB, log_BB, 0.0).sum(1) / positive_BB.sum(1)
    return -per_row_B.mean()


def siglip(logit_BB: Tensor, positive_BB: Tensor) -> Tensor:
    """-(1 / B) sum over all pairs of log sigmoid(y l), y = 1 for positives, else -1; l includes the bias."""
    sign_BB = torch.where(positive_BB, 1.0, -1.0).to(logit_BB.dtype)
    return -functional.logsigmoid(sign_BB * logit_BB).sum() / len(logit_BB)


def cosface(cos_BN: Tensor, labels_B: Tensor, *, margin: float, scale: float) -> Tensor:
    """Mean over rows of -log softmax_j(s (cos_j - m [j = y]))[y], over all classes."""
    moved_BN = cos_BN - margin * functional.one_hot(labels_B, cos_BN.shape[1]).to(cos_BN.dtype)
    return functional.cross_entropy(scale * moved_BN, labels_B)


class Contrastive(nn.Module):
    """infonce, supcon or siglip with a learned temperature (and, for siglip, bias).

    Args:
        kind: one of the three.
        temperature: initial value; inner products are multiplied by 1 / temperature.
    """

    def __init__(self, kind: str, *, temperature: float) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"the temperature is {temperature}; it must be above 0, such as 0.07")
        self.kind = kind
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.bias = nn.Parameter(torch.tensor(-10.0)) if kind == "siglip" else None

    def forward(self, query_BD: Tensor, document_BD: Tensor, batch: BatchLabels) -> Tensor:
        """Unit rows of both sides -> scalar."""
        logit_BB = self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp() * (query_BD @ document_BD.T)
        if self.bias is not None:
            return siglip(logit_BB + self.bias, batch.positive_BB)
        form = infonce if self.kind == "infonce" else supcon
        return 0.5 * (form(logit_BB, batch.positive_BB) + form(logit_BB.T, batch.positive_BB.T))


class Triplet(nn.Module):
    """Euclidean triplet margin loss, with queries and then documents as anchors.

    Args:
        mining: "semihard" (negatives farther than the positive by less than the margin) or "hard" (hardest positive and
            negative of every anchor; Hermans et al., 2017).
    """

    def __init__(self, *, margin: float, mining: str) -> None:
        super().__init__()
        if mining not in ("semihard", "hard"):
            raise ValueError(f"mining is {mining!r}; choose semihard or hard")
        self.loss = TripletMarginLoss(margin=margin)
        self.miner = (
            BatchHardMiner() if mining == "hard" else TripletMarginMiner(margin=margin, type_of_triplets="semihard")
        )

    def forward(self, query_BD: Tensor, document_BD: Tensor, batch: BatchLabels) -> Tensor:
        """Unit rows of both sides -> scalar; 0 (with zero gradient) when no triplet is mined."""
        sides = ((query_BD, batch.query_labels_B), (document_BD, batch.document_labels_B))
        total = query_BD.sum() * 0.0
        for (rows_BD, labels_B), (other_BD, other_labels_B) in (sides, sides[::-1]):
            # A copy: given the same label object twice, the library assumes one set of rows and drops the diagonal.
            other = {"ref_emb": other_BD, "ref_labels": other_labels_B.clone()}
            total = total + 0.5 * self.loss(rows_BD, labels_B, self.miner(rows_BD, labels_B, **other), **other)
        return total


class Classifying(nn.Module):
    """cosface or proxyanchor over the rows of both sides.

    Args:
        start_ND: (N, D) initial class weights or proxies.
        margin, scale: m and s of CosFace; m and alpha of ProxyAnchor.
    """

    def __init__(self, kind: str, start_ND: Tensor, *, margin: float, scale: float = 32.0) -> None:
        super().__init__()
        self.kind, self.margin, self.scale = kind, margin, scale
        self.proxy: ProxyAnchorLoss | None = None
        if kind == "proxyanchor":
            self.proxy = ProxyAnchorLoss(*start_ND.shape, margin=margin, alpha=scale)
            with torch.no_grad():
                self.proxy.proxies.copy_(start_ND)
        else:
            self.weight = nn.Parameter(start_ND.clone())

    def forward(self, query_BD: Tensor, document_BD: Tensor, batch: BatchLabels) -> Tensor:
        """Unit rows of both sides -> scalar."""
        rows_BD = torch.cat([query_BD, document_BD])
        labels_B = torch.cat([batch.query_labels_B, batch.document_labels_B])
        if self.proxy is not None:
            loss: Tensor = self.proxy(rows_BD, labels_B)
            return loss
        cos_BN = rows_BD @ functional.normalize(self.weight, dim=1).T
        return cosface(cos_BN, labels_B, margin=self.margin, scale=self.scale)
