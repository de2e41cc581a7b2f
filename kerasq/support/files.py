"""Files that appear whole or not at all."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any


def path_of(path: Any, argument: str = "path") -> pathlib.Path:
    """The path that an argument is.

    Raises:
        ValueError: for what is none.
    """
    if isinstance(path, (str, os.PathLike)):
        return pathlib.Path(path)
    raise ValueError(
        f"`{argument}` must be a path: a string or a pathlib.Path. Received: {path!r:.80}."
    )


def existing_file(path: Any, argument: str = "path") -> pathlib.Path:
    """The path of a file that is there.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: for what is no path.
    """
    found = path_of(path, argument)
    if not found.is_file():
        kind = "a folder" if found.is_dir() else "where there is none"
        raise FileNotFoundError(
            f"`{argument}` must be a file that exists. Received: {str(found)!r}, {kind}."
        )
    return found


def check_writable(path: str | os.PathLike) -> None:
    """Raises an OSError now, before hours of work, where `path` cannot be written later."""
    path = path_of(path)
    if path.is_dir():
        raise IsADirectoryError(f"The path must name a file. Received: directory {str(path)!r}.")
    # `os.replace` would put a file in the place of a device, such as /dev/null.
    if path.exists() and not path.is_file():
        raise OSError(f"The path must name a regular file. Received: {str(path)!r}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"The directory of the file must exist. Received: {str(path)!r}. "
            f"Make {str(path.parent)!r} first."
        )
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(
            f"The directory of the file must be writable. Received: {str(path)!r}."
        )


def make_folder(path: str | os.PathLike) -> pathlib.Path:
    """Makes a folder, where it is not there.

    Raises:
        NotADirectoryError: where a file is called so.
    """
    path = path_of(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            f"The path must name a folder. Received: {str(path)!r}, where a file is."
        ) from error
    return path


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary path beside `path` that takes its place if the block succeeds.

    The temporary name ends like the real one, since Keras chooses a format by the suffix.
    """
    check_writable(path)
    path = pathlib.Path(path).resolve()  # A link stays a link.
    # On the same file system, where a rename is one step, and of this process alone.
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        # The content before the name: after a power cut the file would else be there, but empty.
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        if path.exists():
            temporary.chmod(path.stat().st_mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_figure(figure: Any, path: str | os.PathLike | None) -> None:
    """Writes a matplotlib figure as PNG; nothing where `path` is None."""
    if path is not None:
        with whole_file(path) as temporary:
            # Whatever the suffix is, which matplotlib would go by.
            figure.savefig(temporary, format="png", dpi=120)


def write_whole(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file; one that was there before stays as it was until the new one is complete."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content)
