"""`oclear serve`: the service as a process."""

import argparse
import contextlib
import json
import logging
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime import logs
from runtime.devices import DEVICES

EXAMPLES = """examples:
  oclear serve --model runs/mine/hub --index index
  OCLEAR_API_KEYS=a-long-key oclear serve --model runs/mine/hub --index index --host 0.0.0.0
  curl -F image=@photo.png -F k=5 -F "where=price < 50" http://127.0.0.1:8000/search
"""


def argument_parser() -> argparse.ArgumentParser:
    """Flags of the command."""
    parser = argparse.ArgumentParser(
        prog="oclear serve",
        description="Serve a model and an index over HTTP, with a search page.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, metavar="FOLDER", help="published folder (runs/x/hub) or Hub id")
    parser.add_argument("--index", required=True, type=Path, metavar="FOLDER", help="index folder; watched for changes")
    parser.add_argument("--host", default="127.0.0.1", help="default %(default)s: this machine alone")
    parser.add_argument("--port", type=int, default=8000, help="default %(default)s; 0 takes a free one")
    parser.add_argument(
        "--backend", choices=("auto", "onnx", "torch"), default="auto", help="auto: ONNX where it was exported"
    )
    parser.add_argument("--device", default="auto", help=f"of torch: {DEVICES}")
    parser.add_argument("--threads", type=int, metavar="N", help="default: OCLEAR_THREADS, else the idle cores")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="pictures of one forward pass, at most")
    parser.add_argument("--rate", type=float, default=0.0, metavar="N", help="requests a second of one key or address")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM; requests that are being answered are finished.

    Returns:
        0, or 2 for a model, an index or a flag that cannot be used.
    """
    options = argument_parser().parse_args(arguments)
    logs.configure(formatter=JsonLines())
    try:
        _serve(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


class JsonLines(logging.Formatter):
    """One JSON object a line; what is one already stays as it is."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        text = super().format(record)
        return text if text.startswith("{") else json.dumps({"level": record.levelname.lower(), "message": text})


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"--host {host} --port {port}: {reason}; choose another port, or 0 for a free one") from error


def _serve(options: argparse.Namespace) -> None:
    try:
        import faiss
        import uvicorn

        from oclear.service.api import create_app
    except ModuleNotFoundError as error:
        raise ValueError(f"the service needs {error.name}: pip install 'oclear[serve]'") from error
    import torch

    from oclear.service.settings import Settings, keys_of
    from runtime.threads import num_threads

    if options.batch < 1 or options.rate < 0 or not 0 <= options.port < 65536:
        raise ValueError("--batch is at least 1, --rate at least 0, --port 0 to 65535")
    threads = options.threads or num_threads()
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    search_keys, write_keys = keys_of()
    settings = Settings(
        options.model,
        options.index,
        backend=options.backend,
        device=options.device,
        batch=options.batch,
        rate=options.rate,
        search_keys=search_keys,
        write_keys=write_keys,
    )
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=options.host,
        port=options.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=30,
    )
    server = uvicorn.Server(config)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    with contextlib.closing(_listener(options.host, options.port)) as listener:
        host, port = listener.getsockname()[:2]
        state = app.app.state.engine.state  # type: ignore[attr-defined]
        backend = type(state.model).__name__.replace("Model", "").lower() or "torch"
        print(f"http://{host}:{port}  {len(state.index)} documents, {backend}, {threads} threads", flush=True)
        server.run(sockets=[listener])


if __name__ == "__main__":
    sys.exit(main())
