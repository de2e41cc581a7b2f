"""What C++ writes to standard error: nothing but the descriptor is its."""

import os
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
