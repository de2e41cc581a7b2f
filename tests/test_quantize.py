import gc

import keras
import numpy as np
import pytest

import kerasq
from kerasq import graph, wrappers
from kerasq.layers import Scale
from tests import networks

L = keras.layers
MODELS = [
    networks.residual,
    networks.mobile,
    networks.mlp,
    networks.two_by_two,
    networks.sequential,
]


def functional(shape, *layers):
    x = inputs = keras.Input(shape, name="x")
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x)


def names(model):
    """Names of the layers that do something, the model's inputs and their quantizers left out."""
    return [
        layer.name
        for layer in model.layers
        if not isinstance(layer, L.InputLayer) and not layer.name.endswith("_quantize")
    ]


def float_predictions(q, x):
    """`q` through the float path of every wrapper, chained."""

    def run(node, x, **kwargs):
        layer = node.layer
        if not isinstance(layer, wrappers.QuantizeWrapper):
            return graph.infer(layer, x, **kwargs)
        y = layer.run_float(x)
        return y if layer.output_quantizer is None else layer.output_quantizer.clamp(y)

    return [y.numpy() for y in graph.run(q, x, run)]


# The model handed in, and what comes back.


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("batch_norm", ["fold", "keep"])
def test_the_original_stays_as_it_was(make, batch_norm):
    model = make()
    model.compile("sgd", "mse")
    weights = [w.copy() for w in model.get_weights()]
    config, variables = model.get_config(), [id(v) for v in model.variables]
    nodes = [(len(x._inbound_nodes), len(x._outbound_nodes)) for x in model.layers]
    tensors = [id(x) for x in (*model.inputs, *model.outputs)]
    x = networks.data(model)
    before = keras.tree.flatten(networks.run(model, x))

    q = networks.quantized(model, x, batch_norm=batch_norm)
    for variable in q.variables:
        variable.assign(variable + 1.0)
    q(x, training=True)

    assert model.get_config() == config
    assert [id(v) for v in model.variables] == variables
    assert not {id(v) for v in q.variables} & set(variables)
    assert [(len(x._inbound_nodes), len(x._outbound_nodes)) for x in model.layers] == nodes
    assert [id(x) for x in (*model.inputs, *model.outputs)] == tensors
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    for old, new in zip(before, keras.tree.flatten(networks.run(model, x)), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("make", MODELS)
def test_inputs_outputs_and_order_are_kept(make):
    model, q = make(), kerasq.quantize_model(make())
    assert type(q) is type(keras.Model(model.inputs, model.outputs)) and q.name == model.name
    assert [(x.name, x.shape, x.dtype) for x in q.inputs] == [
        (x.name, x.shape, x.dtype) for x in model.inputs
    ]
    assert [x.shape for x in q.outputs] == [x.shape for x in model.outputs]
    last = [layer.name for layer in model.layers if any(layer.output is y for y in model.outputs)]
    assert sorted(q.output_names) == sorted(last)
    kept = [name for name in names(model) if name in names(q)]
    assert kept == [name for name in names(q) if name in kept]


def test_names_of_every_layer():
    assert names(kerasq.quantize_model(networks.residual())) == [
        *("conv", "branch", "add", "cat", "pool", "pad", "average", "gap", "drop"),
        *("probs_linear", "probs"),
    ]


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("batch_norm", ["fold", "keep"])
def test_the_float_path_equals_the_float_model(make, batch_norm):
    model = make()
    q = kerasq.quantize_model(model, batch_norm=batch_norm)
    x = networks.data(model)
    expected = keras.tree.flatten(networks.run(model, x))
    for y, z in zip(float_predictions(q, x), expected, strict=True):
        np.testing.assert_allclose(y, z, atol=1e-4 * max(1.0, np.abs(z).max()))


@pytest.mark.parametrize("make", MODELS)
def test_predictions_stay_near_those_of_the_float_model(make):
    model = make()
    x = networks.data(model, 64)
    q = networks.quantized(model, x)
    predicted = keras.tree.flatten(q.predict_on_batch(x))
    for y, z in zip(predicted, keras.tree.flatten(networks.run(model, x)), strict=True):
        assert np.abs(y - z).mean() < 0.05 * (z.max() - z.min())


def test_fold_removes_the_norm_and_keep_keeps_it_trainable():
    fold = kerasq.quantize_model(networks.sequential(), batch_norm="fold")
    keep = kerasq.quantize_model(networks.sequential(), batch_norm="keep")
    assert not [v for v in fold.variables if "gamma" in v.path or "moving_mean" in v.path]
    assert len([v for v in keep.trainable_variables if "gamma" in v.path]) == 1
    assert len([v for v in keep.variables if "moving_mean" in v.path]) == 1


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("use_bias", [True, False])
def test_fold_against_numpy(center, scale, use_bias):
    norm = L.BatchNormalization(center=center, scale=scale, epsilon=0.01, name="norm")
    dense = L.Dense(4, use_bias=use_bias, name="dense")
    model = functional((3,), dense, norm)
    rng = np.random.default_rng(0)
    gamma = np.array([-1.5, 1.0, 0.2, -0.1], "f") if scale else 1.0
    beta = rng.normal(size=4) if center else 0.0
    mean, variance = rng.normal(size=4), np.array([0.01, 0.5, 4.0, 100.0])
    bias = rng.normal(size=4) if use_bias else 0.0
    for variable, value in (("gamma", gamma), ("beta", beta)):
        if getattr(norm, variable) is not None:
            getattr(norm, variable).assign(value)
    norm.moving_mean.assign(mean)
    norm.moving_variance.assign(variance)
    if use_bias:
        dense.bias.assign(bias)
    gain = gamma / np.sqrt(variance + 0.01)
    wrapper = kerasq.quantize_model(model, batch_norm="fold").get_layer("dense")
    kernel = wrapper.kernel.numpy() * wrapper.kernel_gain.numpy()
    np.testing.assert_allclose(kernel, dense.kernel.numpy() * gain, rtol=1e-5)
    np.testing.assert_allclose(wrapper.bias.numpy(), beta + (bias - mean) * gain, rtol=1e-5)


@pytest.mark.parametrize("kind", ["dict", "list", "tuple"])
def test_structured_inputs_and_outputs(kind):
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    y, z = L.Dense(4, name="y")(a), L.Dense(2, name="z")(L.Concatenate(name="cat")([b, a]))
    inputs, outputs = {
        "dict": ({"a": a, "b": b}, {"y": y, "z": z}),
        "list": ([b, a], [z, y]),
        "tuple": ((a, b), (y, z)),
    }[kind]
    model = keras.Model(inputs, outputs)
    rng = np.random.default_rng(0)
    arrays = {"a": rng.normal(size=(8, 3)), "b": rng.normal(size=(8, 2))}
    x = keras.tree.map_structure(lambda symbol: arrays[symbol.name].astype("f"), inputs)
    q = networks.quantized(model, x)
    expected, found = model.predict_on_batch(x), q.predict_on_batch(x)
    keras.tree.assert_same_structure(found, expected)
    for have, want in zip(keras.tree.flatten(found), keras.tree.flatten(expected), strict=True):
        np.testing.assert_allclose(have, want, atol=0.1)
    lite = kerasq.export_tflite(q)
    assert {tensor.name for tensor in lite.outputs} == {"y", "z"}
    for name, array in lite.predict(arrays).items():
        place = list(q.output_names).index(name)
        np.testing.assert_array_equal(array, keras.tree.flatten(found)[place])


def test_list_structured_single_tensor():
    inputs = keras.Input((3,), name="x")
    model = keras.Model([inputs], [L.Dense(2, name="y")(inputs)])
    q = networks.quantized(model)
    x = networks.data(model)
    lite = kerasq.export_tflite(q, check=False)
    np.testing.assert_array_equal(keras.tree.flatten(networks.run(q, x))[0], lite.predict(x))


def test_sequential_built_later():
    model = keras.Sequential([L.Dense(3, name="a"), L.Dense(2, name="b")])
    model.build((None, 4))
    assert names(kerasq.quantize_model(model)) == ["a", "b"]


def test_names_that_splitting_gives_may_be_taken():
    """Layers that already have the names which splitting would give."""
    x = inputs = keras.Input((4,), name="x")
    a = L.Dense(4, activation="relu", name="dense")(x)
    b = L.Dense(4, name="dense_relu")(a)
    c = L.Dense(4, activation="tanh", name="head")(b)
    d = L.Dense(4, name="head_linear")(c)
    total = L.Add(name="add")([a, b, d])
    model = keras.Model(inputs, L.Add(name="add_1")([total, c, d]))
    q = networks.quantized(model)
    data = networks.data(model)
    assert {"dense", "dense_relu", "head", "head_linear", "add", "add_1"} <= set(names(q))
    lite = kerasq.export_tflite(q, check=False)
    np.testing.assert_array_equal(networks.run(q, data), lite.predict(data))


# ReLU.


def relu_cases():
    return {
        "ReLU": (L.ReLU(name="r"), None),
        "ReLU6": (L.ReLU(6.0, name="r"), 6.0),
        "ReLU3": (L.ReLU(max_value=3.0, name="r"), 3.0),
        "Activation": (L.Activation("relu", name="r"), None),
        "Activation6": (L.Activation("relu6", name="r"), 6.0),
    }


@pytest.mark.parametrize("case", relu_cases())
@pytest.mark.parametrize("norm", [True, False])
def test_relu_behind_a_kernel_merges(case, norm):
    relu, limit = relu_cases()[case]
    layers = [L.Dense(8, name="d"), *([L.BatchNormalization(name="n")] if norm else []), relu]
    model = functional((4,), *layers)
    x = networks.data(model, 64, scale=10.0)
    q = networks.quantized(model, x)
    wrapper = q.get_layer("d")
    assert (wrapper.relu, wrapper.limit) == (True, limit)
    assert wrapper.output_quantizer.range_min is None
    y = networks.run(q, x)
    assert y.min() == 0.0 and names(q) == ["d"]
    top = networks.run(model, x).max()
    assert top == limit or limit is None
    np.testing.assert_allclose(y.max(), top, rtol=0.01)
    lite = kerasq.export_tflite(q, check=False)
    assert [op.name for op in lite.ops] == ["FULLY_CONNECTED"]
    np.testing.assert_array_equal(lite.predict(x), y)


@pytest.mark.parametrize(("activation", "limit"), [("relu", None), ("relu6", 6.0)])
def test_fused_relu_merges(activation, limit):
    model = functional((4,), L.Dense(8, activation=activation, name="d"))
    q = networks.quantized(model)
    assert names(q) == ["d"] and list(q.output_names) == ["d"]
    assert (q.get_layer("d").relu, q.get_layer("d").limit) == (True, limit)


def test_relu_behind_add_and_concatenate_merges():
    inputs = keras.Input((4,), name="x")
    a, b = L.Dense(4, name="a")(inputs), L.Dense(4, name="b")(inputs)
    total = L.ReLU(name="r1")(L.Add(name="add")([a, b]))
    both = L.ReLU(6.0, name="r2")(L.Concatenate(name="cat")([total, a]))
    q = kerasq.quantize_model(keras.Model(inputs, both))
    assert names(q) == ["a", "b", "add", "cat"]
    assert [q.get_layer(name).relu for name in names(q)] == [False, False, True, True]
    assert q.get_layer("cat").limit == 6.0


def test_relu_of_a_tensor_that_others_read_stands_alone():
    inputs = keras.Input((4,), name="x")
    a = L.Dense(4, name="a")(inputs)
    model = keras.Model(inputs, L.Add(name="add")([L.ReLU(name="r")(a), a]))
    x = networks.data(model, 64)
    q = networks.quantized(model, x)
    assert names(q) == ["a", "r", "add"] and not q.get_layer("a").relu
    np.testing.assert_allclose(networks.run(q, x), networks.run(model, x), atol=0.2)
    lite = kerasq.export_tflite(q, check=False)
    # Onto a grid that begins at 0, where it cuts.
    assert [op.name for op in lite.ops] == ["FULLY_CONNECTED", "QUANTIZE", "ADD"]
    np.testing.assert_array_equal(networks.run(q, x), lite.predict(x))


def test_relu_of_an_output_of_the_model_stands_alone():
    inputs = keras.Input((4,), name="x")
    a = L.Dense(4, name="a")(inputs)
    model = keras.Model(inputs, [a, L.ReLU(name="r")(a)])
    x = networks.data(model, 64)
    q = networks.quantized(model, x)
    assert names(q) == ["a", "r"]
    before, after = networks.run(q, x)
    assert before.min() < 0.0 == after.min()
    lite = kerasq.export_tflite(q, check=False).predict(x)
    np.testing.assert_array_equal(lite["a"], before)
    np.testing.assert_array_equal(lite["r"], after)


@pytest.mark.parametrize(
    "before",
    [L.MaxPooling2D(2, name="p"), L.AveragePooling2D(2, name="p"), L.Activation("tanh", name="p")],
    ids=["max", "average", "tanh"],
)
@pytest.mark.parametrize("case", ["ReLU", "ReLU3", "Activation6"])
def test_relu_behind_a_layer_without_range_stands_alone(before, case):
    model = functional(
        (4, 4, 2), type(before).from_config(before.get_config()), relu_cases()[case][0]
    )
    x = networks.data(model, 64, scale=4.0)
    q = networks.quantized(model, x)
    assert names(q) == ["p", "r"]
    y = networks.run(q, x)
    np.testing.assert_allclose(y, networks.run(model, x), atol=0.2)
    np.testing.assert_array_equal(kerasq.export_tflite(q).predict(x), y)


def test_a_second_relu_stands_alone():
    model = functional((4,), L.Dense(4, name="d"), L.ReLU(name="r1"), L.ReLU(6.0, name="r2"))
    x = networks.data(model, 64, scale=9.0)
    q = networks.quantized(model, x)
    assert q.get_layer("d").limit is None
    y = networks.run(q, x)
    assert y.max() <= 6.0 and y.min() == 0.0
    np.testing.assert_array_equal(kerasq.export_tflite(q).predict(x), y)


# Layers that become several.


@pytest.mark.parametrize(
    ("activation", "op"), [("softmax", "SOFTMAX"), ("sigmoid", "LOGISTIC"), ("tanh", "TANH")]
)
@pytest.mark.parametrize("last", [True, False])
def test_fused_activation_becomes_a_layer_and_keeps_the_name(activation, op, last):
    layers = [L.Dense(4, activation=activation, name="d")]
    model = functional((4,), *layers, *([] if last else [L.Dense(2, name="after")]))
    q = networks.quantized(model)
    assert names(q)[:2] == ["d_linear", "d"]
    assert list(q.output_names) == list(model.output_names)
    assert q.get_layer("d_linear").layer.activation is keras.activations.linear
    assert [o.name for o in kerasq.export_tflite(q).ops][:2] == ["FULLY_CONNECTED", op]


@pytest.mark.parametrize("count", [2, 4])
def test_add_of_many(count):
    inputs = keras.Input((4,), name="x")
    terms = [L.Dense(4, name=f"d{i}")(inputs) for i in range(count)]
    model = keras.Model(inputs, L.Add(name="total")(terms))
    x = networks.data(model, 64)
    q = networks.quantized(model, x)
    assert list(q.output_names) == ["total"]
    adds = [layer for layer in q.layers if isinstance(getattr(layer, "layer", None), L.Add)]
    assert len(adds) == count - 1
    y = networks.run(q, x)
    np.testing.assert_allclose(y, networks.run(model, x), atol=0.3)
    lite = kerasq.export_tflite(q, check=False)
    assert [op.name for op in lite.ops].count("ADD") == count - 1
    np.testing.assert_array_equal(lite.predict(x), y)


@pytest.mark.parametrize("layer", [L.Add(name="y"), L.Concatenate(name="y")], ids=["add", "cat"])
def test_one_tensor_twice(layer):
    layer = type(layer).from_config(layer.get_config())
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, layer([inputs, inputs]))
    x = networks.data(model, 64)
    q = networks.quantized(model, x)
    y = networks.run(q, x)
    np.testing.assert_allclose(y, networks.run(model, x), atol=0.2)
    np.testing.assert_array_equal(kerasq.export_tflite(q).predict(x), y)


