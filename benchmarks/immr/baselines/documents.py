"""Document representations of the baselines, from image and text.

    image   u                        text     t
    mean    unit(u + t)              concat   unit(L [u; t]), L learned, initialised as the mean

u is the image embedding of the shared encoder; t = unit(x + MLP(x)) with x = P (sentence - mean) / std, P the leading
principal directions of the training texts, as for the image features. A missing input counts as 0; a document without
any input that its kind uses has no embedding. All of it is trained by the loss of the baseline.

Legend: B rows, H width of a sentence vector, D embedding width, R training texts.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from modeling_oclear.modeling_oclear import OclearResidual

DOCUMENTS = ("image", "text", "mean", "concat")
MIN_DEVIATION = 0.05  # as a fraction of the mean deviation, as for the image features


class TextHead(nn.Module):
    """Sentence vectors -> unit embeddings.

    Args:
        sentences_RH: training texts, for standardisation and to initialise the projection.
        width: D; directions beyond H start at 0.
        dropout: on the projected rows during training.

    Raises:
        ValueError: there is no training text.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, sentences_RH: Tensor, *, width: int, dropout: float) -> None:
        super().__init__()
        if len(sentences_RH) == 0:
            raise ValueError("no training document has text; documents of image alone need no text head")
        wide_RH = sentences_RH.double()
        std_H = wide_RH.std(0, correction=0)
        self.register_buffer("mean", wide_RH.mean(0).float())
        self.register_buffer("std", std_H.clamp_min(MIN_DEVIATION * float(std_H.mean()) + 1e-12).float())
        rows_RH = (wide_RH - self.mean) / self.std
        _, vectors = torch.linalg.eigh(rows_RH.T @ rows_RH / len(rows_RH))
        self.projection = nn.Linear(sentences_RH.shape[1], width, bias=False)
        self.transform = OclearResidual(width, width)
        with torch.no_grad():
            self.projection.weight.zero_()
            self.projection.weight[: len(vectors)] = vectors.flip(1)[:, :width].T.float()
            self.transform.outer.weight.zero_()
            self.transform.outer.bias.zero_()
        self.dropout = dropout

    def forward(self, sentence_BH: Tensor) -> Tensor:
        """(B, H) -> (B, D)."""
        rows_BD = self.projection((sentence_BH.to(self.mean.dtype) - self.mean) / self.std)
        rows_BD = functional.dropout(rows_BD, self.dropout, training=self.training)
        return functional.normalize(self.transform(rows_BD), dim=1)


class DocumentFusion(nn.Module):
    """Image embedding and sentence vector -> unit document embedding.

    Args:
        kind: one of DOCUMENTS.
        head: text head; None for kind "image".
        width: D.
    """

    def __init__(self, kind: str, head: TextHead | None, *, width: int) -> None:
        super().__init__()
        if kind not in DOCUMENTS or (head is None) != (kind == "image"):
            raise ValueError(
                f"documents are {kind!r} {'without' if head is None else 'with'} a text head; choose one of "
                f"{DOCUMENTS}; all but image need a text head"
            )
        self.kind, self.head = kind, head
        self.mix: nn.Linear | None = None
        if kind == "concat":
            self.mix = nn.Linear(2 * width, width, bias=False)
            with torch.no_grad():
                self.mix.weight.copy_(torch.cat([torch.eye(width), torch.eye(width)], dim=1))

    def forward(self, image_BD: Tensor, sentence_BH: Tensor, has_image_B: Tensor, has_text_B: Tensor) -> Tensor:
        """(B, D) unit rows; 0 for a document without any input that this kind uses."""
        image_BD = torch.where(has_image_B[:, None], image_BD, 0.0)
        if self.head is None:
            return image_BD
        text_BD = torch.where(has_text_B[:, None], self.head(sentence_BH), 0.0)
        if self.kind == "text":
            return text_BD
        both_BD = image_BD + text_BD if self.mix is None else self.mix(torch.cat([image_BD, text_BD], dim=1))
        return functional.normalize(both_BD, dim=1)

    def readable(self, has_image_B: Tensor, has_text_B: Tensor) -> Tensor:
        """(B,) bool: documents with an input that this kind uses."""
        return {"image": has_image_B, "text": has_text_B}.get(self.kind, has_image_B | has_text_B)
