import keras
import pytest

from kerasq.support import progress


@pytest.fixture
def bars(monkeypatch):
    """The bars that were made: total, unit and updates of each."""
    made = []

    class Bar:
        def __init__(self, total, unit_name):
            self.total, self.unit, self.updates = total, unit_name, []
            made.append(self)

        def update(self, count):
            self.updates.append(count)

    monkeypatch.setattr(keras.utils, "Progbar", Bar)
    monkeypatch.setattr(progress, "is_interactive", lambda: True)
    return made


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by a second each time it is read."""
    now = iter(range(10**6))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))


def test_short_runs_print_nothing(capsys, bars):
    assert list(progress.track(iter("abc"), 3, "batch")) == ["a", "b", "c"]
    assert bars == [] and capsys.readouterr().out == ""


def test_no_items_print_nothing(capsys, bars, clock):
    assert list(progress.track([], None, "batch")) == []
    assert bars == [] and capsys.readouterr().out == ""


@pytest.mark.usefixtures("clock")
def test_long_runs_show_a_bar_from_then_on(capsys, bars):
    # After item n the clock says n: the bar comes behind the third.
    assert list(progress.track(range(6), 6, "sample")) == list(range(6))
    (bar,) = bars
    assert (bar.total, bar.unit, bar.updates) == (6, "sample", [3, 4, 5, 6])
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("clock")
def test_a_bar_of_unknown_length_ends_its_line(capsys, bars):
    list(progress.track(range(4), None, "batch"))
    assert bars[0].total is None and bars[0].updates == [3, 4]
    assert capsys.readouterr().out == "\n"


@pytest.mark.usefixtures("clock")
def test_the_real_bar_says_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setattr(progress, "is_interactive", lambda: True)
    list(progress.track(range(5), 5, "batch"))
    assert "5/5" in capsys.readouterr().out


def test_items_are_taken_one_at_a_time():
    taken = []
    items = progress.track((taken.append(i) or i for i in range(3)), 3, "batch")
    assert taken == []
    next(items)
    assert taken == [0]


@pytest.mark.usefixtures("clock")
def test_a_file_gets_a_line_for_each_tenth(capsys):
    list(progress.track(range(400), 400, "batch"))
    lines = capsys.readouterr().out.splitlines()
    assert [x.split(",")[0] for x in lines] == [f"batch {n}/400" for n in range(40, 401, 40)]
    assert all(x.endswith(" s") and x.isascii() and x.isprintable() for x in lines)


@pytest.mark.usefixtures("clock")
def test_a_file_gets_the_end_of_a_run_whatever_its_length(capsys):
    list(progress.track(range(3), 3, "batch"))
    list(progress.track(range(9), None, "call"))
    lines = capsys.readouterr().out.splitlines()
    assert [x.split(",")[0] for x in lines] == ["batch 3/3", "call 9"]


def test_pipes_are_told_from_terminals_and_notebooks(monkeypatch):
    monkeypatch.delenv("PYCHARM_HOSTED", raising=False)
    for is_terminal in (False, True):
        stream = type("Stream", (), {"isatty": lambda self, found=is_terminal: found})()
        monkeypatch.setattr(progress.sys, "stdout", stream)
        assert progress.is_interactive() == is_terminal
    for stream in (None, object()):  # Of a program without a console.
        monkeypatch.setattr(progress.sys, "stdout", stream)
        assert not progress.is_interactive()
    monkeypatch.setitem(progress.sys.modules, "ipykernel", progress)
    assert progress.is_interactive()
