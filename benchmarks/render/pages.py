"""Fill the generated blocks of README and of the pages in docs/.

A block lies between the markers `<!-- name -->` and `<!-- /name -->`. A test renders every page again and compares. The
reference pages of the docs site are generated while it is built (reference.py).
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.render import catalogues, governance, head, immr_ablation, readme, recipes, scaling
from benchmarks.render import immr as immr_page

ROOT = Path(__file__).resolve().parents[2]
SYSTEMS = {
    "oclear": "**OCLEAR**: governed labels, classification, text out of fold",
    "image_only_documents": "the same image side, documents without text in training and index",
    "text_removed": "OCLEAR, documents indexed without their text",
    "text_shuffled": "OCLEAR, documents with another category's text",
    "text_only": "OCLEAR, documents indexed without their image",
    "zero_shot_image": "frozen ImageNet features, standardised per side",
}


def newest_result() -> dict[str, Any]:
    """The newest committed result file of the demo.

    Raises:
        ValueError: when there is none.
    """
    found = sorted((ROOT / "benchmarks" / "results").glob("demo_*.json"), key=lambda path: path.stem.split("_")[-1])
    if not found:
        raise ValueError("benchmarks/results holds no demo_*.json: run python -m benchmarks.training.demo_seeds first")
    result: dict[str, Any] = json.loads(found[-1].read_text())
    return result | {"file": found[-1].name}


def results_table(setting: dict[str, Any]) -> list[str]:
    """One Markdown table of a setting: means over seeds."""
    lines = ["| documents | unseen R@1 | R@10 | MRR@10 | seen R@1 | R@10 | seeds |", "|---|---|---|---|---|---|---|"]
    for name, title in SYSTEMS.items():
        if name not in setting["mean"]:
            continue
        row = setting["mean"][name]
        keys = ("recall_at_1", "recall_at_10", "mrr_at_10", "seen_recall_at_1", "seen_recall_at_10")
        lines.append(f"| {title} | " + " | ".join(f"{row[key]:.3f}" for key in keys) + f" | {row['seeds']} |")
    return lines


def results() -> str:
    """One run of the demo in every setting: the results block of docs/benchmarks.md."""
    result = newest_result()
    lines = []
    for name, setting in result["settings"].items():
        words = "no word of the category's name in any text" if name == "hard" else "texts as they are"
        seeds = ", ".join(str(seed) for seed in setting["seeds"])
        of = f"mean of seeds {seeds}" if len(setting["seeds"]) > 1 else f"seed {seeds}"
        lines += [f"*{name} setting* ({words}), {of}:", ""]
        lines += [*results_table(setting), ""]
        fused = setting["fused_minus_image_only"]
        lines += [
            f"Text adds {fused['recall_at_1']:+.3f} R@1 and {fused['recall_at_10']:+.3f} R@10 on unseen categories, "
            f"{fused['seen_recall_at_1']:+.3f} and {fused['seen_recall_at_10']:+.3f} on seen ones. Gallery of unseen "
            f"categories alone: R@1 {setting['mean']['oclear']['unseen_gallery_recall_at_1']:.3f}, "
            f"R@10 {setting['mean']['oclear']['unseen_gallery_recall_at_10']:.3f}.",
            "",
        ]
    lines += governance_lines(next(iter(result["settings"].values())))
    machine = result["environment"]
    lines += [
        f"From `benchmarks/results/{result['file']}`, made by `{result['command']}` on {machine['cores']} cores "
        f"({machine['cpu']}, {machine['memory_gib']} GiB, Python {machine['python']}, "
        f"torch {machine['torch']}){'; ' + result['note'] if result.get('note') else ''}."
    ]
    return "\n".join(lines)


def governance_lines(setting: dict[str, Any]) -> list[str]:
    """Governance before and after, and how long the first run took."""
    figures, seconds = setting["governance"], setting["seconds_of_first_run"]
    before, after = figures["label_accuracy_before"], figures["label_accuracy_after"]
    pairs, minutes = figures["category_pair_f1"], sum(seconds.values()) / 60
    found, truth = figures["documents_per_category"], figures["truth_documents_per_category"]
    return [
        f"Governance of {figures['rows_in']:,} simulated query events: right labels {before:.3f} -> {after:.3f}, "
        f"keeping {figures['kept_share']:.1%} of the events; document pairs found with F1 {pairs:.3f}; {found:.2f} "
        f"documents a category (truth {truth:.2f}). The whole demo took {minutes:.1f} minutes after installation.",
        "",
    ]


def overview_blocks() -> dict[str, str]:
    """Marker name -> Markdown of docs/benchmarks.md."""
    return {"results": results(), "immr": immr_page.short(), "ablation": immr_ablation.short()}


PAGES: dict[str, Callable[[], dict[str, str]]] = {
    "README.md": readme.blocks,
    "docs/benchmarks.md": overview_blocks,
    "docs/catalogues.md": catalogues.blocks,
    "docs/governance.md": governance.blocks,
    "docs/head.md": head.blocks,
    "docs/immr.md": immr_page.blocks,
    "docs/recipes.md": recipes.blocks,
    "docs/scaling.md": scaling.blocks,
}


def filled(text: str, blocks: dict[str, str], *, page: str) -> str:
    """Replace the blocks of a page.

    Raises:
        ValueError: when the page lacks the markers of a block.
    """
    for name, block in blocks.items():
        head, tail = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if head not in text or tail not in text:
            raise ValueError(f"{page} lacks the markers {head.strip()} and {tail}")
        before, rest = text.split(head, 1)
        text = before + head + block + "\n" + tail + rest.split(tail, 1)[1]
    return text


def rendered_page(page: str) -> str:
    """Text of a page of `PAGES` (path from the root) with its blocks replaced."""
    return filled((ROOT / page).read_text(), PAGES[page](), page=page)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.render",
        description=__doc__.split("\n")[0],
        epilog="example: python -m benchmarks.render",
    )
    parser.parse_args()
    failed = 0
    for page in PAGES:
        try:
            (ROOT / page).write_text(rendered_page(page))
        except ValueError as error:
            failed += 1
            print(f"error: {page} stays as it was: {error}", file=sys.stderr)
        else:
            print(f"{page} is rendered")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
