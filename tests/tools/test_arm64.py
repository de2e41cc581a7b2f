"""tools/arm64, with a processor that only says what it is to run."""

import os
import pathlib
import shutil
import subprocess
from importlib import metadata

import pytest

TOOLS = pathlib.Path(__file__).parents[2] / "tools"
SCRIPTS = ["arm64", "benchmark", "demo", "package", "setup.sh", "site", "test", "zoo"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_bash(name):
    assert (TOOLS / name).read_text().startswith("#")
    subprocess.run(["bash", "-n", TOOLS / name], check=True, timeout=60)


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def root(tmp_path):
    """A repository whose emulated processor is there already."""
    (tmp_path / "tools").mkdir()
    shutil.copy(TOOLS / "arm64", tmp_path / "tools")
    (tmp_path / "tools" / "setup.sh").write_text("ensure_venv() { :; }\n")
    arm = tmp_path / ".arm64"
    loader = arm / "qemu" / "usr" / "lib" / "x86_64-linux-gnu" / "ld-linux-x86-64.so.2"
    program(loader, 'printf "%s\\n" "$@"')
    (arm / "installed").write_text(metadata.version("ai-edge-litert") + "\n")
    asked = 'case "$2" in *check_kernels*) echo "$2";; *) echo "$VERSION";; esac'
    program(tmp_path / "bin" / "python", asked)
    return tmp_path


def run(root, *arguments, **environment):
    own = {"PATH": f"{root / 'bin'}:{os.environ['PATH']}"}
    own["VERSION"] = metadata.version("ai-edge-litert")
    done = subprocess.run(
        ["bash", root / "tools" / "arm64", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | own | environment,
        check=True,
        timeout=60,
    )
    return done.stdout.splitlines()


def test_programs_and_processors(root):
    said = run(root, "program.py", "two words")
    assert said[-2:] == ["program.py", "two words"]
    assert said[-3].endswith("/root/usr/bin/python3.11")
    assert said[said.index("-cpu") + 1] == "cortex-a76"
    assert "cortex-a53" in run(root, "program.py", CPU="cortex-a53")


def test_without_a_program_it_runs_the_probes(root):
    said = run(root)
    assert said[0] == 'import kerasq; kerasq.check_kernels(path=".arm64/probes.pyz")'
    assert said[-1] == ".arm64/probes.pyz"
