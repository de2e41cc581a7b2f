"""Damaged files of each format that kerasq and the recipes read."""

import functools
import io
import json
import pathlib
import tempfile
import traceback
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

import kerasq
from recipes import datasets
from tools.fuzzing import checks

L = keras.layers


class Format(NamedTuple):
    """A kind of file.

    Attributes:
        suffix: of its name.
        make: writes a sound one to a path.
        read: reads one, and uses what it holds.
    """

    suffix: str
    make: Callable[[pathlib.Path], Any]
    read: Callable[[pathlib.Path], Any]


def _network() -> keras.Model:
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 6, 2), name="image")
    y = L.Conv2D(4, 3, padding="same", activation="relu", name="conv")(x)
    y = L.Add(name="add")([y, L.DepthwiseConv2D(3, padding="same", name="depthwise")(y)])
    y = L.AveragePooling2D(2, name="pool")(y)
    y = L.Concatenate(name="both")([y, L.Activation("softplus", name="table")(y)])
    return keras.Model(x, L.Dense(3, activation="softmax", name="head")(L.Flatten(name="flat")(y)))


@functools.cache
def _quantized() -> tuple[keras.Model, list[np.ndarray]]:
    """A calibrated network, and its weights and ranges."""
    q = kerasq.quantize_model(_network())
    kerasq.calibrate(q, np.random.default_rng(0).normal(size=(8, 6, 6, 2)))
    return q, q.get_weights()


def _make_tflite(path: pathlib.Path) -> None:
    kerasq.export_tflite(_quantized()[0], path)


def _read_tflite(path: pathlib.Path) -> None:
    lite = kerasq.TFLiteModel(path)
    str(lite)
    lite.predict([np.zeros((1, *tensor.shape[1:]), "float32") for tensor in lite.inputs])


def _make_encodings(path: pathlib.Path) -> None:
    kerasq.save_encodings(_quantized()[0], path)


def _read_encodings(path: pathlib.Path) -> None:
    q, weights = _quantized()
    try:
        kerasq.load_encodings(q, path)
        kerasq.export_tflite(q)
    finally:
        q.set_weights(weights)


def _make_legacy(path: pathlib.Path) -> None:
    import tf_keras

    layers = [tf_keras.Input((6, 6, 2)), tf_keras.layers.Conv2D(4, 3), tf_keras.layers.Flatten()]
    tf_keras.Sequential([*layers, tf_keras.layers.Dense(3)]).save(path, save_format="h5")


def _arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (8, 4, 4, 3), "uint8"), np.arange(8) % 2
    return {"x_train": x, "y_train": y, "x_test": x[:4], "y_test": y[:4]}


