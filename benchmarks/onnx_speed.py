"""Compare queries embedded by torch and by ONNX Runtime, side by side on one core.

Both backends get the same pixel values; decoding and resizing are not counted. Torch runs as `oclear search` runs it,
with fused kernels. The calls alternate, so that other work on the machine slows both.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import oclear
from benchmarks import result_file

BATCHES = (1, 32)
REPEATS = {1: 100, 32: 8}


def seconds(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each call; one uncounted call of each comes first."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(repeats + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if number:
                found[name].append(time.process_time() - start)
    return {name: float(np.median(values)) for name, values in found.items()}


def measured(folder: str) -> dict[str, Any]:
    """Milliseconds of a picture with both backends and their ratio, by batch size."""
    torch.set_num_threads(1)
    by_torch, by_onnx = oclear.load(folder, device="cpu"), oclear.load(folder, backend="onnx")
    size = by_onnx.facts["geometry"]["size"]
    rows: dict[str, Any] = {}
    for batch in BATCHES:
        pixels = np.random.default_rng(0).standard_normal((batch, 3, size, size)).astype(np.float32)
        tensor, network = torch.from_numpy(pixels), by_torch.encoder.model

        def torch_call(tensor: torch.Tensor = tensor, network: Any = network) -> torch.Tensor:
            with torch.inference_mode():
                return network.get_query_embeds(tensor)

        def onnx_call(pixels: np.ndarray = pixels) -> np.ndarray:
            return by_onnx.query_embeds(pixels)

        gap = float(np.abs(torch_call().numpy() - onnx_call()).max())
        spent = seconds({"torch": torch_call, "onnx": onnx_call}, REPEATS[batch])
        rows[str(batch)] = {
            "torch_ms": round(1000 * spent["torch"] / batch, 3),
            "onnx_ms": round(1000 * spent["onnx"] / batch, 3),
            "torch_over_onnx": round(spent["torch"] / spent["onnx"], 2),
            "largest_difference": gap,
        }
    return {"image_size": size, "batches": rows}


def main(words: list[str] | None = None) -> int:
    parser = result_file.command_parser(
        "onnx_speed", str(__doc__), example="python -m benchmarks.onnx_speed --model runs/demo/hub"
    )
    parser.add_argument("--model", required=True, help="published folder that `oclear export` has written into")
    options = parser.parse_args(words)
    try:
        found = measured(options.model)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    result_file.write_result("onnx_speed", found, options.json, words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
