"""`kerasq` as a command in a shell: TensorFlow's own log stays out of it.

What is imported first of all, as TensorFlow writes its first lines while it is imported. A program
that imports kerasq has the log as ever.
"""

import os
import pathlib
import sys

from kerasq.support import stderr

# Where a user has set it, TensorFlow says what is asked for.
LEVEL = "TF_CPP_MIN_LOG_LEVEL"


def is_command() -> bool:
    """Whether this process is `kerasq`, or `python -m kerasq`."""
    # While Python looks for what `-m` names, that is all that is known of it.
    if sys.argv[:1] == ["-m"]:
        return bool({"kerasq", "-mkerasq"} & {*sys.orig_argv})
    return pathlib.Path((sys.argv or [""])[0]).name in ("kerasq", "kerasq.exe")


def quiet() -> bool:
    """Keeps TensorFlow quiet; whether it does.

    Of no other process than the command, and not where the user has set the level.
    """
    if LEVEL in os.environ or not is_command():
        return False
    os.environ[LEVEL] = "3"
    # Its first lines come whatever the level is.
    with stderr.aside():
        import tensorflow  # noqa: F401
    return True


IS_QUIET = quiet()
