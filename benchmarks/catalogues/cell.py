"""Settings of one small data set: what shops differ in, one field each."""

from dataclasses import asdict, dataclass, fields
from typing import Any

DOMAINS = ("emoji", "icons", "furniture")
TEXTS = ("rich", "rich_with_name", "poor", "other", "none")


@dataclass(frozen=True)
class Cell:
    """One data set; it depends on these settings and on the versions of the packages only.

    Attributes:
        domain: where drawings and words come from.
        categories: number of categories in the catalogue, those of test queries included.
        clicked: share of the documents outside the test categories that may be clicked; whole categories.
        documents: smallest and largest number of documents of a category.
        pictures: query pictures per clicked category, on average; less than 1 leaves some with wrong clicks only.
        clicks: clicks per query picture, on average: 1 + Poisson(clicks - 1).
        noise: probability that a click is wrong, on a document of a similar clicked category.
        skew: exponent of the Zipf distribution of the query pictures over the categories; 0 = even.
        text: rich (all tags), poor (one other name or one tag), other (another language), none; without the words of
            the category's name, except in rich_with_name.
        leaf: whether the catalogue has the column `leaf`, the shelf of the shop.
        test_categories: number of categories with test queries; they are never clicked.
        test_queries: most queries of unseen categories, and most held-out queries of seen ones.
        seed: of every random choice.
    """

    domain: str = "icons"
    categories: int = 800
    clicked: float = 1.0
    documents: tuple[int, int] = (1, 3)
    pictures: float = 1.5
    clicks: float = 3.0
    noise: float = 0.2
    skew: float = 1.0
    text: str = "poor"
    leaf: bool = False
    test_categories: int = 150
    test_queries: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        self._one_of("domain", DOMAINS)
        self._one_of("text", TEXTS)
        self._within("clicked", 0.01, 1.0)
        self._within("pictures", 0.05, 50.0)
        self._within("clicks", 1, 100)
        self._within("noise", 0.0, 1.0)
        self._within("skew", 0.0, 5.0)
        self._within("test_queries", 1, 100_000)
        low, high = self.documents
        if not 1 <= low <= high <= 50:
            raise ValueError(f"documents is {self.documents}; give smallest and largest number, 1 to 50")
        if not 0 < self.test_categories < self.categories - 1:
            raise ValueError(
                f"test_categories is {self.test_categories}; it must leave two of the {self.categories} categories"
            )

    def _one_of(self, name: str, allowed: tuple[str, ...]) -> None:
        if getattr(self, name) not in allowed:
            raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")

    def _within(self, name: str, low: float, high: float) -> None:
        if not low <= getattr(self, name) <= high:
            raise ValueError(f"{name} is {getattr(self, name)}; it must be {low:g} to {high:g}")

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self) | {"documents": list(self.documents)}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "Cell":
        """Return the cell of `as_json`; unknown fields are a ValueError."""
        unknown = sorted(set(found) - {one.name for one in fields(cls)})
        if unknown:
            raise ValueError(f"a cell has no field {', '.join(unknown)}")
        return cls(**found | {"documents": tuple(found["documents"])})
