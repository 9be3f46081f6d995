"""A synthetic shop, and the folder of one governance run on it."""

from pathlib import Path

import pytest

from tests.support.synthetic_shop import SyntheticShop, write_shop


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> SyntheticShop:
    return write_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="session")
def governed(shop: SyntheticShop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from data_governance.__main__ import main

    out = tmp_path_factory.mktemp("runs") / "governed"
    assert main(["run", *shop.arguments, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def large_shop(tmp_path_factory: pytest.TempPathFactory) -> SyntheticShop:
    """Sixteen queries a category: enough for estimates."""
    return write_shop(tmp_path_factory.mktemp("large_shop"), queries=16)


@pytest.fixture(scope="session")
def large_governed(large_shop: SyntheticShop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from data_governance.__main__ import main

    out = tmp_path_factory.mktemp("large_runs") / "governed"
    assert main(["run", *large_shop.arguments, "--out", str(out)]) == 0
    return out
