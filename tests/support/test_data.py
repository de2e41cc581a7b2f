import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasq.support.data import batches, labelled_batches, sample_count, with_labels


@pytest.fixture
def model():
    x = keras.Input((3,), name="x")
    return keras.Model(x, keras.layers.Dense(1)(x))


def two_inputs(names=("a", "b"), structure=list, width=(3, 2)):
    inputs = [keras.Input((size,), name=name) for name, size in zip(names, width, strict=True)]
    output = keras.layers.Concatenate()(inputs)
    return keras.Model(
        dict(zip(names, inputs, strict=True)) if structure is dict else inputs, output
    )


def samples(count, width=3):
    return np.arange(count * width, dtype="float32").reshape(count, width)


class Dataset(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return samples(2) + index, np.zeros(2)


@pytest.mark.parametrize("kind", [np.asarray, tf.constant])
@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1]), (4, [4]), (5, [4, 1]), (8, [4, 4]), (11, [4, 4, 3])]
)
def test_arrays_are_cut_into_batches_in_order(model, kind, count, sizes):
    x = samples(count)
    found = list(batches(model, kind(x), batch_size=4))
    assert [len(batch) for batch in found] == sizes
    assert all(batch.dtype == np.float32 for batch in found)
    np.testing.assert_array_equal(np.concatenate(found), x)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float16", "float64", "bool"])
def test_values_become_float32(model, dtype):
    x = samples(5).astype(dtype)
    (batch,) = batches(model, x)
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(batch, x.astype("float32"))


@pytest.mark.parametrize(
    "data",
    [
        lambda: Dataset(),
        lambda: tf.data.Dataset.from_tensor_slices((samples(6), np.zeros(6))).batch(2),
        lambda: tf.data.Dataset.from_tensor_slices(samples(6)).batch(2),
        lambda: (samples(2) for _ in range(3)),
        lambda: ((samples(2), None) for _ in range(3)),
        lambda: ((samples(2), np.zeros(2), np.ones(2)) for _ in range(3)),
        lambda: iter([samples(2)] * 3),
    ],
    ids=["PyDataset", "tf_xy", "tf_x", "generator", "xy", "xyw", "iterator"],
)
@pytest.mark.parametrize(("steps", "expected"), [(None, 3), (1, 1), (2, 2), (3, 3), (9, 3)])
def test_iterables_give_their_own_batches(model, data, steps, expected):
    found = list(batches(model, data(), batch_size=1, steps=steps))
    assert len(found) == expected
    assert all(batch.shape == (2, 3) and batch.dtype == np.float32 for batch in found)
    np.testing.assert_array_equal(found[0], samples(2))


def test_batches_of_a_py_dataset_are_different_ones(model):
    found = [batch[0, 0] for batch in batches(model, Dataset())]
    assert found == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(("steps", "expected"), [(1, 4), (2, 8), (3, 11), (4, 11)])
def test_steps_limit_arrays_too(model, steps, expected):
    found = list(batches(model, samples(11), batch_size=4, steps=steps))
    np.testing.assert_array_equal(np.concatenate(found), samples(expected))


def test_steps_take_no_more_from_a_generator_than_they_use(model):
    generator = (np.full((1, 3), i) for i in range(5))
    assert [batch[0, 0] for batch in batches(model, generator, steps=2)] == [0.0, 1.0]
    assert next(generator)[0, 0] == 2


def test_endless_generators_are_read_lazily(model):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield samples(1)

    next(batches(model, endless()))
    assert len(taken) == 1


@pytest.mark.parametrize("sequence", [list, tuple])
def test_several_inputs_come_as_the_model_takes_them(sequence):
    model = two_inputs()
    found = list(batches(model, sequence([samples(5), samples(5, 2)]), batch_size=3))
    assert [[x.shape for x in batch] for batch in found] == [[(3, 3), (3, 2)], [(2, 3), (2, 2)]]
    assert model(found[0]).shape == (3, 5)


def test_several_inputs_from_an_iterable():
    pairs = [([samples(2), samples(2, 2)], np.zeros(2))] * 2
    found = list(batches(two_inputs(), iter(pairs)))
    assert [[x.shape for x in batch] for batch in found] == [[(2, 3), (2, 2)]] * 2


def test_a_model_with_named_inputs_takes_a_dictionary():
    model = two_inputs(("b", "a"), dict)
    (batch,) = batches(model, {"a": samples(2, 2), "b": samples(2)})
    assert batch["a"].shape == (2, 2) and batch["b"].shape == (2, 3)
    assert model(batch).shape == (2, 5)


