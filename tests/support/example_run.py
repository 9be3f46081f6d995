"""Example result files of a run, and folders to publish, for tests of the cards.

The figures are invented for tests and are nobody's results. Keys are those that the stages write.
"""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from safetensors.numpy import save_file


def metrics(first: float, tenth: float, *, queries: int = 120, documents: int = 640) -> dict[str, Any]:
    values = {
        "recall_at_1": first,
        "recall_at_5": (first + tenth) / 2,
        "recall_at_10": tenth,
        "trec_recall_at_10": tenth - 0.05,
        "mrr_at_10": first + 0.1,
        "ndcg_at_10": first + 0.08,
        "map": first + 0.02,
    }
    intervals = {name: [value - 0.03, value + 0.03] for name, value in values.items()}
    return {**values, "queries": queries, "documents": documents, "skipped": 2, "intervals": intervals, "slices": {}}


METRICS: dict[str, Any] = {
    "unseen": {"full_gallery": metrics(0.4123, 0.7456), "unseen_gallery": metrics(0.61, 0.89, documents=160)},
    "seen": {"full_gallery": metrics(0.83, 0.97, queries=90)},
    "baselines": {name: metrics(0.2, 0.5) for name in ("zero_shot_image", "image_only_documents", "text_removed")},
    "baselines_seen": {name: metrics(0.6, 0.9) for name in ("zero_shot_image", "image_only_documents", "text_removed")},
    "governance": {
        "rows_in": 1400,
        "kept": 880,
        "dropped": 120,
        "kept_share": 0.88,
        "label_accuracy_before": 0.8,
        "label_accuracy_after": 0.961,
        "category_pair_f1": 0.83,
        "documents_per_category": 3.1,
        "truth_documents_per_category": 3.4,
    },
    "data": {"simulated": True, "name": "Emoji drawings", "settings": {"noise": 0.2, "split": 0}, "clicks": 1400},
}
LEDGER: dict[str, Any] = {
    "stages": [
        {"stage": "admit", "table": "queries", "rows_in": 1000, "kept": 997, "dropped": 3, "reasons": {"no_image": 3}},
        {
            "stage": "click_rates",
            "table": "behaviour",
            "rows_in": 1400,
            "kept": 1310,
            "dropped": 90,
            "reasons": {"weak": 90},
        },
    ],
    "policy": {"resolution": 10.0, "limits": {"max_pixels": 1000000}},
}
CONFIG = {
    "model_type": "oclear",
    "hidden_size": 256,
    "num_concepts": 4,
    "num_memory_slots": 64,
    "text_strength": 0.4,
    "text_config": {"model_type": "bert"},
    "auto_map": {"AutoConfig": "configuration_oclear.OclearConfig", "AutoModel": "modeling_oclear.OclearModel"},
}
FILES: dict[str, Any] = {
    "recipe.json": {
        "name": "emoji",
        "model": {"vision": "efficientnet_lite0"},
        "image": {"steps": 2},
        "head": {"loss": {"kind": "softmax", "scale": 32.0}},
        "text": {"encoder": "minilm"},
        "ensemble": {"num_members": 1, "distil_steps": 0},
    },
    "training.json": {
        "recipe": "emoji",
        "seed": 0,
        "counts": {
            "categories": 40,
            "trained_categories": 36,
            "queries": 880,
            "trained_queries": 800,
            "documents": 130,
            "trained_documents": 115,
            "steps": 2,
        },
        "seconds": {"features": 12.5, "image_side": 30.1},
        "text": {
            "strength": 0.4,
            "table": [
                {"strength": 0.0, "recall_at_1": 0.41, "recall_at_10": 0.71},
                {"strength": 0.4, "recall_at_1": 0.43, "recall_at_10": 0.75},
            ],
        },
    },
    "environment.json": {"python": "3.11.2", "packages": {"torch": "2.13.0"}, "cpu": "test processor", "cores": 2},
    "metrics.json": METRICS,
    "ledger.json": LEDGER,
    "hub/config.json": CONFIG,
}
ATTRIBUTION = "# Attribution\n\n| source | licence |\n|---|---|\n| twemoji | CC-BY-4.0 |\n"


def write_run(folder: Path) -> Path:
    """A run folder with every result file that rendering reads."""
    for name, content in copy.deepcopy(FILES).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    lines = [
        {"step": step, "loss": 9.0 - step, "grad_norm": 1.5, "head_grad_norm": 0.5, "learning_rate": 1e-3}
        | {"samples_per_second": 250.0}
        for step in (1, 2)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "ATTRIBUTION.md").write_text(ATTRIBUTION)
    return folder


def edit_json(path: Path, dotted: str, value: Any = None) -> None:
    """Set a dotted key; with None, take it out."""
    content = json.loads(path.read_text())
    *parents, last = dotted.split(".")
    inner = content
    for key in parents:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    path.write_text(json.dumps(content))


def write_model_folder(folder: Path) -> Path:
    """A folder that passes every check for publishing, with weights of one number: nothing here can be run."""
    (folder / "query").mkdir(parents=True)
    for side in (folder, folder / "query"):
        (side / "config.json").write_text(json.dumps(CONFIG))
        save_file({"weight": np.ones(1, dtype=np.float32)}, side / "model.safetensors")
    (folder / "modeling_oclear.py").write_text('"""Model."""\n\nfrom .fusion_oclear import Fusion\n')
    for name in ("configuration_oclear", "fusion_oclear"):
        (folder / f"{name}.py").write_text('"""Code."""\n')
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# A model\n")
    return folder


def write_governed(folder: Path, *, image_path: str | None = None) -> Path:
    """A governed folder of two samples."""
    (folder / "samples").mkdir(parents=True)
    image = pa.array(
        [{"bytes": b"\x89PNG", "path": image_path}, None], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    samples = pa.table({"sample_id": ["q1", "d1"], "image": image, "text": ["", "a cat"], "split": ["train", "train"]})
    parquet.write_table(samples, folder / "samples" / "part-0.parquet")
    for name in ("categories", "category_map", "ledger"):
        parquet.write_table(pa.table({"key": ["a"]}), folder / f"{name}.parquet")
    (folder / "ledger.json").write_text(json.dumps(LEDGER))
    return folder
