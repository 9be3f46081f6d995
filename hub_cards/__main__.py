"""Command line of the cards: `python -m hub_cards render` and `push`."""

import argparse
import sys
from pathlib import Path

import httpx2
from huggingface_hub.errors import HfHubHTTPError

from hub_cards.adapter import is_adapter, plan_adapter
from hub_cards.push import Upload, check_repo_id, check_tag_name, describe, plan, send
from hub_cards.render import render_run, render_unevaluated


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hub_cards", description="Render model and data set cards, and push them to the Hub."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    render = commands.add_parser(
        "render",
        description="Render RUN/hub/README.md and RUN/dataset_card/README.md from the result files of a run.",
        epilog="example: python -m hub_cards render runs/demo --repo-id my-org/oclear-demo",
    )
    render.add_argument("run", type=Path, help="run folder with the results of training, governance and evaluation")
    render.add_argument("--repo-id", help="model repository owner/name (default: push fills it in)")
    render.add_argument("--dataset-repo-id", help="data set repository owner/name (default: push fills it in)")
    render.add_argument(
        "--sample", type=Path, metavar="DIR", help="also write DIR/sample_model_card.md and sample_dataset_card.md"
    )
    render.add_argument(
        "--without-evaluation",
        action="store_true",
        help="a model card of what training measured, for a run without metrics.json; the card says so",
    )
    push = commands.add_parser(
        "push",
        description="List what would be uploaded, with sizes and sha256; with --yes, upload it.",
        epilog="example: python -m hub_cards push runs/demo/hub --repo-id my-org/oclear-demo --revision v1 --yes",
    )
    push.add_argument(
        "folder", type=Path, help="published model folder (with the query model in its subfolder query), or run/adapter"
    )
    push.add_argument("--repo-id", required=True, help="model repository owner/name; created if it does not exist")
    push.add_argument("--yes", action="store_true", help="upload; without it nothing is sent")
    push.add_argument("--revision", metavar="TAG", help="tag the new commit; an existing tag is rejected")
    push.add_argument("--private", action="store_true", help="create new repositories as private")
    push.add_argument("--dataset", type=Path, metavar="GOVERNED", help="governed folder to publish as a data set")
    push.add_argument("--dataset-repo-id", help="data set repository owner/name; required with --dataset")
    push.add_argument("--base-repo-id", help="repository owner/name of the base model; required for an adapter")
    return parser


def _render(args: argparse.Namespace) -> None:
    for repo_id in (args.repo_id, args.dataset_repo_id):
        if repo_id is not None:
            check_repo_id(repo_id)
    if args.without_evaluation:
        if args.dataset_repo_id is not None or args.sample is not None:
            raise ValueError(
                "--without-evaluation renders the model card alone: leave --dataset-repo-id and --sample out."
            )
        print(render_unevaluated(args.run, repo_id=args.repo_id))
        return
    written = render_run(args.run, repo_id=args.repo_id, dataset_repo_id=args.dataset_repo_id, samples=args.sample)
    for path in written:
        print(path)


def _planned_uploads(args: argparse.Namespace) -> list[Upload]:
    """Uploads of a model folder, or of an adapter and its base model."""
    if is_adapter(args.folder):
        if args.dataset is not None or args.dataset_repo_id is not None:
            raise ValueError(f"{args.folder} is an adapter; --dataset is for the push of a model folder.")
        return plan_adapter(args.folder, repo_id=args.repo_id, base_repo_id=args.base_repo_id)
    if args.base_repo_id is not None:
        raise ValueError(f"--base-repo-id is {args.base_repo_id}, but {args.folder} holds no adapter. Leave it out.")
    return plan(args.folder, repo_id=args.repo_id, dataset=args.dataset, dataset_repo_id=args.dataset_repo_id)


def _push(args: argparse.Namespace) -> None:
    if args.revision is not None:
        check_tag_name(args.revision)
    uploads = _planned_uploads(args)
    print(describe(uploads, private=args.private, tag=args.revision))
    if not args.yes:
        print("dry run: nothing was sent. Add --yes to upload.")
        return
    for page in send(uploads, private=args.private, tag=args.revision):
        print(page)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns 0, or 2 after one line on stderr (invalid input, or an error of the Hub)."""
    args = _parser().parse_args(arguments)
    try:
        {"render": _render, "push": _push}[args.command](args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except HfHubHTTPError as error:
        message = " ".join(str(error).split())
        print(
            f"error: the Hub rejected the request: {message} Check the token (HF_TOKEN), its rights and the repository "
            "name.",
            file=sys.stderr,
        )
        return 2
    except (httpx2.TransportError, ConnectionError) as error:  # HF_HUB_OFFLINE raises a ConnectionError
        print(f"error: the Hub cannot be reached ({error}). Check the network and HF_ENDPOINT.", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}. Check that the file can be read and the folder written.", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
