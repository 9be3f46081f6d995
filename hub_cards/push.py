"""Upload of a model folder and of governed data to the Hub, with a dry run.

`plan` checks everything and lists the files; `send` uploads exactly these files, in one commit per repository. No
request is sent before all checks have passed.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError

from hub_cards.address import addressed_dataset_card, addressed_model_card
from hub_cards.publishable import PlannedFile, dataset_files, model_files
from hub_cards.results import read_json

REPO_ID = re.compile(r"\w(?:[\w.-]*\w)?/\w(?:[\w.-]*\w)?", re.ASCII)
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Upload:
    """Files to upload into one repository; kind is "model" or "dataset"."""

    kind: str
    repo_id: str
    files: list[PlannedFile]


def check_repo_id(repo_id: str) -> str:
    """Check a repository name `owner/name` and return it.

    Raises:
        ValueError: no owner, or characters that the Hub rejects.
    """
    if repo_id.count("/") != 1:
        raise ValueError(f"repository '{repo_id}' must be 'owner/name', such as my-org/oclear-demo.")
    if (
        not REPO_ID.fullmatch(repo_id)
        or len(repo_id) > 96
        or repo_id.endswith(".git")
        or re.search(r"--|\.\.", repo_id)
    ):
        raise ValueError(
            f"repository '{repo_id}' is not a valid name for the Hub: letters, digits, '-', '_' and '.', no '-' or '.' "
            "at either end, no '--' or '..', at most 96 characters."
        )
    return repo_id


def check_tag_name(tag: str) -> str:
    """Check a tag name and return it; raises ValueError for an invalid one."""
    if not TAG.fullmatch(tag):
        raise ValueError(
            f"revision '{tag}' is not a valid tag name: letters, digits, '.', '_' and '-', at most 100 characters."
        )
    return tag


def _with_card(files: list[PlannedFile], text: str) -> list[PlannedFile]:
    """Replace the content of README.md in the list; the folder on disk does not change."""
    return [PlannedFile("README.md", text.encode()) if file.path_in_repo == "README.md" else file for file in files]


def plan(folder: Path, *, repo_id: str, dataset: Path | None, dataset_repo_id: str | None) -> list[Upload]:
    """Check all files and list them; sends nothing.

    Args:
        folder: the published model folder.
        repo_id: model repository, `owner/name`.
        dataset: governed folder, or None.
        dataset_repo_id: data set repository; required with `dataset`, rejected without it.

    Returns:
        The uploads in order: the data set before the model that cites it.

    Raises:
        ValueError: for a file that must not or cannot be published.
    """
    check_repo_id(repo_id)
    if (dataset is None) != (dataset_repo_id is None):
        raise ValueError("--dataset and --dataset-repo-id go together: the folder and its repository.")
    uploads = []
    if dataset is not None and dataset_repo_id is not None:
        card = folder.parent / "dataset_card" / "README.md"
        files = dataset_files(dataset, card=card)
        text = addressed_dataset_card(card.read_text(encoding="utf-8"), check_repo_id(dataset_repo_id))
        uploads.append(Upload("dataset", dataset_repo_id, _with_card(files, text)))
    files = model_files(folder)
    readme = (folder / "README.md").read_text(encoding="utf-8")
    has_text = read_json(folder / "config.json", "hub/config.json").has("text_config")
    text = addressed_model_card(readme, repo_id, has_text=has_text, dataset_repo_id=dataset_repo_id)
    uploads.append(Upload("model", repo_id, _with_card(files, text)))
    return uploads


def describe(uploads: list[Upload], *, private: bool, tag: str | None) -> str:
    """Format the plan: target, visibility, tag, and each file with size and sha256."""
    lines = []
    for upload in uploads:
        page = f"{constants.ENDPOINT}/{'datasets/' if upload.kind == 'dataset' else ''}{upload.repo_id}"
        total = sum(file.size for file in upload.files)
        lines.append(f"{upload.kind} {page} ({'private' if private else 'public'}; created if it is missing)")
        lines += [f"  {file.sha256}  {file.size:>12,}  {file.path_in_repo}" for file in upload.files]
        lines.append(f"  {len(upload.files)} files, {total:,} bytes, one commit on main{f', tag {tag}' if tag else ''}")
    return "\n".join(lines)


def _check_tag(api: HfApi, upload: Upload, tag: str) -> None:
    existing = {ref.name for ref in api.list_repo_refs(upload.repo_id, repo_type=upload.kind).tags}
    if tag in existing:
        raise ValueError(
            f"tag '{tag}' already exists in {upload.repo_id}, and tags are never moved. Choose another --revision."
        )


def send(uploads: list[Upload], *, private: bool, tag: str | None) -> list[str]:
    """Create the repositories, commit the planned files, tag the commits.

    Args:
        uploads: the result of `plan`.
        private: create new repositories as private (an existing one keeps its visibility).
        tag: name of a tag on the new commit of each repository, or None.

    Returns:
        The URL of each commit.

    Raises:
        ValueError: no token, or an existing tag.
        HfHubHTTPError: the Hub rejected the request (wrong token, no write permission).
    """
    token = get_token()
    if token is None:
        raise ValueError("no token for the Hub: set HF_TOKEN, or run `hf auth login`, with write permission.")
    api = HfApi(token=token)
    for upload in uploads:
        api.create_repo(upload.repo_id, repo_type=upload.kind, private=private or None, exist_ok=True)
        if tag is not None:
            _check_tag(api, upload, tag)
    pages = []
    for upload in uploads:
        operations = [
            CommitOperationAdd(file.path_in_repo, file.source if isinstance(file.source, bytes) else str(file.source))
            for file in upload.files
        ]
        message = f"Publish {upload.kind} with hub_cards"
        try:
            commit = api.create_commit(upload.repo_id, operations, repo_type=upload.kind, commit_message=message)
        except RuntimeError as error:
            # The client wraps an HTTP error during the upload of a large file in a plain RuntimeError.
            if isinstance(error.__cause__, HfHubHTTPError):
                raise error.__cause__ from error
            raise
        if tag is not None:
            api.create_tag(upload.repo_id, tag=tag, revision=commit.oid, repo_type=upload.kind)
        pages.append(commit.commit_url)
    return pages
