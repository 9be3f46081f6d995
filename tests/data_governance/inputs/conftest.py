"""A shop of its own for every test, which may change the tables."""

from pathlib import Path

import pytest

from tests.support.synthetic_shop import SyntheticShop, write_shop


@pytest.fixture
def small(tmp_path: Path) -> SyntheticShop:
    return write_shop(tmp_path, categories=6, queries=3, noise=0.0)