def test_one_tensor_as_two_outputs():
    inputs = keras.Input((4,), name="x")
    y = L.Dense(2, name="y")(inputs)
    model = keras.Model(inputs, [y, y])
    q = networks.quantized(model)
    assert len(q.outputs) == 2
    x = networks.data(model)
    expected = networks.run(q, x)
    found = kerasq.export_tflite(q, check=False).predict(x)
    for array, want in zip(keras.tree.flatten(found), expected, strict=True):
        np.testing.assert_array_equal(array, want)


def test_an_input_read_by_two_layers_has_one_grid():
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, [L.Dense(2, name="a")(inputs), L.Dense(2, name="b")(inputs)])
    q = kerasq.quantize_model(model)
    assert [x.name for x in q.layers].count("x_quantize") == 1


def test_overrides_by_name():
    q = kerasq.quantize_model(networks.mlp(), overrides={"head": "w8a8"})
    assert q.get_layer("head").scheme == "w8a8"


@pytest.mark.parametrize("name", ["conv_norm", "conv_relu", "add_relu", "pool", "pad", "drop"])
def test_overrides_name_layers_with_a_grid_of_their_own(name):
    legal = r"Legal names: \['add', 'average', 'branch', 'cat', 'conv', 'gap', 'image', 'probs'\]"
    with pytest.raises(ValueError, match=rf"own. Received: '{name}', .* which only move .*{legal}"):
        kerasq.quantize_model(networks.residual(), overrides={name: "w8a8"})


