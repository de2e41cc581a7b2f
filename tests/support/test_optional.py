import sys

import h5py
import pytest

import kerasq
from kerasq.support import optional
from tests import networks


def test_load_imports():
    assert optional.load("h5py", "plot") is h5py


@pytest.mark.parametrize(
    ("package", "extra", "use"),
    [
        ("scipy", "allocate", lambda q, path: kerasq.allocate(q, None, budget={"bytes": 9})),
        ("tf_keras", "legacy", lambda q, path: kerasq.load_model(path)),
        ("matplotlib", "plot", lambda q, path: sensitivity().plot()),
        ("tensorboard", "tensorboard", lambda q, path: kerasq.LogRanges(path)),
    ],
)
def test_what_is_missing_is_named(package, extra, use, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.attrs["model_config"] = "{}"
    with pytest.raises(ImportError, match=rf"{package} must be .*pip install 'kerasq\[{extra}\]'"):
        use(networks.mlp(), tmp_path / "old.h5")


def sensitivity():
    model = networks.mlp()
    x = networks.data(model, 8)
    return kerasq.sensitivity(model, x, candidates=("w8a8", "w4a8"))
