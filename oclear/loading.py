"""`oclear.load`: a published model, computed by torch or by ONNX Runtime."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

if TYPE_CHECKING:
    from oclear.model import Model
    from oclear.onnx_model import OnnxModel


@overload
def load(name: str | Path, *, device: str = "auto", backend: Literal["torch"] = "torch") -> "Model": ...


@overload
def load(name: str | Path, *, device: str = "auto", backend: Literal["onnx"]) -> "OnnxModel": ...


def load(name: str | Path, *, device: str = "auto", backend: str = "torch") -> Any:
    """Load a published model.

    With torch the Python files of the folder are run (remote code) unless this package is installed: load only what you
    trust.

    Args:
        name: a folder, or owner/name on the Hub.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1" or "mps"; ONNX runs on the CPU.
        backend: "torch", or "onnx" for what `oclear export` has written. That one needs neither torch nor
            transformers, runs no code of the folder, and encodes only: an index is built with torch.

    Raises:
        ValueError: no such folder or repository, a folder of another kind, or a device or backend that is not there.
    """
    if backend == "onnx":
        if device not in ("auto", "cpu"):
            raise ValueError(f"device is {device!r}; the ONNX backend runs on the CPU: leave device out")
        try:
            from oclear.onnx_model import load_onnx
        except ModuleNotFoundError as error:
            raise ValueError(f"backend 'onnx' needs {error.name}: pip install 'oclear[onnx]'") from error
        return load_onnx(name)
    if backend != "torch":
        raise ValueError(f"backend is {backend!r}; choose 'torch' or 'onnx'")
    from oclear.model import Model
    from retrieval.encoder import load_encoder

    return Model(load_encoder(str(name), device=device))
