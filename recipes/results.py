"""Run directories: stages done once, files written whole, figures as a table and a plot."""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras

from kerasq.support.files import save_figure, whole_file
from recipes.team import Team

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
        team: who works together: the chief alone writes.
        resume: whether to continue what is there; False removes the record of it first.
    """

    def __init__(self, path: str | os.PathLike, team: Team | None = None, resume: bool = True):
        self.path = Path(path)
        self.team = team or Team()
        self.path.mkdir(parents=True, exist_ok=True)
        if not resume and self.team.is_chief:
            # The records last: as long as they are there, other flags are refused.
            for folder in ("backup", "logs", "stages"):
                if (self.path / folder).exists():
                    shutil.rmtree(self.path / folder)
        self.team.wait()

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
        if self.team.is_chief:
            self._claim(name, settings)
        self.team.wait()
        if not self.team.is_chief:
            self._check(name, settings)
            if together and not self._is_finished(name, artifacts):
                work()
            self.team.wait()
            return read_json(self._record_path(name))["figures"]
        if self._is_finished(name, artifacts):
            figures = read_json(self._record_path(name))["figures"]
            print(f"{name}: finished before, in {figures['seconds']:.1f} s", flush=True)
            self.team.wait()
            return figures
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
        self.team.wait()
        return figures

    def _is_finished(self, name: str, artifacts: tuple[str, ...]) -> bool:
        path = self._record_path(name)
        is_done = path.exists() and "figures" in read_json(path)
        return is_done and all((self.path / artifact).exists() for artifact in artifacts)

    def backup_dir(self, stage: str) -> Path:
        """Where a stage keeps its state between epochs."""
        return self.path / "backup" / stage

    def _record_path(self, name: str) -> Path:
        return self.path / "stages" / f"{name}.json"

    def _claim(self, name: str, settings: Mapping[str, Any]) -> None:
        """Makes the stage's record, or checks that it was made with these settings."""
        path = self._record_path(name)
        if not path.exists():
            write_json(path, {"settings": dict(settings)})
        self._check(name, settings)

    def _check(self, name: str, settings: Mapping[str, Any]) -> None:
        record = read_json(self._record_path(name))
        before, now = record["settings"], json.loads(json.dumps(dict(settings)))
        changed = sorted(k for k in before | now if before.get(k) != now.get(k))
        if changed:
            differences = ", ".join(f"{k}={now.get(k)!r} (was {before.get(k)!r})" for k in changed)
            raise ValueError(
                "A run continues with the flags it was started with, which all workers share. "
                f"Received: {differences} for the stage {name!r} of {self.path}. Choose another "
                "--out, or start over with --noresume."
            )


def plot_curves(path: Path, panels: Mapping[str, Mapping[str, list[float]]]) -> None:
    """Draws accuracies, or losses, after each epoch to a PNG, a panel for each trained stage.

    Args:
        path: of the PNG.
        panels: for each title, the history of that stage (as `recipes.training.fit` returns it).
    """
    from matplotlib.figure import Figure

    trained = {title: history for title, history in panels.items() if history.get("loss")}
    figure = Figure(figsize=(5 * max(1, len(trained)), 4), layout="constrained")
    for axes, (title, history) in zip(
        figure.subplots(1, max(1, len(trained)), squeeze=False)[0], trained.items(), strict=False
    ):
        name, unit = ("accuracy", 100) if "accuracy" in history else ("loss", 1)
        for label, prefix in (("training", ""), ("held out", "val_")):
            values = [unit * value for value in history.get(prefix + name, [])]
            axes.plot(range(1, len(values) + 1), values, marker="o", markersize=3, label=label)
        axes.set(title=title, xlabel="epoch", ylabel="top-1 (%)" if unit == 100 else name)
        if unit == 100:
            axes.set_ylim(top=min(100.5, axes.get_ylim()[1]))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, path)
