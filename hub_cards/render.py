"""Writing of both cards of a run, and of the committed samples."""

from pathlib import Path

from hub_cards.dataset_card import dataset_card
from hub_cards.model_card import model_card
from hub_cards.publishable import machine_traces, this_host
from hub_cards.results import read_run
from runtime.files import write_text

SAMPLES = ("sample_model_card.md", "sample_dataset_card.md")


def _write(path: Path, text: str) -> Path:
    """Write a card; an interrupted rendering leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def render_run(
    folder: Path, *, repo_id: str | None = None, dataset_repo_id: str | None = None, samples: Path | None = None
) -> list[Path]:
    """Render the model card and the data card of a run; writes nothing when a figure of either is missing.

    Args:
        folder: the run folder.
        repo_id: model repository `owner/name`, when it is known.
        dataset_repo_id: data repository `owner/name`, when it is known; the model card then cites it.
        samples: a folder that takes a copy of both, as committed samples.

    Returns:
        The files that were written.

    Raises:
        ValueError: a result file or a figure is missing, or a text tells about this machine.
    """
    run = read_run(folder)
    model = model_card(run, repo_id=repo_id)
    if dataset_repo_id is not None:
        model.data["datasets"] = [dataset_repo_id]
    texts = [str(model), str(dataset_card(run, repo_id=dataset_repo_id))]
    for text in texts:
        for trace in machine_traces(text, this_host()):
            raise ValueError(
                f"'{trace}' of {folder}'s result files tells about this machine. Write a relative path there."
            )
    targets = [folder / "hub" / "README.md", folder / "dataset_card" / "README.md"]
    if samples is not None:
        targets += [samples / name for name in SAMPLES]
    return [_write(path, text) for path, text in zip(targets, texts * (1 + (samples is not None)), strict=True)]
