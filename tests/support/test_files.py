import errno
import os
import resource
import stat

import pytest

from kerasq.support import files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", [b"", b"new", bytes(range(256)) * 5000])
def test_writes_the_content_and_leaves_nothing_else(tmp_path, content):
    path = tmp_path / "model.tflite"
    files.write_whole(path, content)
    assert path.read_bytes() == content
    files.write_whole(str(path), content + b"!")
    assert path.read_bytes() == content + b"!"
    assert names(tmp_path) == ["model.tflite"]


def test_a_relative_name_is_written_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.write_whole("model.tflite", b"x")
    assert names(tmp_path) == ["model.tflite"]


@pytest.mark.parametrize("step", ["replace", "fsync"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_full_disk_leaves_the_old_file_whole(tmp_path, monkeypatch, step, exists):
    path = tmp_path / "model.tflite"
    if exists:
        path.write_bytes(b"old")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left on device"):
        files.write_whole(path, b"new")
    assert names(tmp_path) == (["model.tflite"] if exists else [])
    if exists:
        assert path.read_bytes() == b"old"


def test_a_write_that_stops_midway_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            files.write_whole(path, bytes(1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["model.tflite"] and path.read_bytes() == b"old"


def test_whole_file_takes_the_place_only_where_the_block_succeeds(tmp_path):
    path = tmp_path / "model.keras"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="halfway"), files.whole_file(path) as temporary:
        assert temporary.suffix == ".keras" and temporary.parent == tmp_path
        temporary.write_bytes(b"half")
        raise RuntimeError("halfway")
    assert names(tmp_path) == ["model.keras"] and path.read_bytes() == b"old"
    with files.whole_file(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["model.keras"] and path.read_bytes() == b"new"


def test_readers_see_the_old_file_until_the_new_one_is_complete(tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")
    replace, seen = os.replace, []

    def spy(source, target):
        with open(source, "rb") as file:
            seen.append((path.read_bytes(), file.read(), os.path.dirname(source)))
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    files.write_whole(path, b"new")
    assert seen == [(b"old", b"new", str(tmp_path))]
    assert path.read_bytes() == b"new"


def test_an_interrupt_cleans_up_too(tmp_path, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt("stop")

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt, match="stop"):
        files.write_whole(tmp_path / "model.tflite", b"new")
    assert names(tmp_path) == []


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664])
def test_an_existing_file_keeps_its_permissions(tmp_path, mode):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")
    path.chmod(mode)
    files.write_whole(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_whole(tmp_path / "ours", b"x")
        (tmp_path / "plain").write_bytes(b"x")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("act", [files.check_writable, lambda path: files.write_whole(path, b"x")])
def test_paths_that_cannot_be_written_are_an_error(tmp_path, act):
    with pytest.raises(IsADirectoryError, match=r"must name a file\. Received: directory"):
        act(tmp_path)
    missing = tmp_path / "missing" / "model.tflite"
    with pytest.raises(FileNotFoundError, match=r"directory of the file must exist.*missing"):
        act(missing)
    assert names(tmp_path) == []


def test_a_directory_without_write_permission_is_an_error(tmp_path, monkeypatch):
    # Root may write anywhere, so that the answer of the system is replaced.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=r"must be writable. Received: .*model\.tflite"):
        files.check_writable(tmp_path / "model.tflite")


def test_checking_writes_nothing(tmp_path):
    path = tmp_path / "model.tflite"
    files.check_writable(path)
    assert names(tmp_path) == []
    path.write_bytes(b"old")
    files.check_writable(path)
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("value", [None, 3, b"a", ["a"]])
def test_what_is_no_path_is_named(value):
    for act in (files.path_of, files.check_writable, files.make_folder, files.existing_file):
        with pytest.raises(ValueError, match=r"`path` must be a path: .* Received: "):
            act(value)


def test_a_file_must_be_there(tmp_path):
    (tmp_path / "a").touch()
    assert files.existing_file(str(tmp_path / "a")) == tmp_path / "a"
    for name, kind in (("b", "where there is none"), (".", "a folder")):
        with pytest.raises(FileNotFoundError, match=f"`logs` must be a file .*{kind}"):
            files.existing_file(tmp_path / name, "logs")