# Errors.


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = L.Dense(2)

    def call(self, x):
        return self.dense(x)


def tf_keras_model():
    import tf_keras

    return tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(3,))])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (object, r"must be a Keras 3 model .* Received: builtins.object"),
        (lambda: None, "must be a Keras 3 model .* Received: builtins.NoneType"),
        (lambda: L.Dense(2), "must be a Keras 3 model .*dense.Dense"),
        (Subclassed, "must be built.*Received: Subclassed"),
        (
            lambda: keras.Sequential([L.Dense(2)], name="s"),
            "must be built.*Received: Sequential 's'",
        ),
        (lambda: keras.Sequential(name="e"), "Received: Sequential 'e'"),
    ],
)
def test_not_a_model_of_ours(make, text):
    with pytest.raises(ValueError, match=text):
        kerasq.quantize_model(make())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scheme": "w9a9"}, r"A scheme must be \"float\" or .*Received: scheme='w9a9'"),
        (
            {"batch_norm": "drop"},
            r"`batch_norm` must be one of \['keep', 'fold'\]. Received: batch_norm='drop'",
        ),
        (
            {"range_gradient": "ste"},
            r"`range_gradient` must be one of \[.*'lsq'.*\]. Received: range_gradient='ste'",
        ),
        (
            {"overrides": {"haed": "w8a8"}},
            r"haed.*The model's layers: \['features', 'hidden', 'squash', 'head'\]",
        ),
        ({"overrides": {"head": "w1"}}, r"A scheme must be .*Received: .*'w1'"),
    ],
)
def test_unknown_options_list_the_legal_ones(options, text):
    with pytest.raises(ValueError, match=text):
        kerasq.quantize_model(networks.mlp(), **options)


