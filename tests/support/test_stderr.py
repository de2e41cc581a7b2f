"""What C++ writes to standard error: nothing but the descriptor is its."""

import os
import subprocess
import sys

import pytest

from kerasq.support import stderr


def test_lines_of_cpp_are_held(capfd):
    with stderr.held() as lines:
        os.write(2, b"one\ntwo\n")
        assert lines == []
    assert lines == ["one", "two"]
    os.write(2, b"three\n")
    assert capfd.readouterr().err == "three\n"


def test_python_writes_as_ever(capfd):
    with stderr.aside():
        os.write(2, b"chatter\n")
        print("an error", file=sys.stderr)
    assert capfd.readouterr().err == "an error\n"


def test_what_was_held_comes_with_an_error(capfd):
    with pytest.raises(KeyError), stderr.aside():
        os.write(2, b"the reason\n")
        raise KeyError
    assert capfd.readouterr().err == "the reason\n"


def in_a_process(code, **options):
    """Python runs `code` in another process, where `aside` is that of the module alone."""
    head = f"import os, runpy\naside = runpy.run_path({stderr.__file__!r})['aside']\n"
    command = [sys.executable, "-c", head + code]
    return subprocess.run(command, text=True, timeout=60, stdout=subprocess.PIPE, **options)


def test_a_process_that_cpp_ends_says_where():
    done = in_a_process("with aside():\n    os.abort()", stderr=subprocess.PIPE)
    assert done.returncode < 0 and "line 4 in <module>" in done.stderr


def test_standard_error_may_be_closed(tmp_path):
    # The first file that is opened would get its number, and what C++ writes.
    code = f"""
with aside():
    file = open({str(tmp_path / "data")!r}, "w")
    os.write(2, b"chatter")
print(file.fileno() > 2)
"""
    assert in_a_process(code, preexec_fn=lambda: os.close(2)).stdout == "True\n"
