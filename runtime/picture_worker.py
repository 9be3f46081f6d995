"""A process that decodes pictures for `runtime/picture_workers.py`: one request after the other, from stdin to stdout.

A message is a line of JSON, then as many bytes as it says. A request holds the bytes of a file and the options of
`decode_image`; the reply holds the pixels, or the reason why there are none.
"""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import IO, Any

from modeling_oclear.image_decoding_oclear import ImageRefused, decode_image

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]


def write(stream: IO[bytes], header: dict[str, Any], content: bytes) -> None:
    """Send one message."""
    stream.write(json.dumps(header | {"bytes": len(content)}).encode() + b"\n")
    stream.write(content)
    stream.flush()


def read(stream: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """Receive one message.

    Raises:
        EOFError: the other side has ended.
    """
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    header: dict[str, Any] = json.loads(line)
    content = stream.read(header["bytes"])
    if len(content) < header["bytes"]:
        raise EOFError
    return header, content


def limit_memory(more_bytes: int) -> None:
    """Let this process take so many bytes beyond what it has, and leave no core file; without effect on Windows."""
    if resource is None:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):  # macOS has neither the count nor the limit
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + more_bytes, taken + more_bytes))


def limit_seconds(seconds: float) -> None:
    """End this process after so many CPU seconds from now; 0 takes the limit back."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def answer(data: bytes, options: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """The reply to one request."""
    try:
        picture = decode_image(data, **options)
    except ImageRefused as error:
        return {"reason": error.reason, "sentence": str(error)}, b""
    return {"mode": picture.mode, "size": picture.size}, picture.tobytes()


def main() -> None:
    """Serve until stdin ends, which it does when the process that asks has ended, even if that was killed."""
    more_bytes, seconds = int(sys.argv[1]), float(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests = sys.stdin.buffer
    # A library that prints must not write into the replies.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    limit_memory(more_bytes)
    write(replies, {}, b"")
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            options, data = read(requests)
            del options["bytes"]
            limit_seconds(seconds)
            try:
                reply = answer(data, options)
            except MemoryError:
                reply = {"reason": "image_undecodable", "sentence": "image needs too much memory to be decoded"}, b""
            limit_seconds(0)
            write(replies, *reply)


if __name__ == "__main__":
    main()