@pytest.mark.parametrize(
    "layers",
    [
        [L.BatchNormalization(name="n"), L.Dense(2)],
        [L.Dense(2, activation="relu"), L.BatchNormalization(name="n")],
        [L.Dense(2), L.BatchNormalization(), L.BatchNormalization(name="n")],
    ],
    ids=["first", "behind-relu", "second"],
)
@pytest.mark.parametrize("batch_norm", ["fold", "keep"])
def test_batch_norm_standing_alone(layers, batch_norm):
    model = networks.shake_norms(functional((4,), *(graph.copy_layer(x) for x in layers)))
    x = networks.data(model, 64)
    q = networks.quantized(model, x, batch_norm=batch_norm)
    assert isinstance(q.get_layer("n").layer, Scale)
    lite = kerasq.export_tflite(q, check=False)
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))
    want = networks.run(model, x)
    np.testing.assert_allclose(lite.predict(x), want, atol=0.05 * np.abs(want).max())


def test_batch_norm_along_another_axis():
    norm = L.BatchNormalization(axis=1, name="n")
    model = networks.shake_norms(functional((6, 4), L.Conv1D(5, 3, padding="same"), norm))
    x = networks.data(model, 64)
    q = networks.quantized(model, x)
    assert isinstance(q.get_layer("n_last").layer, Scale)
    lite = kerasq.export_tflite(q, check=False)
    assert lite.float_ops == []
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))
    assert networks.sqnr(model, q, x) > 30


