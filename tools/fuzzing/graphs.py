"""Random programs, one after the other; those that fail are made smaller."""

import time
import warnings
from collections.abc import Callable, Collection

import hypothesis
import keras
from hypothesis import HealthCheck, Phase

from tools.fuzzing import checks, programs

# What making a failing program smaller may take.
SHRINK_SECONDS = 60.0
# Programs after which Keras's memory is cleared; with it all that TensorFlow has ready to run.
_CLEARED = 20


class _Enough(KeyboardInterrupt):
    """Ends a search of hypothesis, which lets no other exception through."""


class _Trial:
    """Runs programs for hypothesis, which repeats and shrinks one that fails."""

    def __init__(self, tally: checks.Tally, known: set[str], before: Callable[[str], None]) -> None:
        self.tally = tally
        self.known = known
        self.before = before
        self._verdicts: dict[str, checks.Verdict] = {}
        self._errors: dict[str, type[Exception]] = {}
        self._failed_at: float | None = None

    def run(self, program: str) -> None:
        """Runs a program; an error where it fails as none did before."""
        if self._failed_at is not None and time.monotonic() > self._failed_at + SHRINK_SECONDS:
            raise _Enough
        verdict = self._verdict(program)
        name = verdict.signature
        if verdict.kind not in checks.FAILURES or name in self.known:
            return
        self._failed_at = self._failed_at or time.monotonic()
        self.tally.fail(program, verdict)
        # One class a cause: by it hypothesis tells that a smaller program still fails as it did.
        raise self._errors.setdefault(name, type("FailedError", (Exception,), {}))(verdict.detail)

    def _verdict(self, program: str) -> checks.Verdict:
        if program not in self._verdicts:
            if len(self._verdicts) % _CLEARED == 0:
                keras.backend.clear_session()
            self.before(program)
            self._verdicts[program] = checks.outcome(program)
            if self._failed_at is None:  # Behind a failure they are not random any more.
                self.tally.count(self._verdicts[program])
        return self._verdicts[program]


def run(
    count: int,
    seed: int,
    known: Collection[str],
    tally: checks.Tally,
    before: Callable[[str], None],
) -> None:
    """Runs random programs.

    Args:
        count: how many, besides those that a failing one is made smaller by.
        seed: of the programs.
        known: signatures of failures that are counted only.
        tally: what they did.
        before: called with each program before it runs.
    """
    while tally.done < count:
        trial = _Trial(tally, {*known, *tally.failures}, before)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                _search(trial, count - tally.done, seed + tally.done)
            except (Exception, _Enough):
                if {*tally.failures} <= trial.known:
                    raise


def _search(trial: _Trial, count: int, seed: int) -> None:
    """Random programs, until one fails; smaller ones from there on."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(programs.programs())
    def test(program: str) -> None:
        trial.run(program)

    test()
