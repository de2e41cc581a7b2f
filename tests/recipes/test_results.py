import types

import pytest

from recipes import results


def test_stage_runs_once_and_again_without_its_artifact(tmp_path):
    directory, calls = results.RunDirectory(tmp_path), []

    def work():
        calls.append(1)
        (tmp_path / "a.txt").write_text("a")
        return {"accuracy": 0.5, "seconds": 60.0}  # those before an interruption

    for _ in range(2):
        figures = directory.stage("float", {"seed": 0}, ("a.txt",), work)
        assert figures["accuracy"] == 0.5 and 60.0 < figures["seconds"] < 120.0
    assert len(calls) == 1
    (tmp_path / "a.txt").unlink()
    directory.stage("float", {"seed": 0}, ("a.txt",), work)
    assert len(calls) == 2


@pytest.mark.parametrize("finished", [True, False])
def test_changed_flags_are_refused_even_after_an_interruption(tmp_path, finished):
    directory = results.RunDirectory(tmp_path)

    def work():
        if not finished:
            raise KeyboardInterrupt
        return {}

    if finished:
        directory.stage("float", {"seed": 0}, (), work)
    else:
        with pytest.raises(KeyboardInterrupt):
            directory.stage("float", {"seed": 0}, (), work)
    with pytest.raises(ValueError, match=r"seed=1 \(was 0\).*another --out, or start over with"):
        directory.stage("float", {"seed": 1}, (), work)


def test_a_stage_that_failed_takes_other_flags(tmp_path):
    directory = results.RunDirectory(tmp_path)

    def work():
        raise MemoryError

    with pytest.raises(MemoryError):
        directory.stage("float", {"batch_size": 4096}, (), work)
    directory.stage("float", {"batch_size": 32}, (), lambda: {})


def test_a_worker_has_the_flags_of_the_chief(tmp_path):
    results.RunDirectory(tmp_path).stage("train", {"seed": 1}, (), lambda: {"loss": 2.0})
    worker = results.RunDirectory(tmp_path, types.SimpleNamespace(is_chief=False))
    assert worker.stage("train", {"seed": 1}, (), lambda: {})["loss"] == 2.0
    with pytest.raises(ValueError, match=r"which all workers share\. Received: seed=2 \(was 1\)"):
        worker.stage("train", {"seed": 2}, (), lambda: {})


def test_starting_over(tmp_path):
    directory = results.RunDirectory(tmp_path)
    directory.stage("float", {"seed": 0}, (), lambda: {"accuracy": 0.5})
    (directory.backup_dir("finetune")).mkdir(parents=True)
    (tmp_path / "mine.txt").write_text("kept")
    again = results.RunDirectory(tmp_path, resume=False)
    assert not directory.backup_dir("finetune").exists()
    assert again.stage("float", {"seed": 1}, (), lambda: {"accuracy": 0.7})["accuracy"] == 0.7
    assert (tmp_path / "mine.txt").exists()


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "r.json"
    results.write_json(target, {"a": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        results.write_json(target, {"a": object()})
    assert results.read_json(target) == {"a": 1}
    assert [f.name for f in tmp_path.iterdir()] == ["r.json"]