def test_batch_norm_behind_a_tensor_that_others_read():
    inputs = keras.Input((4,), name="x")
    y = L.Dense(4, name="d")(inputs)
    model = keras.Model(inputs, L.Add()([y, L.BatchNormalization(name="n")(y)]))
    assert isinstance(kerasq.quantize_model(model).get_layer("n").layer, Scale)


def test_other_norms_behind_a_shared_layer_stand_alone():
    dense, inputs = L.Dense(4, name="shared"), keras.Input((4,), name="x")
    norms = [L.BatchNormalization(name=name)(dense(inputs)) for name in ("a", "b")]
    q = kerasq.quantize_model(keras.Model(inputs, norms))
    assert all(isinstance(q.get_layer(name).layer, Scale) for name in ("a", "b"))


def test_layers_called_twice_may_stay_float():
    dense = L.Dense(4, name="shared")
    model = functional((4,), dense, L.ReLU(), dense, L.Dense(2))
    q = networks.quantized(model, overrides={"shared": "float"})
    assert len(q.get_layer("shared")._inbound_nodes) == 2
    report = kerasq.compare(q, kerasq.export_tflite(q), x=networks.data(model))
    assert "shared_2" in {x.name for x in report.layers if x.max_lsb is None}
    assert report.max_lsb == 0


