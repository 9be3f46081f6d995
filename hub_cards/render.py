"""Render the model card and the data set card of a run."""

from pathlib import Path

from hub_cards.dataset_card import dataset_card
from hub_cards.model_card import model_card
from hub_cards.publishable import machine_traces, this_host
from hub_cards.results import read_run, read_training
from runtime.files import write_text

SAMPLES = ("sample_model_card.md", "sample_dataset_card.md")


def _write(path: Path, text: str) -> Path:
    """Write a card; an interrupted call keeps the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def render_unevaluated(folder: Path, *, repo_id: str | None = None) -> Path:
    """Render the model card of a run that was not evaluated on judged queries; the card says so.

    Args:
        folder: the run folder as training leaves it; `ledger.json`, `data.json` and `ATTRIBUTION.md` are shown where
            they exist.
        repo_id: model repository `owner/name`; None = not known yet.

    Raises:
        ValueError: a result file of training is missing, or a text names this machine.
    """
    text = str(model_card(read_training(folder), repo_id=repo_id))
    _check_traces([text], folder)
    return _write(folder / "hub" / "README.md", text)


def render_run(
    folder: Path, *, repo_id: str | None = None, dataset_repo_id: str | None = None, samples: Path | None = None
) -> list[Path]:
    """Render the model card and the data set card of a run; writes nothing if a value of either is missing.

    Args:
        folder: the run folder.
        repo_id: model repository `owner/name`; None = not known yet.
        dataset_repo_id: data set repository `owner/name`, cited in the model card; None = not known yet.
        samples: a folder for copies of both cards (the committed samples are such copies).

    Returns:
        The written files.

    Raises:
        ValueError: a result file or a value is missing, or a text names this machine.
    """
    run = read_run(folder)
    model = model_card(run, repo_id=repo_id)
    if dataset_repo_id is not None:
        model.data["datasets"] = [dataset_repo_id]
    texts = [str(model), str(dataset_card(run, repo_id=dataset_repo_id))]
    _check_traces(texts, folder)
    targets = [folder / "hub" / "README.md", folder / "dataset_card" / "README.md"]
    if samples is not None:
        targets += [samples / name for name in SAMPLES]
    return [_write(path, text) for path, text in zip(targets, texts * (1 + (samples is not None)), strict=True)]


def _check_traces(texts: list[str], folder: Path) -> None:
    for text in texts:
        for trace in machine_traces(text, this_host()):
            raise ValueError(
                f"'{trace}' in the result files of {folder} names this machine. Use a relative path there."
            )
