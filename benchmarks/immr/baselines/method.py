"""Baseline methods (loss x labels x documents) and their hyperparameters."""

from dataclasses import dataclass, replace

from benchmarks.immr.baselines.documents import DOCUMENTS
from benchmarks.immr.baselines.labels import LABELS
from benchmarks.immr.baselines.losses import LOSSES

# Searched besides the learning rate, default first: temperature, mining and margin, or margin of each loss.
LOSS_VALUES: dict[str, tuple[float | str, ...]] = {
    "infonce": (0.07, 0.03, 0.15),
    "supcon": (0.07, 0.03, 0.15),
    "siglip": (0.1, 0.05, 0.2),
    "triplet": ("semihard 0.2", "semihard 0.1", "hard 0.2"),
    "proxyanchor": (0.1, 0.0, 0.2),
    "cosface": (0.2, 0.1, 0.3),
}
DISTILLED = "+distilled"


@dataclass(frozen=True)
class Method:
    """Loss, labels and document representation of a baseline, for example "infonce.raw.concat".

    `distilled` adds the ensemble and the student of the product's recipe; the name then ends with "+distilled".
    """

    loss: str
    labels: str
    documents: str
    distilled: bool = False

    def __post_init__(self) -> None:
        for value, choices in ((self.loss, LOSSES), (self.labels, LABELS), (self.documents, DOCUMENTS)):
            if value not in choices:
                raise ValueError(f"{value!r} is no part of a method here; choose one of {', '.join(choices)}")
        if self.distilled and self.documents != "image":
            raise ValueError(f"{self.name}: a student learns embeddings of images alone; its documents must be 'image'")

    @property
    def name(self) -> str:
        return f"{self.loss}.{self.labels}.{self.documents}{DISTILLED if self.distilled else ''}"

    @property
    def plain(self) -> "Method":
        """The same method without ensemble and student; the hyperparameter search uses this one."""
        return replace(self, distilled=False)

    @classmethod
    def named(cls, name: str) -> "Method":
        """Parse the name of a method."""
        loss, labels, documents = name.removesuffix(DISTILLED).split(".")
        return cls(loss, labels, documents, distilled=name.endswith(DISTILLED))


METHODS = tuple(Method(loss, labels, documents) for loss in LOSSES for labels in LABELS for documents in DOCUMENTS)


@dataclass(frozen=True)
class Hyperparameters:
    """Values chosen by the search on validation queries.

    Attributes:
        rate: factor on all learning rates of the recipe.
        value: of the loss, see LOSS_VALUES.
        balance: class balance of the batches: 1 draws classes equally often, 0 in proportion to their rows.
        adapters: train the product's low-rank adapters on the last block instead of its weights.
        length: factor on the recipe's steps.
    """

    rate: float = 1.0
    value: float | str = 0.0
    balance: float = 1.0
    adapters: bool = False
    length: float = 1.0

    @classmethod
    def default(cls, method: Method) -> "Hyperparameters":
        """Starting point of the search of a method."""
        return cls(value=LOSS_VALUES[method.loss][0])
