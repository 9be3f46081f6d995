"""Run damaged image files through the decoder in a process with a memory limit.

    python -m tests.fuzz.run --files 30000      # what `make test-fuzz` runs
    python -m tests.fuzz.run --show 1234        # write file 1234 to stdout

Every file must give a picture or a reason: no other error, no crash, at most 1 GiB beyond what the empty process has,
at most two seconds of processor time. A process that ends or hangs is replaced by one that begins with the next file.
"""

import argparse
import json
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

MOST_BYTES = 2**30
MOST_SECONDS = 2.0
LEAST_SIDE = 64
# Seconds of processor time for one file, and of time on a machine that is busy otherwise.
LOOPS_AFTER, HANGS_AFTER = 20, 600
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Outcome:
    """Files by verdict, and what went wrong: (number, kind, problem)."""

    verdicts: Counter[str] = field(default_factory=Counter)
    problems: list[tuple[int, str, str]] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, -1)
    peak_bytes: int = 0

    @property
    def files(self) -> int:
        return sum(self.verdicts.values())


def fuzz(start: int, stop: int) -> Outcome:
    """Decode files `start` to `stop` in child processes."""
    outcome = Outcome()
    while start < stop:
        words = [sys.executable, "-m", "tests.fuzz.run", "--child", str(start), str(stop)]
        child = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        last = None
        for line in child.stdout.splitlines():
            last = json.loads(line)
            _record(outcome, last)
        if child.returncode == 0:
            break
        if last is None:
            raise RuntimeError(f"the child did not start: {child.stderr[-2000:]}")
        begun = last["begun"]
        outcome.verdicts["crash"] += 1
        outcome.problems.append((begun, last["kind"], f"exit {child.returncode}: {child.stderr[-300:].strip()}"))
        start = begun + 1
    return outcome


def _record(outcome: Outcome, row: dict[str, object]) -> None:
    if "verdict" not in row:
        return
    number, kind, verdict = int(str(row["number"])), str(row["kind"]), str(row["verdict"])
    outcome.verdicts[verdict] += 1
    seconds = float(str(row["seconds"]))
    outcome.slowest = max(outcome.slowest, (seconds, number))
    outcome.peak_bytes = max(outcome.peak_bytes, int(str(row["peak"])))
    if row["problem"]:
        outcome.problems.append((number, kind, str(row["problem"])))
    if seconds > MOST_SECONDS:
        outcome.problems.append((number, kind, f"{seconds:.1f} s"))


def child(start: int, stop: int) -> None:
    """Decode in this process; one line before each file and one after it."""
    from modeling_oclear.image_decoding_oclear import ImageRefused, decode_image
    from tests.fuzz.damage import damaged, seeds

    seeds()
    empty = _pages()
    resource.setrlimit(resource.RLIMIT_AS, (empty + MOST_BYTES, empty + MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    rss = _peak()
    for number in range(start, stop):
        kind, data = damaged(number)
        print(json.dumps({"begun": number, "kind": kind}), flush=True)
        signal.setitimer(signal.ITIMER_PROF, LOOPS_AFTER)
        signal.alarm(HANGS_AFTER)
        began, problem = time.process_time(), ""
        try:
            # Every other file as for a small square: a JPEG is then decoded at a reduced size.
            picture = decode_image(data, least_side=LEAST_SIDE if number % 2 else None)
            verdict = "picture"
            if picture.mode not in ("RGB", "RGBA") or picture.info:
                problem = f"mode {picture.mode}, info {sorted(picture.info)}"
        except ImageRefused as error:
            verdict = error.reason
            if "MemoryError" in str(error) or len(str(error).splitlines()) != 1:
                problem = str(error)
        except BaseException as error:  # noqa: BLE001 - this is what the run looks for
            verdict, problem = "escape", repr(error)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        row = {"begun": number, "number": number, "kind": kind, "verdict": verdict, "problem": problem}
        print(json.dumps({**row, "seconds": time.process_time() - began, "peak": _peak() - rss}), flush=True)


def _pages() -> int:
    """Bytes of address space in use."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    """Print the verdicts; exit code 1 if a file gave neither a picture nor a reason within the limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=30_000)
    parser.add_argument("--start", type=int, default=0, help="number of the first file")
    parser.add_argument("--show", type=int, metavar="NUMBER", help="write one file to stdout")
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return 0
    if options.show is not None:
        from tests.fuzz.damage import damaged

        sys.stdout.buffer.write(damaged(options.show)[1])
        return 0
    began = time.monotonic()
    outcome = fuzz(options.start, options.start + options.files)
    for verdict, count in outcome.verdicts.most_common():
        print(f"{verdict}: {count}")
    slowest, number = outcome.slowest
    print(f"slowest: {slowest:.2f} s (file {number}); memory: {outcome.peak_bytes / 2**20:.0f} MiB more than empty")
    print(f"{outcome.files} files in {time.monotonic() - began:.0f} s, {len(outcome.problems)} problems")
    for number, kind, problem in outcome.problems:
        print(f"file {number} ({kind}): {problem}")
    return int(bool(outcome.problems))


if __name__ == "__main__":
    sys.exit(main())