def _image(kind: str) -> Format:
    """A folder of images, one of which is damaged."""

    def make(path: pathlib.Path) -> None:
        keras.utils.save_img(path, _arrays()["x_train"][0], scale=False)

    def read(path: pathlib.Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for split in ("train", "test"):
                for label in "ab":
                    part = pathlib.Path(folder, split, label)
                    part.mkdir(parents=True)
                    make(part / "sound.png")
            (part / f"damaged.{kind}").write_bytes(path.read_bytes())
            datasets.load("image_folder", folder, size=4)

    return Format(f".{kind}", make, read)


FORMATS = {
    "tflite": Format(".tflite", _make_tflite, _read_tflite),
    "keras": Format(".keras", lambda path: _network().save(path), kerasq.load_model),
    "h5": Format(".h5", lambda path: _network().save(path), kerasq.load_model),
    "legacy_h5": Format(".h5", _make_legacy, kerasq.load_model),
    "encodings": Format(".json", _make_encodings, _read_encodings),
    "npz": Format(
        ".npz",
        lambda path: np.savez(path, **_arrays()),  # type: ignore[arg-type]
        lambda path: datasets.load("npz", path),
    ),
    **{kind: _image(kind) for kind in ("jpg", "png", "bmp")},
}


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """A file of one random damage, every other one to a member of an archive or a value of JSON."""
    if zipfile.is_zipfile(io.BytesIO(content)) and rng.integers(2):
        return _mutated_member(content, rng)
    if content.startswith(b"{") and rng.integers(2):
        return _mutated_value(content, rng)
    return bytes(_MUTATIONS[rng.integers(len(_MUTATIONS))](bytearray(content), rng))


def _flip(data: bytearray, rng: np.random.Generator) -> bytearray:
    for place in rng.integers(0, len(data), rng.integers(1, 9)):
        data[place] ^= 1 << int(rng.integers(8))
    return data


def _truncate(data: bytearray, rng: np.random.Generator) -> bytearray:
    return data[: rng.integers(0, len(data))]


def _part(data: bytearray, rng: np.random.Generator) -> slice:
    start = int(rng.integers(0, len(data)))
    return slice(start, start + int(rng.integers(1, 65)))


def _swap(data: bytearray, rng: np.random.Generator) -> bytearray:
    size = int(rng.integers(1, min(64, len(data) // 2 + 1)))
    first, second = sorted(rng.integers(0, len(data) - size + 1, 2))
    a, b = data[first : first + size], data[second : second + size]
    data[second : second + size], data[first : first + size] = a, b
    return data


def _erase(data: bytearray, rng: np.random.Generator) -> bytearray:
    part = _part(data, rng)
    data[part] = bytes([int(rng.choice([0, 255, 127]))]) * len(data[part])
    return data


def _cut(data: bytearray, rng: np.random.Generator) -> bytearray:
    del data[_part(data, rng)]
    return data


def _repeat(data: bytearray, rng: np.random.Generator) -> bytearray:
    part = _part(data, rng)
    return data[: part.stop] + data[part] + data[part.stop :]


def _number(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Another 32-bit number: offsets, sizes and counts."""
    place = 4 * int(rng.integers(0, max(1, len(data) // 4)))
    value = rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, int(rng.integers(2**32))])
    data[place : place + 4] = int(value).to_bytes(4, "little")
    return data


_MUTATIONS = (_flip, _truncate, _swap, _erase, _cut, _repeat, _number)


def _mutated_member(content: bytes, rng: np.random.Generator) -> bytes:
    """An archive whose checksums are right, of a damaged member."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = sorted(members)[rng.integers(len(members))]
    members[name] = bytes(_MUTATIONS[rng.integers(len(_MUTATIONS))](bytearray(members[name]), rng))
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return written.getvalue()


_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    3,
    0.5,
    1e-300,
    1e300,
    2**70,
    float("nan"),
    "",
    "int8",
    [],
    {},
)


def _mutated_value(content: bytes, rng: np.random.Generator) -> bytes:
    """JSON, one value of which is another one, or is missing."""
    found = json.loads(content)
    places = [*_places(found)]
    holder, key = places[rng.integers(len(places))]
    choice = int(rng.integers(len(_VALUES) + 1))
    if choice < len(_VALUES):
        holder[key] = _VALUES[choice]
    else:
        del holder[key]
    return json.dumps(found).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """All dictionaries and lists of some JSON, and the keys and indices of what they hold."""
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


class Reader:
    """Gives damaged files of one format to what reads them."""

    def __init__(self, name: str, folder: pathlib.Path) -> None:
        self.format = FORMATS[name]
        self.path = folder / f"file{self.format.suffix}"
        self.format.make(self.path)
        self.sound = self.path.read_bytes()

    def read(self, seed: int, number: int) -> checks.Verdict:
        """What becomes of the damaged file of a number: "accepted", "refused" or "raw"."""
        self.path.write_bytes(mutated(self.sound, np.random.default_rng([seed, number])))
        if number % 25 == 0:  # It takes longer than most files.
            keras.backend.clear_session()
        try:
            self.format.read(self.path)
        except Exception as error:
            if checks.is_by_rule(error):
                return checks.Verdict("refused", "")
            place = traceback.extract_tb(error.__traceback__)[-1]
            text = " ".join(str(error).split())
            return checks.Verdict("raw", f"{type(error).__name__} in {place.name}: {text:.300}")
        return checks.Verdict("accepted", "")
