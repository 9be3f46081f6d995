"""Push with the real Hub client, load by name, run the usage code of the cards.

Everything that talks to the test double runs in subprocesses, because the client reads its environment at import. They
run in another directory and without our packages, as for a reader of the card.
"""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as parquet
import pytest

from hub_cards.render import render_run
from tests.support.example_run import CONFIG, write_governed, write_run
from tests.support.loopback_hub import Hub, loopback_hub
from tests.support.tiny_model import publish_tiny

ROOT = Path(__file__).resolve().parents[2]
MODEL, DATA = "org/finder", "org/clicks"
BLOCKED = ("modeling_oclear", "hub_cards", "train", "retrieval", "data_governance")
STRANGER = "import sys\nsys.modules.update(dict.fromkeys({names!r}))\n"


def environment(hub: Hub, home: Path, *, token: str | None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    extra = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    return {**kept, **extra, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **({"HF_TOKEN": token} if token else {})}


def push(hub: Hub, home: Path, *words: object, token: str | None = "hf_right") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hub_cards", "push", *(str(word) for word in words)]
    return subprocess.run(
        command, cwd=ROOT, env=environment(hub, home, token=token), capture_output=True, text=True, check=False
    )


def stranger(hub: Hub, home: Path, code: str, *, token: str | None = None) -> str:
    """Run code elsewhere with our packages blocked; returns what it prints."""
    home.mkdir(parents=True, exist_ok=True)
    source = STRANGER.format(names=BLOCKED) + code
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", source],
        cwd=home,
        env=environment(hub, home, token=token),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def python_blocks(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.S)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A run with a tiny real model and two governed samples, pushed once with a tag."""
    folder = tmp_path_factory.mktemp("pushed")
    run = write_run(folder / "first")
    shutil.rmtree(run / "hub")
    publish_tiny(run / "hub")
    render_run(run)
    governed = write_governed(folder / "governed")
    with loopback_hub() as hub:
        words = ["--repo-id", MODEL, "--dataset", governed, "--dataset-repo-id", DATA, "--revision", "v1", "--yes"]
        done = push(hub, folder / "home", run / "hub", *words)
        assert done.returncode == 0, done.stderr
        yield SimpleNamespace(hub=hub, run=run, governed=governed, folder=folder, output=done.stdout)


def test_every_file_is_uploaded_with_the_listed_sha256(published: SimpleNamespace) -> None:
    listed = dict(re.findall(r"^  ([0-9a-f]{64}) +[\d,]+  (\S+)$", published.output, re.M)[::-1])
    assert listed
    arrived = published.hub.files(MODEL)
    local = {path.relative_to(published.run / "hub").as_posix(): path for path in (published.run / "hub").rglob("*")}
    names = {name for name, path in local.items() if path.is_file()}
    assert set(arrived) == names | {".gitattributes"}
    for name in names - {"README.md"}:  # the card is addressed to the repository on its way
        assert hashlib.sha256(arrived[name]).digest() == hashlib.sha256(local[name].read_bytes()).digest(), name
    for content in [*arrived.values(), *published.hub.files(DATA, kind="datasets").values()]:
        digest = hashlib.sha256(content).hexdigest()
        assert digest in published.output or content.startswith(b"*.safetensors")


def test_downloaded_files_equal_the_uploaded_ones(published: SimpleNamespace) -> None:
    code = (
        "import hashlib, pathlib\nfrom huggingface_hub import snapshot_download\n"
        f"folder = pathlib.Path(snapshot_download({MODEL!r}, revision='v1'))\n"
        "for path in sorted(folder.rglob('*')):\n"
        "    if path.is_file():\n"
        "        print(hashlib.sha256(path.read_bytes()).hexdigest(), path.relative_to(folder).as_posix())\n"
    )
    found = dict(
        line.split(" ", 1)[::-1] for line in stranger(published.hub, published.folder / "all", code).splitlines()
    )
    sent = {name: hashlib.sha256(content).hexdigest() for name, content in published.hub.files(MODEL, "v1").items()}
    assert found == sent


def test_model_loaded_by_tag_gives_the_outputs_of_the_folder(published: SimpleNamespace) -> None:
    code = (
        "import torch\nfrom PIL import Image\nfrom transformers import AutoModel, AutoProcessor\n"
        f"for name, revision in (({MODEL!r}, 'v1'), ({str(published.run / 'hub')!r}, None)):\n"
        "    options = dict(trust_remote_code=True, revision=revision) if revision else dict(trust_remote_code=True)\n"
        "    processor = AutoProcessor.from_pretrained(name, **options)\n"
        "    model = AutoModel.from_pretrained(name, **options).eval()\n"
        "    batch = processor(images=[Image.new('RGB', (50, 40), 'red'), None], text=['a small square', 'words'])\n"
        "    with torch.no_grad():\n"
        "        print(model.get_document_embeds(**batch).embeds.flatten().tolist())\n"
    )
    there, here = stranger(published.hub, published.folder / "there", code).splitlines()
    assert there == here
    assert there.count(",") == 23  # two rows of width 12


def test_missing_revision_is_named_in_the_error(published: SimpleNamespace) -> None:
    code = (
        "from huggingface_hub import hf_hub_download\nfrom huggingface_hub.errors import RevisionNotFoundError\n"
        f"try:\n    hf_hub_download({MODEL!r}, 'config.json', revision='v9')\n"
        "except RevisionNotFoundError:\n    print('no v9')\n"
    )
    assert stranger(published.hub, published.folder / "tag", code).strip() == "no v9"


def test_usage_code_of_the_card_runs(published: SimpleNamespace) -> None:
    code = python_blocks(published.hub.files(MODEL)["README.md"].decode())[0]
    assert f'MODEL = "{MODEL}"' in code
    printed = stranger(published.hub, published.folder / "usage", code)
    assert printed.startswith("tensor([[")
    assert "torch.Size([2, 3, 2])" in printed


def test_usage_code_of_the_query_model_downloads_no_text_weights(published: SimpleNamespace) -> None:
    published.hub.log.clear()
    code = python_blocks(published.hub.files(MODEL)["README.md"].decode())[1]
    printed = stranger(published.hub, published.folder / "query_only", code)
    assert printed.strip() == "torch.Size([1, 12])"
    fetched = published.hub.downloads()
    assert [name for name in fetched if name.endswith(".safetensors")] == ["query/model.safetensors"]
    assert not [name for name in fetched if "token" in name or "vocab" in name]


def test_usage_code_for_other_tools_runs(published: SimpleNamespace) -> None:
    code = python_blocks(published.hub.files(MODEL)["README.md"].decode())[2]
    assert "SentenceTransformer(MODEL" in code
    printed = stranger(published.hub, published.folder / "tools", code)
    assert printed.startswith("tensor([[")
    assert printed.splitlines()[-1] == "12"


def test_usage_code_of_a_card_without_repository_runs_next_to_the_run_folder(published: SimpleNamespace) -> None:
    home = published.folder / "beside"
    shutil.copytree(published.run, home / "runs" / "first")
    blocks = python_blocks((published.run / "hub" / "README.md").read_text())
    assert all('MODEL = "runs/first/hub"' in block for block in blocks)
    assert "torch.Size([1, 12])" in stranger(published.hub, home, "\n".join(blocks))


def test_download_command_of_the_card_fetches_the_folder(published: SimpleNamespace) -> None:
    card = published.hub.files(MODEL)["README.md"].decode()
    (line,) = re.findall(r"^hf download .*$", card, re.M)
    home = published.folder / "download"
    home.mkdir()
    program, *words = shlex.split(line)
    command = [str(Path(sys.executable).with_name(program)), *words]
    done = subprocess.run(
        command, cwd=home, env=environment(published.hub, home, token=None), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    weights = (home / "model" / "query" / "model.safetensors").read_bytes()
    assert weights == (published.run / "hub" / "query" / "model.safetensors").read_bytes()


def test_data_set_loads_by_name(published: SimpleNamespace) -> None:
    card = published.hub.files(DATA, kind="datasets")["README.md"].decode()
    printed = stranger(published.hub, published.folder / "data", python_blocks(card)[0])
    assert "['sample_id', 'image', 'text', 'split'] 2 2" in printed
    sent = published.hub.files(DATA, kind="datasets")["samples/part-0.parquet"]
    assert sent == (published.governed / "samples" / "part-0.parquet").read_bytes()
    assert parquet.read_table(published.governed / "samples" / "part-0.parquet").num_rows == 2


def test_pushing_unchanged_files_again_creates_no_commit(published: SimpleNamespace) -> None:
    before = published.hub.repos["models", MODEL].find("main")
    done = push(published.hub, published.folder / "home", published.run / "hub", "--repo-id", MODEL, "--yes")
    assert done.returncode == 0, done.stderr
    latest = published.hub.files(MODEL)
    assert latest.keys() == published.hub.files(MODEL, before).keys()
    changed = {name for name in latest if latest[name] != published.hub.files(MODEL, before)[name]}
    assert changed <= {"README.md"}  # this push cites no data set


def test_existing_tag_is_rejected_before_anything_is_committed(published: SimpleNamespace) -> None:
    before = published.hub.repos["models", MODEL].find("main")
    words = ["--repo-id", MODEL, "--revision", "v1", "--yes"]
    done = push(published.hub, published.folder / "home", published.run / "hub", *words)
    assert done.returncode == 2
    assert "error: tag 'v1' already exists" in done.stderr
    assert published.hub.repos["models", MODEL].find("main") == before


@pytest.mark.parametrize(
    ("token", "message"), [("hf_wrong", "the Hub rejected the request: "), (None, "no token for the Hub")]
)
def test_wrong_or_missing_token_gives_one_error_line_and_no_repository(
    published: SimpleNamespace, token: str | None, message: str
) -> None:
    home = published.folder / "nobody"
    done = push(published.hub, home, published.run / "hub", "--repo-id", "org/other", "--yes", token=token)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert "Traceback" not in done.stderr
    assert ("models", "org/other") not in published.hub.repos


def test_unreachable_hub_gives_one_error_line(published: SimpleNamespace) -> None:
    away = Hub("x")
    away.endpoint = "http://127.0.0.1:9"
    done = push(away, published.folder / "home", published.run / "hub", "--repo-id", MODEL, "--yes")
    assert done.returncode == 2
    assert "error: the Hub cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_private_repository_cannot_be_read_without_token(published: SimpleNamespace) -> None:
    words = ["--repo-id", "org/hidden", "--private", "--yes"]
    done = push(published.hub, published.folder / "home", published.run / "hub", *words)
    assert done.returncode == 0, done.stderr
    assert published.hub.repos["models", "org/hidden"].private
    code = (
        "from huggingface_hub import hf_hub_download\nfrom huggingface_hub.errors import RepositoryNotFoundError\n"
        "try:\n    hf_hub_download('org/hidden', 'config.json', token=False)\n"
        "except RepositoryNotFoundError:\n    print('hidden')\n"
    )
    assert stranger(published.hub, published.folder / "hidden", code).strip() == "hidden"


def test_config_of_the_fixture_names_the_remote_code_of_a_real_model(published: SimpleNamespace) -> None:
    card_config = (published.run / "hub" / "config.json").read_text()
    for target in CONFIG["auto_map"].values():  # type: ignore[attr-defined]
        assert target in card_config