def test_a_dictionary_goes_by_the_names_of_the_inputs():
    """As in `fit`: Keras matches the keys of a dictionary with the names of the inputs."""
    model = two_inputs(("z", "a"), width=(3, 3))
    data = {"z": samples(2), "a": samples(2) + 100}
    (batch,) = batches(model, data)
    np.testing.assert_array_equal(model(batch), model.predict_on_batch(data))


def test_list_structured_input_of_one_tensor():
    x = keras.Input((3,))
    model = keras.Model([x], keras.layers.Dense(1)(x))
    (batch,) = batches(model, samples(2))
    assert model(batch).shape == (2, 1)


@pytest.mark.parametrize(
    ("data", "steps"),
    [
        (np.zeros((0, 3)), None),
        ([], None),
        ((), None),
        (iter([]), None),
        (np.float32(1.0), None),
    ],
    ids=["array", "list", "tuple", "iterator", "scalar"],
)
def test_no_data_is_an_error(model, data, steps):
    with pytest.raises(ValueError, match=rf"at least one sample.*no batches.*steps={steps}"):
        list(batches(model, data, steps=steps))


def test_a_generator_that_was_read_before_is_an_error(model):
    generator = (samples(2) for _ in range(2))
    assert len(list(batches(model, generator))) == 2
    with pytest.raises(ValueError, match="A generator that was read before is empty"):
        list(batches(model, generator))


def test_batches_without_samples_are_an_error(model):
    with pytest.raises(ValueError, match="at least one sample"):
        list(batches(model, iter([np.zeros((0, 3))])))


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 1), (2,), (2, 2)])
@pytest.mark.parametrize("iterable", [False, True])
def test_the_wrong_shape_is_an_error(model, shape, iterable):
    data = np.zeros(shape)
    expected = (
        rf"input '{model.inputs[0].name}', \(None, 3\). Received: a batch of shape \({shape[0]},"
    )
    with pytest.raises(ValueError, match=expected):
        list(batches(model, iter([data]) if iterable else data))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_an_error(model, value):
    x = samples(10)
    x[7, 1] = value
    with pytest.raises(ValueError, match=r"must be finite.*in batch 3, input 'x'. Remove"):
        list(batches(model, x, batch_size=2))


def test_batches_before_a_bad_one_are_given(model):
    x = samples(4)
    x[3] = np.nan
    found = batches(model, x, batch_size=2)
    np.testing.assert_array_equal(next(found), x[:2])
    with pytest.raises(ValueError, match="batch 1"):
        next(found)


@pytest.mark.parametrize("count", [1, 3])
def test_the_wrong_number_of_inputs_is_an_error(count):
    with pytest.raises(ValueError, match=rf"must hold 2 input\(s\) a batch. Received: {count}\."):
        list(batches(two_inputs(), iter([[samples(2)] * count])))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (samples(4), 4),
        (tf.zeros((5, 2)), 5),
        ({"a": samples(3)}, 3),
        (np.float32(1), 0),
        (np.zeros((0, 3)), 0),
        ([], None),
        ([samples(4), samples(4)], None),  # two batches
        (iter([samples(2)]), None),
        (tf.data.Dataset.range(3), None),
    ],
)
def test_sample_count(model, data, expected):
    assert sample_count(model, data) == expected


def test_a_list_is_the_inputs_of_a_model_that_takes_a_list():
    assert sample_count(two_inputs(), [samples(4), samples(4)]) == 4
    with pytest.raises(ValueError, match=r"equally many samples.*\[3, 4\]"):
        sample_count(two_inputs(), [samples(4), samples(3)])


@pytest.mark.parametrize("is_dict", [True, False], ids=["of a dict", "of a list"])
def test_two_inputs_as_converter_users_have_them(is_dict):
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    y = keras.layers.Concatenate()([a, b])
    model = keras.Model({"b": b, "a": a} if is_dict else [a, b], y)
    x = {"a": np.arange(12.0).reshape(4, 3), "b": -np.arange(8.0).reshape(4, 2)}
    columns = [x[symbol.name] for symbol in model.inputs]

    def rows():
        return ({key: v[i : i + 1] for key, v in x.items()} for i in range(4))

    forms = {
        "whole dict": x,
        "whole list": columns,
        "whole tuple": tuple(columns),
        "dicts": rows,
        "signatures": [("serving_default", row) for row in rows()],
        "tuples": [tuple(row[symbol.name] for symbol in model.inputs) for row in rows()],
        "labelled": [(row, np.zeros(1)) for row in rows()],
    }
    for name, form in forms.items():
        found = [model.predict_on_batch(batch) for batch in batches(model, form)]
        want = np.concatenate([x["a"], x["b"]], 1)
        np.testing.assert_array_equal(np.concatenate(found), want, err_msg=name)
    rule = r"every input of the model, \[.*\]. Received: keys .*does not have \['label'\]: leave"
    for form in ({**x, "label": np.zeros(4)}, [({**row, "label": 0}, 1) for row in rows()]):
        with pytest.raises(ValueError, match=rule):
            list(batches(model, form))