def test_operations_may_stay_float():
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, L.Dense(2, name="d")(inputs) * 2.0)
    (name,) = (x.name for x in model.operations if not isinstance(x, L.Layer))
    q = networks.quantized(model, overrides={name: "float"})
    assert name in {x.name for x in q.operations} and not isinstance(q.layers[-1], Scale)
    with pytest.raises(ValueError, match="At least one layer must be quantized"):
        kerasq.quantize_model(model, scheme="float")


def test_global_pooling_of_unknown_size():
    layer = L.GlobalAveragePooling2D(name="g")
    with pytest.raises(ValueError, match=r"image size must be known.*'g'"):
        kerasq.quantize_model(functional((None, None, 3), layer))


def test_relu_behind_an_int16_concatenation_is_a_layer_of_its_own():
    image = keras.Input((8, 8, 3), name="image")
    x = [L.Conv2D(3, 3, name=f"conv{i}")(image) for i in range(2)]
    model = keras.Model(image, L.ReLU(name="relu")(L.Concatenate(name="cat")(x)))
    q = networks.quantized(model, overrides={"cat": "w8a16", "relu": "float"})
    assert isinstance(q.get_layer("relu"), L.ReLU)
    q = networks.quantized(model, overrides={"cat": "w8a16", "relu": "w8a16"})
    assert q.get_layer("relu").scheme == "w8a16"
    with pytest.raises(ValueError, match="fused into the layer before"):
        kerasq.quantize_model(model, overrides={"relu": "float"})


def test_boundaries_have_names_of_their_own():
    image = keras.Input((8, 8, 3), name="image")
    x = [L.Conv2D(3, 3, name=name)(image) for name in ("a b", "a_b")]
    model = keras.Model(image, L.Add(name="add")(x))
    q = kerasq.quantize_model(model, overrides={"add": "w8a16"})
    assert {"a_b_int16", "a_b_int16_2"} <= {layer.name for layer in q.layers}


