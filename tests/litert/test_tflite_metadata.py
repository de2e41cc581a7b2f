"""TFLite Metadata, read back field by field as `metadata_schema.fbs` (1.5.0) numbers them."""

import io
import zipfile

import flatbuffers
import keras
import numpy as np
import pytest
from flatbuffers.number_types import Float32Flags, Int8Flags, Uint8Flags

import kerasq
from kerasq.litert import flatbuffer, preprocessing, report, tflite_metadata
from kerasq.litert.preprocessing import Preprocessing
from tests import networks

L = keras.layers
LABELS = ["cat", "dog", "Bär, grün"]


class Table:
    """A table of the metadata flatbuffer; fields by their numbers."""

    def __init__(self, data, position=None):
        if position is None:
            assert data[4:8] == b"M001"  # The schema's file identifier.
            position = int.from_bytes(data[:4], "little")
        self._table = flatbuffers.table.Table(bytearray(data), position)
        self._data = data

    def _offset(self, field):
        return self._table.Offset(4 + 2 * field)

    def text(self, field):
        return self._table.String(self._table.Pos + self._offset(field)).decode()

    def number(self, field, flags=Int8Flags):
        return self._table.Get(flags, self._table.Pos + self._offset(field))

    def tables(self, field):
        offset = self._offset(field)
        count, start = (
            (self._table.VectorLen(offset), self._table.Vector(offset)) if offset else (0, 0)
        )
        return [Table(self._data, self._table.Indirect(start + 4 * i)) for i in range(count)]

    def floats(self, field):
        return self._table.GetVectorAsNumpy(Float32Flags, self._offset(field))

    def union(self, field):
        """The member of a union that is declared as field `field`, and its table."""
        at = self._table.Pos + self._offset(field + 1)
        return self.number(field, Uint8Flags), Table(self._data, self._table.Indirect(at))

    def table(self, field):
        return Table(self._data, self._table.Indirect(self._table.Pos + self._offset(field)))


def read(content):
    """The root table of a file's metadata."""
    model = flatbuffer.read(content)
    (entry,) = [x for x in model.metadata if x.name == b"TFLITE_METADATA"]
    return Table(bytes(model.buffers[entry.buffer].data))


def normalization(tensor):
    """Mean and deviation of an input's one process unit, which is a NormalizationOptions."""
    (unit,) = tensor.tables(4)
    kind, options = unit.union(0)
    assert kind == 1
    return options.floats(0), options.floats(1)


def classifier(last, preprocess=()):
    networks.set_seed(0)
    image = keras.Input((6, 6, 3), name="image")
    x = image
    for layer in (*preprocess, L.Conv2D(4, 3, activation="relu"), L.GlobalAveragePooling2D()):
        x = layer(x)
    q = kerasq.quantize_model(keras.Model(image, last(x), name="pets"))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3)).astype("float32")
    kerasq.calibrate(q, pixels)
    return q, pixels


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A quantized classifier, its file with labels, the file's path, and samples."""
    q, pixels = classifier(L.Dense(3, activation="softmax", name="scores"))
    path = tmp_path_factory.mktemp("pets") / "pets.tflite"
    lite = kerasq.export_tflite(q, path, labels=LABELS, input_dtype="uint8")
    return q, lite, path, pixels


def test_labels_are_a_file_that_the_output_names(exported):
    _, lite, path, _ = exported
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["labels.txt"] and archive.testzip() is None
        assert archive.read("labels.txt").decode().split("\n") == LABELS
    root = read(lite.content)
    assert (root.text(0), root.text(7)) == ("pets", "1.0.0")
    (graph,) = root.tables(3)
    (output,) = graph.tables(3)
    (file,) = output.tables(6)
    assert (output.text(0), file.text(0)) == (lite.outputs[0].name, "labels.txt")
    assert file.number(2) == 2  # TENSOR_AXIS_LABELS: a name for each value.
    assert output.table(3).union(0)[0] == 1  # FeatureProperties.


def test_a_file_says_its_labels(exported):
    q, lite, path, _ = exported
    found = kerasq.TFLiteModel(path)
    assert found.labels == lite.labels == tuple(LABELS)
    assert "Labels, 3: cat, dog, Bär, grün." in str(found).splitlines()
    plain = kerasq.export_tflite(q, normalization=(0, 1))
    assert plain.labels == () and "Labels" not in str(plain)
    many = [f"class {i}" for i in range(1000)]
    said = report.named(many)
    assert said.startswith("Labels, 1000: class 0, ") and said.endswith("class 8, ..., class 999.")


@pytest.mark.parametrize("kind", [2, 3])
def test_labels_are_found_by_the_metadata(exported, kind):
    # As another program calls them, beside a file of another purpose.
    made = tflite_metadata._Tables()
    files = [
        made.table({0: made.text(name), 2: np.int8(x)}) for name, x in [("notes", 1), ("x", kind)]
    ]
    outputs = [made.table({}), made.table({6: made.vector(files)})]
    root = {3: made.vector([made.table({3: made.vector(outputs)})])}
    model = flatbuffer.read(exported[1].content)
    (entry,) = [x for x in model.metadata if x.name == b"TFLITE_METADATA"]
    model.buffers[entry.buffer].data = np.frombuffer(made.finish(made.table(root)), np.uint8)
    file = io.BytesIO(flatbuffer.write(model))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("notes", "none")
        archive.writestr("x", "one\r\ntwo\r\n")
    assert kerasq.TFLiteModel(file.getvalue()).labels == ("one", "two")


