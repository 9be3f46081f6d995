"""The environment record names versions and hardware, and nothing about the user."""

import getpass
import json
import platform
from pathlib import Path

import numpy as np
import psutil

from runtime.environment import PACKAGES, environment, package_versions


def test_the_record_names_versions_and_hardware() -> None:
    found = environment()
    assert list(found) == ["python", *PACKAGES, "cpu", "cores", "memory_gib", "os"]
    assert found["numpy"] == np.__version__
    assert found["memory_gib"] == round(psutil.virtual_memory().total / 2**30, 1)


def test_the_record_tells_nothing_about_host_user_or_paths() -> None:
    text = json.dumps(environment())
    assert platform.node() not in text
    assert f'"{getpass.getuser()}"' not in text
    assert not {str(Path.cwd()), str(Path.home())} & set(environment().values())


def test_a_package_that_is_not_installed_is_absent() -> None:
    assert package_versions(["no-such-package-here"]) == {"no-such-package-here": None}
    assert environment(["no-such-package-here"])["no-such-package-here"] == "absent"
