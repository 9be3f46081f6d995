"""The first damaged files of `make test-fuzz`, and files that would break its limits."""

import subprocess
import sys

from tests.fuzz.damage import KINDS, damaged
from tests.fuzz.run import ROOT, fuzz

FILES = 28 * 40  # some ten seconds


def test_damaged_files_give_a_picture_or_a_reason_within_memory_and_time() -> None:
    outcome = fuzz(0, FILES)
    assert outcome.problems == []
    assert outcome.files == FILES
    assert set(outcome.verdicts) <= {"picture", "image_undecodable", "image_too_many_pixels", "image_format_refused"}
    assert outcome.verdicts["picture"] > FILES / 10
    assert outcome.verdicts["image_undecodable"] > FILES / 10


def test_files_are_of_28_kinds_and_the_same_every_time() -> None:
    assert len(KINDS) == 28
    assert [damaged(number)[0] for number in range(28)] == [kind.__name__ for kind in KINDS]
    words = [sys.executable, "-m", "tests.fuzz.run", "--show", "57"]
    assert subprocess.run(words, cwd=ROOT, capture_output=True, check=True).stdout == damaged(57)[1]
