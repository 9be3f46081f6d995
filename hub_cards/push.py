"""Upload of a published model folder (query side included) and of the governed data; a dry run unless told otherwise.

Why a plan first: what goes to a public place is listed with size and sha256, and every check has passed, before the
first request is sent. Exactly the planned files are committed, in one commit for each repository.
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
    """One repository to be written: kind is "model" or "dataset"."""

    kind: str
    repo_id: str
    files: list[PlannedFile]


def check_repo_id(repo_id: str) -> str:
    """A full name `org/name` that the Hub accepts.

    Raises:
        ValueError: no owner, or characters that the Hub refuses.
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
            f"repository '{repo_id}' is no name for the Hub: letters, digits, '-', '_' and '.', neither first nor last "
            "'-' or '.', no '--' or '..', at most 96 characters."
        )
    return repo_id


def check_tag_name(tag: str) -> str:
    """A name that a tag can bear; raises ValueError for any other."""
    if not TAG.fullmatch(tag):
        raise ValueError(f"revision '{tag}' is no tag name: letters, digits, '.', '_' and '-', at most 100 characters.")
    return tag


def _with_card(files: list[PlannedFile], text: str) -> list[PlannedFile]:
    """The same files with the card's bytes replaced: the folder on disk stays as it is when nothing changes."""
    return [PlannedFile("README.md", text.encode()) if file.path_in_repo == "README.md" else file for file in files]


def plan(folder: Path, *, repo_id: str, dataset: Path | None, dataset_repo_id: str | None) -> list[Upload]:
    """Check everything and list it; sends nothing.

    Args:
        folder: the published model folder.
        repo_id: model repository, `owner/name`.
        dataset: governed folder, or None.
        dataset_repo_id: data repository; needed with `dataset`, refused without it.

    Returns:
        The uploads in order: data before the model that cites it.

    Raises:
        ValueError: whatever must not or cannot be published.
    """
    check_repo_id(repo_id)
    if (dataset is None) != (dataset_repo_id is None):
        raise ValueError("--dataset and --dataset-repo-id go together: the folder and the repository that takes it.")
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
    """The plan as text: target, visibility, tag, and each file with size and sha256."""
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
            f"tag '{tag}' exists already in {upload.repo_id}, and a tag never moves. Choose another --revision."
        )


def send(uploads: list[Upload], *, private: bool, tag: str | None) -> list[str]:
    """Create the repositories, commit the planned files, tag the commits.

    Args:
        uploads: what `plan` returned.
        private: create new repositories as private (an existing one keeps its visibility).
        tag: name of a tag on the new commit of each repository, or None.

    Returns:
        The address of each commit.

    Raises:
        ValueError: no token, or a tag that exists.
        HfHubHTTPError: the Hub refused (wrong token, no right to write).
    """
    token = get_token()
    if token is None:
        raise ValueError("no token for the Hub: set HF_TOKEN, or run `hf auth login`, with a token that may write.")
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
            # the client wraps a refusal of a large file in a bare RuntimeError
            if isinstance(error.__cause__, HfHubHTTPError):
                raise error.__cause__ from error
            raise
        if tag is not None:
            api.create_tag(upload.repo_id, tag=tag, revision=commit.oid, repo_type=upload.kind)
        pages.append(commit.commit_url)
    return pages