def test_a_model_that_stays_float():
    with pytest.raises(ValueError, match="At least one layer must be quantized"):
        kerasq.quantize_model(networks.mlp(), "float")


def test_float_layers_take_and_give_several_tensors():
    steps = keras.Input((3, 4), name="steps")
    x = L.MultiHeadAttention(1, 4, name="attention")(steps, steps)
    x, *_ = L.LSTM(4, return_state=True, name="lstm")(x)
    model = keras.Model(steps, L.Dense(2, name="head")(x))
    q = networks.quantized(model, overrides={"attention": "float", "lstm": "float"})
    lite, x = kerasq.export_tflite(q), networks.data(model)
    np.testing.assert_allclose(lite.predict(x), networks.run(q, x), atol=0.02)


@pytest.mark.parametrize("batch_norm", ["fold", "keep"])
def test_no_weights_but_the_models_own_stay_in_memory(batch_norm):
    """A called layer leads to the whole graph that it was called in: none may be left."""

    def alive():
        gc.collect()
        return {id(x): x for x in gc.get_objects() if isinstance(x, keras.Variable)}

    model = networks.residual()
    before = alive()
    q = kerasq.quantize_model(model, batch_norm=batch_norm)
    own = {id(v) for v in q.variables}
    added = [v for key, v in alive().items() if key not in before and key not in own]
    assert [v.path for v in added if "seed" not in v.path] == []


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda x: keras.ops.flip(x), "Flip"),
        (lambda x: keras.ops.flip(x, axis=0), "Flip"),
        (lambda x: keras.ops.roll(x, 1, axis=(1, 0)), "Roll"),
        (lambda x: x[::-1, :], "GetItem"),
        (lambda x: L.Softmax(axis=0)(x), "Softmax"),
        (lambda x: keras.ops.softmax(x, axis=0), "Softmax"),
    ],
)
def test_what_mixes_samples_is_an_error(make, kind):
    x = keras.Input((6, 6, 3))
    model = keras.Model(x, make(L.Conv2D(2, 1)(x)))
    with pytest.raises(ValueError, match=rf"\({kind}\): needs to keep the first axis, samples"):
        kerasq.quantize_model(model)


def test_a_slice_that_leaves_nothing_is_an_error():
    x = keras.Input((6, 6, 3))
    model = keras.Model(x, L.Conv2D(2, 1)(x)[:, 6:])
    with pytest.raises(ValueError, match=r"\(GetItem\): needs to leave values, has none"):
        kerasq.quantize_model(model)


# Classes of models.


class Doubled(keras.Model):
    """A Functional model with a training step of its own."""

    def train_step(self, data):
        return {**super().train_step(data), "own": 2.0}


class Around(keras.Model):
    """A model that makes, or calls, another one."""

    def __init__(self, net, **kwargs):
        super().__init__(**kwargs)
        self.net = net

    def call(self, x, training=None):
        return self.net(x, training=training)

    def train_step(self, data):
        return {**super().train_step(data), "own": 2.0}


def fitted(model):
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
    return model.fit(x, np.zeros((8, 3)), verbose=0).history


def test_a_training_step_is_kept(capsys, tmp_path):
    float_model = networks.mlp()
    q = networks.quantized(Doubled(float_model.input, float_model.output))
    assert type(q) is Doubled and fitted(q)["own"] == [2.0]
    assert capsys.readouterr().out == ""
    lite, plain = kerasq.export_tflite(q), kerasq.quantize_model(float_model)
    plain.set_weights(q.get_weights())
    # But for what the file notes of its training.
    x = networks.data(float_model)
    np.testing.assert_array_equal(lite.predict(x), kerasq.export_tflite(plain).predict(x))
    q.save(tmp_path / "q.keras")
    again = kerasq.load_model(tmp_path / "q.keras", custom_objects={"Doubled": Doubled})
    assert type(again) is Doubled
    np.testing.assert_array_equal(lite.predict(x), kerasq.export_tflite(again).predict(x))


