"""Only the command, and only where nothing else is asked for, keeps TensorFlow quiet."""

import os
import sys

import pytest

from kerasq.support import shell


@pytest.mark.parametrize(
    ("argv", "original", "is_command"),
    [
        (["/usr/bin/kerasq", "inspect"], [], True),
        (["-m"], ["python", "-m", "kerasq", "inspect"], True),
        (["-m"], ["python", "-m", "pytest"], False),
        (["train.py", "kerasq"], [], False),
        ([], [], False),
    ],
)
def test_the_command_is_told_from_programs(monkeypatch, argv, original, is_command):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", original)
    assert shell.is_command() == is_command


@pytest.mark.parametrize(
    ("argv", "level", "after"),
    [
        (["kerasq"], None, "3"),
        (["kerasq"], "1", "1"),
        (["train.py"], None, None),
    ],
)
def test_the_level_is_set_where_the_user_has_set_none(monkeypatch, argv, level, after):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setenv(shell.LEVEL, level or "")
    if level is None:
        monkeypatch.delenv(shell.LEVEL)
    assert shell.quiet() == (after == "3")
    assert os.environ.get(shell.LEVEL) == after