def test_a_file_whose_labels_are_damaged_has_none_and_runs(exported):
    _, lite, _, pixels = exported
    start = lite.content.index(b"M001") - 4
    end = lite.content.index(b"PK", start)
    rng = np.random.default_rng(0)
    cut = kerasq.TFLiteModel(lite.content[:end])  # Without the archive.
    assert cut.labels == ()
    np.testing.assert_array_equal(cut.predict(pixels), lite.predict(pixels))
    model = flatbuffer.read(lite.content)
    (entry,) = [x for x in model.metadata if x.name == b"TFLITE_METADATA"]
    whole = model.buffers[entry.buffer].data
    for _ in range(200):
        model.buffers[entry.buffer].data = np.where(
            rng.uniform(size=whole.size) < 0.05, rng.integers(0, 256, whole.size), whole
        ).astype(np.uint8)
        damaged = bytearray(lite.content)
        damaged[rng.integers(end, len(damaged))] ^= 255
        assert isinstance(tflite_metadata.read_labels(model, bytes(damaged)), tuple)


def test_an_image_is_one_that_takes_pixels(exported):
    (graph,) = read(exported[1].content).tables(3)
    (image,) = graph.tables(2)
    kind, properties = image.table(3).union(0)
    assert (image.text(0), kind, properties.number(0)) == ("image", 2, 1)  # RGB
    np.testing.assert_array_equal(normalization(image), [[0], [1]])


def test_a_file_with_metadata_runs_as_one_without(exported):
    q, lite, path, pixels = exported
    plain = kerasq.export_tflite(q, input_dtype="uint8")
    assert (
        plain.content
        != lite.content
        == kerasq.export_tflite(q, input_dtype="uint8", labels=LABELS).content
    )
    wanted = plain.predict(pixels)
    np.testing.assert_array_equal(kerasq.TFLiteModel(path).predict(pixels), wanted)


def test_tflite_micro_runs_it(exported):
    pytest.importorskip("tflite_micro")
    q, _, _, pixels = exported
    q = kerasq.retarget(q, "tflm")
    plain, lite = (kerasq.export_tflite(q, labels=labels) for labels in ((), LABELS))
    assert lite.arena_bytes() == plain.arena_bytes()
    np.testing.assert_array_equal(lite.predict(pixels), plain.predict(pixels))


@pytest.mark.parametrize(
    ("last", "labels", "kind"),
    [
        (L.Dense(1, activation="sigmoid"), ["no", "yes"], 3),
        (L.Lambda(lambda x: keras.ops.argmax(x, -1)), ["any", "number"], 3),
    ],
    ids=["one_value", "places"],
)
def test_values_that_are_labels(last, labels, kind):
    lite = kerasq.export_tflite(classifier(last)[0], labels=labels)
    (output,) = read(lite.content).tables(3)[0].tables(3)
    (file,) = output.tables(6)
    assert file.number(2) == kind  # TENSOR_VALUE_LABELS


def test_normalization_includes_what_the_file_leaves_to_its_feeder():
    raw = np.random.default_rng(0).uniform(0, 255, (5, 3)).astype("float32")
    own = Preprocessing(gain=np.float32([2, 0.5, -1]), shift=np.float32([1, 0, 3]))
    model = keras.Sequential([keras.Input((3,), name="x"), L.Dense(2)])
    q = kerasq.quantize_model(model)
    kerasq.calibrate(q, own((raw - 10) / [2, 4, 8]))
    file = flatbuffer.read(kerasq.export_tflite(q).content)
    preprocessing.write(file, [own])
    about = tflite_metadata.Description(name="m", normalization=(10, [2, 4, 8]))
    content = tflite_metadata.described(flatbuffer.write(file), about)
    (tensor,) = read(content).tables(3)[0].tables(2)
    mean, std = normalization(tensor)
    wanted = own((raw - 10) / np.float32([2, 4, 8]))
    np.testing.assert_allclose((raw - mean) / std, wanted, rtol=1e-4, atol=1e-4)
    assert not zipfile.is_zipfile(io.BytesIO(content))  # Without labels there is no file of them.


def test_what_does_not_fit_is_refused(exported):
    def refused(match, **arguments):
        with pytest.raises(ValueError, match=match):
            kerasq.export_tflite(exported[0], **arguments)

    wrong = (["a", "b"], "abc", ["a", "b", 3], None)
    # Lines of a file, as `readlines` gives them, would be two lines each.
    for labels in (*wrong, ["a", "b", "c\nd"], ["a", "b", ""], ["a\n", "b\n", "c\n"]):
        refused(r"`labels` must be a list of names.*for outputs of \[3\]", labels=labels)
    for given in ((1, 0), (1, [1, 2]), 5, (1, 2, 3), ("a", 1), (np.nan, 1)):
        refused(r"`normalization` must be \(mean, std\).*of \[3\] channels", normalization=given)
