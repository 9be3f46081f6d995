"""The wheel: what it installs, and that it works in an empty virtual environment."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"oclear", "runtime", "modeling_oclear", "data_governance", "train", "retrieval", "hub_cards"}
NOT_INSTALLED = {"tests", "examples", "benchmarks", "docs"}


def call(*words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(word) for word in words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def run(*words: object, folder: Path) -> str:
    """Standard output of a command that must succeed."""
    done = call(*words, folder=folder)
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout


def sources() -> list[str]:
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in names if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, so that the checkout gets no build folder."""
    copy = tmp_path_factory.mktemp("sources")
    for name in sources():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    words = ("pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", "dist", ".")
    run(sys.executable, "-m", *words, folder=copy)
    (found,) = (copy / "dist").glob("oclear-*.whl")
    return found


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, which sees the libraries installed for the tests and nothing editable."""
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", folder, folder=folder)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, folder=folder)
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "libraries.pth").write_text(
        sysconfig.get_paths()["purelib"] + "\n"
    )  # after installing: pip must not see it
    return folder / "bin"


@pytest.mark.slow
def test_the_wheel_installs_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        top = {name.split("/")[0] for name in archive.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == PACKAGES
    assert not top & NOT_INSTALLED


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    expected = {name for name in sources() if name.split("/")[0] in PACKAGES}
    assert not expected - held
    kinds = {Path(name).suffix for name in expected}
    assert kinds >= {".py", ".yaml", ".j2", ".css", ".js"}
    assert any("metrics_hub/" in name for name in held)


@pytest.mark.slow
def test_the_installed_command_runs_from_an_empty_folder(environment: Path, tmp_path: Path) -> None:
    help_text = run(environment / "oclear", "--help", folder=tmp_path)
    assert "oclear search" in help_text
    source = "import oclear, pathlib; print(pathlib.Path(oclear.__file__).parent.parent)"
    where = run(environment / "python", "-c", source, folder=tmp_path).strip()
    assert Path(where).is_relative_to(environment.parent)
    assert "--behaviour" in run(environment / "oclear", "govern", "--help", folder=tmp_path)
    assert "--index" in run(environment / "oclear", "search", "--help", folder=tmp_path)


@pytest.mark.slow
def test_the_installed_demo_names_the_checkout(environment: Path, tmp_path: Path) -> None:
    done = call(environment / "oclear", "demo", folder=tmp_path)
    assert done.returncode == 2
    assert "checkout" in done.stderr
