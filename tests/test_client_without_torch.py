"""The client needs httpx and pydantic, nothing of the server: it is installed and tested alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CLIENT = Path(__file__).parents[1] / "clients" / "ppd_client"
ABSENT = ["torch", "numpy", "PIL", "ray", "ppd_serve"]


@pytest.mark.slow
def test_the_client_passes_its_tests_in_an_environment_of_its_own(tmp_path: Path) -> None:
    # A copy, because a build leaves files behind, and nothing of this environment may lend a hand.
    source = tmp_path / "source"
    shutil.copytree(CLIENT, source, ignore=shutil.ignore_patterns("*.egg-info", "build"))
    python = tmp_path / "venv" / "bin" / "python"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST"))}

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    run(sys.executable, "-m", "venv", tmp_path / "venv")
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{source}[test]")
    run(
        python,
        "-c",
        "import importlib.util as u, ppd_client as c; assert 'site-packages' in c.__file__;"
        f"found = [n for n in {ABSENT} if u.find_spec(n)]; assert not found, found",
    )
    shutil.rmtree(source / "ppd_client")  # so that the tests can only see what was installed
    tests = run(python, "-m", "pytest", "-q", "-c", source / "pyproject.toml", source / "tests")
    assert " passed" in tests
