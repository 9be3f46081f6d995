"""The test double of the Hub, used through the real client and by plain HTTP."""

import hashlib
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from tests.support.loopback_hub import Hub, loopback_hub

# huggingface_hub 2.4 streams a large file with httpx2's old argument `data=`
pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=<...>' to upload raw bytes/text content.:DeprecationWarning"
)

TOKEN = "hf_right"
SMALL, LARGE = b"small", b"\0large" * 1000


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # the double speaks the LFS protocol
    with loopback_hub(TOKEN) as found:
        yield found


def client(hub: Hub, token: str = TOKEN) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=token)


def filled(hub: Hub, *, private: bool = False) -> str:
    """A repository org/a with one small and one large file; returns the commit."""
    api = client(hub)
    api.create_repo("org/a", private=private)
    files = {"README.md": b"---\nlicense: mit\n---\n", "deep/small.txt": SMALL, "model.safetensors": LARGE}
    additions = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit("org/a", additions, commit_message="first").oid


def plain(hub: Hub, method: str, path: str, *, token: str | None = TOKEN, body: bytes = b"") -> tuple[int, str | None]:
    """Status and error code of a request that no client tidied up."""
    connection = http.client.HTTPConnection(urlsplit(hub.endpoint).netloc, timeout=10)
    connection.request(method, path, body=body, headers={"Authorization": f"Bearer {token}"} if token else {})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, answer.getheader("X-Error-Code")


def download(hub: Hub, name: str, cache: Path, *, revision: str = "main", token: str = TOKEN) -> bytes:
    path = hf_hub_download(
        "org/a", name, revision=revision, token=token, endpoint=hub.endpoint, cache_dir=cache, etag_timeout=5
    )
    return Path(path).read_bytes()


def test_small_and_large_files_are_downloaded_unchanged(hub: Hub, tmp_path: Path) -> None:
    filled(hub)
    assert download(hub, "deep/small.txt", tmp_path) == SMALL
    assert download(hub, "model.safetensors", tmp_path) == LARGE
    assert ("PUT", f"/large/{hashlib.sha256(LARGE).hexdigest()}", 200) in hub.log
    assert hub.files("org/a")["model.safetensors"] == LARGE


def test_tag_keeps_its_commit_when_main_moves_on(hub: Hub, tmp_path: Path) -> None:
    first = filled(hub)
    api = client(hub)
    api.create_tag("org/a", tag="v1", revision=first)
    api.create_commit("org/a", [CommitOperationAdd("deep/small.txt", b"newer")], commit_message="second")
    assert download(hub, "deep/small.txt", tmp_path) == b"newer"
    assert download(hub, "deep/small.txt", tmp_path, revision="v1") == SMALL
    assert [tag.name for tag in api.list_repo_refs("org/a").tags] == ["v1"]
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag("org/a", tag="v1")


def test_wrong_token_is_rejected_for_reading_and_writing(hub: Hub, tmp_path: Path) -> None:
    filled(hub)
    with pytest.raises(HfHubHTTPError, match="401"):
        client(hub, "hf_wrong").create_repo("org/b")
    with pytest.raises(HfHubHTTPError, match="401"):
        client(hub, "hf_wrong").model_info("org/a")
    assert plain(hub, "GET", "/org/a/resolve/main/deep/small.txt", token="hf_wrong") == (401, None)
    assert plain(hub, "POST", "/api/models/org/a/commit/main", token=None) == (401, None)
    assert ("models", "org/b") not in hub.repos


def test_only_private_files_need_a_token(hub: Hub) -> None:
    filled(hub, private=True)
    assert plain(hub, "GET", "/org/a/resolve/main/README.md", token=None) == (401, "RepoNotFound")
    hub.repos["models", "org/a"].private = False
    assert plain(hub, "GET", "/org/a/resolve/main/README.md", token=None) == (200, None)


def test_missing_revision_repository_or_file_is_named(hub: Hub, tmp_path: Path) -> None:
    filled(hub)
    with pytest.raises(RevisionNotFoundError):
        download(hub, "README.md", tmp_path, revision="v9")
    with pytest.raises(RevisionNotFoundError):
        client(hub).model_info("org/a", revision="v9")
    with pytest.raises(EntryNotFoundError):
        download(hub, "nothing.json", tmp_path)
    with pytest.raises(RepositoryNotFoundError):
        client(hub).model_info("org/other")


PATHS_OUTSIDE = ["../b/secret", "deep/../../secret", "%2e%2e/secret", "deep//x", ".git/config"]


@pytest.mark.parametrize("path", PATHS_OUTSIDE)
def test_reading_a_path_outside_the_repository_is_rejected(hub: Hub, path: str) -> None:
    filled(hub)
    assert plain(hub, "GET", f"/org/a/resolve/main/{path}")[0] == 400


@pytest.mark.parametrize("path", ["../b/secret", "deep/../../secret", "/etc/passwd", "a\\b", ".git/config"])
def test_writing_a_path_outside_the_repository_is_rejected(hub: Hub, path: str) -> None:
    commit = filled(hub)
    line = {"key": "file", "value": {"path": path, "content": "eA==", "encoding": "base64"}}
    assert plain(hub, "POST", "/api/models/org/a/commit/main", body=json.dumps(line).encode())[0] == 400
    assert hub.repos["models", "org/a"].find("main") == commit


def test_large_file_with_another_hash_is_rejected(hub: Hub) -> None:
    assert plain(hub, "PUT", f"/large/{'0' * 64}", body=b"other")[0] == 400
    filled(hub)
    line = {"key": "lfsFile", "value": {"path": "x.safetensors", "algo": "sha256", "oid": "0" * 64, "size": 5}}
    assert plain(hub, "POST", "/api/models/org/a/commit/main", body=json.dumps(line).encode())[0] == 400


def test_listings_show_files_folders_and_sizes(hub: Hub) -> None:
    filled(hub)
    api = client(hub)
    top = {item.path for item in api.list_repo_tree("org/a")}
    assert top == {".gitattributes", "README.md", "deep", "model.safetensors"}
    deep = {item.path for item in api.list_repo_tree("org/a", recursive=True)}
    assert "deep/small.txt" in deep
    (large,) = api.get_paths_info("org/a", ["model.safetensors"])
    assert isinstance(large, RepoFile)
    assert large.size == len(LARGE)
    assert large.lfs is not None
    assert large.lfs.sha256 == hashlib.sha256(LARGE).hexdigest()
    siblings = api.model_info("org/a").siblings or []
    assert {item.rfilename for item in siblings} >= {"README.md", "model.safetensors"}


def test_part_of_a_file_can_be_requested(hub: Hub) -> None:
    filled(hub)
    connection = http.client.HTTPConnection(urlsplit(hub.endpoint).netloc, timeout=10)
    connection.request("GET", "/org/a/resolve/main/deep/small.txt", headers={"Range": "bytes=1-2"})
    answer = connection.getresponse()
    assert (answer.status, answer.read(), answer.getheader("Content-Range")) == (206, b"ma", "bytes 1-2/5")
    connection.close()
