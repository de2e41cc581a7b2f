"""Run directories: stages done once, files written whole."""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from kerasq.support.files import whole_file
from kerasq.training.distribute import is_chief
from recipes import team

Figures = dict[str, Any]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes `value` as indented JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object."""
    return json.loads(path.read_text())


def save_model(model: keras.Model, path: Path) -> None:
    """Saves a .keras file, whole or not at all."""
    with whole_file(path) as temporary:
        model.save(temporary)


class RunDirectory:
    """The folder of one run: its artifacts, and a record of each finished stage.

    A stage is finished when its record exists, which is written after its artifact; the record
    holds the settings it was run with, so that a run with other settings cannot continue it.

    Args:
        path: the folder; made if missing. Workers of a cluster must share it.
        strategy: who works together: the chief alone writes.
        resume: whether to continue what is there; False removes the record of it first.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        strategy: tf.distribute.Strategy | None = None,
        resume: bool = True,
    ) -> None:
        self.path = Path(path)
        self.strategy = strategy or tf.distribute.get_strategy()
        self.is_chief = is_chief(self.strategy)
        self.path.mkdir(parents=True, exist_ok=True)
        if not resume and self.is_chief:
            # The records last: as long as they are there, other flags are refused.
            for folder in ("backup", "logs", "stages"):
                if (self.path / folder).exists():
                    shutil.rmtree(self.path / folder)
        team.wait(self.strategy)

    def stage(
        self,
        name: str,
        settings: Mapping[str, Any],
        artifacts: tuple[str, ...],
        work: Callable[[], Figures],
        together: bool = False,
    ) -> Figures:
        """Runs `work` unless the stage was finished before; returns its figures.

        Args:
            name: of the stage.
            settings: everything the stage's result depends on, as JSON values.
            artifacts: names of the files the stage leaves in the folder.
            work: does the stage, writes the artifacts and returns figures as JSON values; as
                `seconds`, those that were spent on it before an interruption.
            together: whether all workers do it; otherwise they wait for the chief.

        Returns:
            What `work` returned, now or before, and the `seconds` it took, in all.

        Raises:
            ValueError: the stage was started before, or by the chief, with other settings.
        """
        path = self._record_path(name)
        if self.is_chief and not path.exists():
            write_json(path, {"settings": dict(settings)})
        team.wait(self.strategy)
        self._check(name, settings)
        is_done = self._is_finished(name, artifacts)
        if not is_done and self.is_chief:
            self._do(name, settings, work)
        elif not is_done and together:
            work()
        team.wait(self.strategy)  # The chief has written the figures.
        figures = read_json(path)["figures"]
        if is_done and self.is_chief:
            print(f"{name}: finished before, in {figures['seconds']:.1f} s", flush=True)
        return figures

    def _do(self, name: str, settings: Mapping[str, Any], work: Callable[[], Figures]) -> None:
        """Does a stage and writes its figures."""
        print(f"\n== {name} ==", flush=True)
        start = time.perf_counter()
        try:
            figures = work()
        except Exception:  # What was wrong may be a flag: the next run may change it.
            if not self.backup_dir(name).exists():
                self._record_path(name).unlink()
            raise
        figures["seconds"] = figures.get("seconds", 0.0) + time.perf_counter() - start
        write_json(self._record_path(name), {"settings": dict(settings), "figures": figures})

    def _is_finished(self, name: str, artifacts: tuple[str, ...]) -> bool:
        has_figures = "figures" in read_json(self._record_path(name))
        return has_figures and all((self.path / artifact).exists() for artifact in artifacts)

    def settings(self, stage: str) -> dict[str, Any]:
        """What a stage was started with."""
        return read_json(self._record_path(stage))["settings"]

    def backup_dir(self, stage: str) -> Path:
        """Where a stage keeps its state between epochs."""
        return self.path / "backup" / stage

    def _record_path(self, name: str) -> Path:
        return self.path / "stages" / f"{name}.json"

    def _check(self, name: str, settings: Mapping[str, Any]) -> None:
        # As JSON gives them back: tuples are lists there.
        before, now = self.settings(name), json.loads(json.dumps(dict(settings)))
        changed = sorted(k for k in before | now if before.get(k) != now.get(k))
        if changed:
            differences = ", ".join(f"{k}={now.get(k)!r} (was {before.get(k)!r})" for k in changed)
            raise ValueError(
                "A run continues with the flags it was started with, which all workers share. "
                f"Received: {differences} for the stage {name!r} of {self.path}. Choose another "
                "--out, or start over with --noresume."
            )