def test_a_class_that_makes_its_model_is_told_of(capsys):
    model = Around(networks.mlp())
    model(np.zeros((1, 6), "float32"))
    q = kerasq.quantize_model(model)
    assert "Not kept: train_step of the class 'Around'." in capsys.readouterr().out
    outer = Around(q)
    assert fitted(outer)["own"] == [2.0]
    text = r"Received: model 'around\w*', which has no ranges. Its layers \['\w+'\] are quantized"
    with pytest.raises(ValueError, match=text):
        kerasq.export_tflite(outer)
    assert kerasq.export_tflite(outer.net).float_ops == []


def test_models_of_quantized_models_are_told_of():
    part = networks.quantized(networks.mlp())
    x = keras.Input((6,))
    with pytest.raises(ValueError, match=r"put the float ones together and quantize the whole"):
        kerasq.summary(keras.Model(x, L.Dense(2)(part(x))))


class Stacked(keras.Sequential):
    """A Sequential model with a training step of its own."""

    def train_step(self, data):
        return {**super().train_step(data), "own": 2.0}


def test_a_sequential_model_of_a_class_is_told_of(capsys):
    kerasq.quantize_model(Stacked([keras.Input((4,)), L.Dense(3)]))
    assert "Not kept: train_step of the class 'Stacked'." in capsys.readouterr().out


def test_what_a_training_step_reads_is_kept():
    float_model = networks.mlp()
    model = Doubled(float_model.input, float_model.output)
    model.temperature = 2.0
    assert kerasq.quantize_model(model).temperature == 2.0


def test_clipping_levels_are_penalized_where_they_learn():
    model = networks.mlp()
    options = {"overrides": {"head": "w8a8"}, "range_gradient": "clip"}
    q = networks.quantized(model, scheme="w4a4", range_penalty=0.5, **options)
    learned = [x for x in q.trainable_variables if x.name in ("range_min", "range_max")]
    assert len(learned) >= 3
    expected = 0.5 * sum(float(x.numpy()) ** 2 for x in learned)
    assert float(sum(q.losses)) == pytest.approx(expected, rel=1e-6)
    copy = type(q).from_config(q.get_config())
    assert len(copy.losses) == len(q.losses)
    assert not networks.quantized(model, scheme="w4a4", **options).losses


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"range_penalty": -1.0}, r"at least 0, such as 1e-4. Received: range_penalty=-1.0"),
        ({"range_penalty": 1e-4, "range_gradient": "none"}, "where they follow the data"),
        ({"range_penalty": 1e-4, "scales": "power_of_two"}, "where they are thresholds"),
    ],
)
def test_penalties_that_do_not_fit(options, text):
    with pytest.raises(ValueError, match=text):
        kerasq.quantize_model(networks.mlp(), **options)


def test_unknown_shapes_are_said_before_anything_is_trained(capsys):
    x = keras.Input((None, 6), name="steps")
    kerasq.quantize_model(keras.Model(x, L.Dense(2)(L.GlobalMaxPooling1D()(x))))
    said = capsys.readouterr().out
    assert "No file can be made of it" in said and "'steps' of shape (None, None, 6)" in said
    kerasq.quantize_model(keras.Sequential([keras.Input((6,)), L.Dense(2)]))
    assert "No file" not in capsys.readouterr().out


@pytest.mark.parametrize("floatx", ["float16", "bfloat16"])
def test_models_of_16_bits_compute_in_32(floatx):
    layers = [L.Dense(4, "relu", dtype=floatx), L.Dense(3, dtype=floatx)]
    model = keras.Sequential([keras.Input((6,), dtype=floatx), *layers])
    assert {v.dtype for v in model.weights} == {floatx}
    data = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    q = kerasq.quantize_model(model)
    kerasq.calibrate(q, data)
    assert {v.dtype for v in q.weights} == {"float32"}
    lite = kerasq.export_tflite(q)
    assert lite.float_ops == []
    np.testing.assert_array_equal(lite.predict(data), q.predict(data, verbose=0))
    wanted = model.predict(data, verbose=0).astype("float32")
    np.testing.assert_allclose(lite.predict(data), wanted, atol=0.03 * np.ptp(wanted))