@pytest.mark.parametrize(
    ("make", "way_out"),
    [
        (lambda x: x[0], r"without an axis of samples, take x\[None\], or `.batch\(1\)`"),
        (lambda x: iter(x), r"take x\[None\], or `.batch\(1\)` of a dataset"),
        (lambda x: ((v, 0) for v in x), r"take x\[None\], or `.batch\(1\)` of a dataset"),
        (lambda x: x.tolist(), r"make an array of numbers, np.asarray\(data\)"),
        (lambda x: (x, np.zeros(len(x))), r"labels are not needed, give `x` alone"),
        (lambda x: (x, 2.0 * x), r"of 4 samples. .* give `x` alone. Two batches are a list"),
    ],
    ids=["a sample", "samples", "labelled samples", "lists", "labels", "autoencoder"],
)
def test_errors_say_the_way_out(model, make, way_out):
    x = np.zeros((4, *model.inputs[0].shape[1:]))
    with pytest.raises(ValueError, match=way_out):
        list(batches(model, make(x)))


@pytest.mark.parametrize("steps", [0, -1])
def test_steps_are_at_least_one(model, steps):
    with pytest.raises(ValueError, match=rf"at least 1, or None for all.*steps={steps}"):
        list(batches(model, samples(3), steps=steps))


@pytest.mark.parametrize(("own", "batch_size"), [(None, 4), (4, 7)])
@pytest.mark.parametrize("steps", [None, 2])
def test_labels_are_cut_where_the_samples_are(own, batch_size, steps):
    """Where the model has a batch size of its own, that counts."""
    image = keras.Input((3,), batch_size=own, name="x")
    model = keras.Model(image, keras.layers.Dense(1)(image))
    x, y = samples(12), np.arange(12)
    found = list(labelled_batches(model, (x, y), batch_size=batch_size, steps=steps))
    assert [len(labels) for _, labels in found] == [4, 4, 4][:steps]
    for batch, labels in found:
        np.testing.assert_array_equal(batch[:, 0], 3 * labels)


def test_a_tuple_of_two_labelled_batches(model):
    pair = (samples(2), np.zeros(2))
    found = list(labelled_batches(model, (pair, (samples(3), {"a": [1, 2, 3]}))))
    assert [len(x) for x, _ in found] == [2, 3]
    np.testing.assert_array_equal(found[1][1]["a"], [1, 2, 3])


def test_labels_that_are_missing_or_too_few(model):
    with pytest.raises(ValueError, match=r"as many labels as samples.*4 samples, labels \[3\]"):
        list(labelled_batches(model, (samples(4), np.zeros(3))))
    with pytest.raises(ValueError, match=r"must hold labels.*batch 0 is ndarray"):
        list(labelled_batches(model, [samples(4)]))


def test_a_function_is_called_as_a_representative_dataset_is(model):
    x = samples(3)
    found = [*batches(model, lambda: ([one[None]] for one in x))]
    np.testing.assert_array_equal(np.concatenate(found), x)


@pytest.mark.parametrize("data", [3.0, lambda: 3.0, object()])
def test_what_holds_no_batches_is_an_error(model, data):
    with pytest.raises(ValueError, match="must be an array, an iterable of batches, or a function"):
        list(batches(model, data))


def test_labels_are_found_where_there_are_some(model):
    x, y = samples(5), np.arange(5)
    for data in ((x, y), [(x[:4], y[:4]), (x[4:], y[4:])], iter([(x[:4], y[:4]), (x[4:], y[4:])])):
        found = list(with_labels(model, data, batch_size=4))
        np.testing.assert_array_equal(np.concatenate([batch for batch, _ in found]), x)
        np.testing.assert_array_equal(np.concatenate([labels for _, labels in found]), y)
    for data in (x, [x[:4], x[4:]], [(x[:4],), (x[4:],)]):
        assert [labels for _, labels in with_labels(model, data, batch_size=4)] == [None, None]
    # Two inputs in a tuple are no samples and labels.
    two = two_inputs()
    (((a, b), labels),) = with_labels(two, [samples(2), samples(2, 2)])
    assert (a.shape, b.shape, labels) == ((2, 3), (2, 2), None)
    for data in (None, [], iter([])):
        with pytest.raises(ValueError, match="`data` must"):
            list(with_labels(model, data))
