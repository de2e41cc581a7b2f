import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasq.fake_quant import fake_quant_per_channel
from kerasq.grid import Grid
from kerasq.quantizers.activations import (
    CALIBRATED,
    FIRST_BATCHES,
    NARROWEST,
    NARROWING_RATE,
    PATIENCE,
    PROVISIONAL,
    SAMPLES,
    VALUES,
    WIDENING_RATE,
    ActivationQuantizer,
    AtMostZero,
    UpperEnd,
)
from kerasq.quantizers.uniform import weight_range


def quantizer(low=None, high=None, **options):
    """A built quantizer; calibrated where a range is given."""
    made = ActivationQuantizer(**options)
    made.build()
    if high is not None:
        made.assign_range(low, high)
    return made


LEARNED = [{"range_gradient": "lsq"}, {"range_gradient": "clip"}]
INPUT = [{"is_input": True}, {"is_input": True, "range_gradient": "none"}]
KINDS = [*LEARNED, *INPUT, {"range_gradient": "none"}]


def ends(made):
    return tuple(float(end) for end in made.range())


def seeded_batches(count, seed=0):
    """Batches that differ in range and all contain 0."""
    rng = np.random.default_rng(seed)
    return [
        (rng.uniform(-1, 1, (8, 6)) * rng.uniform(0.5, 5)).astype("float32") for _ in range(count)
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("in_function", [False, True])
def test_the_first_batches_set_the_range_to_their_extremes(kind, in_function):
    made = quantizer(**kind)
    run = tf.function(made) if in_function else made
    data = seeded_batches(FIRST_BATCHES)
    for i, x in enumerate(data, start=1):
        run(tf.constant(x), training=True)
        seen = np.concatenate(data[:i])
        np.testing.assert_allclose(ends(made), (seen.min(), seen.max()), rtol=1e-6)
        assert made.batches_seen.numpy() == i


@pytest.mark.parametrize("kind", INPUT)
@pytest.mark.parametrize("in_function", [False, True])
def test_the_range_of_an_input_grows_unless_it_was_calibrated(kind, in_function):
    made = quantizer(**kind)
    run = tf.function(made) if in_function else made
    for x in seeded_batches(FIRST_BATCHES):
        run(tf.constant(x), training=True)
    for x in seeded_batches(5, seed=1):
        run(tf.constant(x * 100), training=True)
    seen = np.concatenate(seeded_batches(5, seed=1)) * 100
    np.testing.assert_allclose(ends(made), (seen.min(), seen.max()), rtol=1e-6)
    assert made.batches_seen.numpy() == FIRST_BATCHES
    # It never narrows, and calibration is the last word.
    for _ in range(PATIENCE + 5):
        run(tf.constant([[-1.0, 1.0]]), training=True)
    np.testing.assert_allclose(ends(made), (seen.min(), seen.max()), rtol=1e-6)
    made.assign_range(-1.0, 1.0)
    run(tf.constant([[-5.0, 5.0]]), training=True)
    assert ends(made) == (-1.0, 1.0)
    assert made.batches_seen.numpy() == CALIBRATED


@pytest.mark.parametrize("kind", LEARNED)
@pytest.mark.parametrize("in_function", [False, True])
def test_a_range_that_the_data_has_left_comes_after_it(kind, in_function):
    made = quantizer(-1.0, 2.0, **kind)
    run = tf.function(made) if in_function else made
    # Exceeded by half: a fifth of the way to there.
    run(tf.constant([[-1.6, 9.0]]), training=True)
    wider = (-1.0 - 0.2 * (1.6 / 1.5 - 1.0), 2.0 + 0.2 * (9.0 / 1.5 - 2.0))
    np.testing.assert_allclose(ends(made), wider, rtol=1e-6)
    # Within: left to learning.
    made.assign_range(-1.0, 2.0)
    run(tf.constant([[-0.6, 1.1]]), training=True)
    assert ends(made) == (-1.0, 2.0)


@pytest.mark.parametrize("kind", [*LEARNED, {"range_gradient": "none"}])
def test_a_range_narrows_once_many_batches_have_left_it_empty(kind):
    made = quantizer(-1.0, 2.0, **kind)
    low_values, reaching = tf.constant([[-0.1, 0.2]]), tf.constant([[-0.1, 1.6]])
    for _ in range(3):
        for _ in range(PATIENCE - 1):
            made(low_values, training=True)
        made(reaching, training=True)  # More than half of the range: counting starts again.
    assert ends(made) == (-1.0, 2.0)
    for _ in range(PATIENCE):
        made(low_values, training=True)
    assert ends(made) == (-1.0, 2.0)
    made(low_values, training=True)
    narrower = (-1.0 + NARROWING_RATE * 0.9, 2.0 - NARROWING_RATE * 1.8)
    np.testing.assert_allclose(ends(made), narrower, rtol=1e-6)
    for _ in range(100):
        made(low_values, training=True)
    # Down to twice what they reach.
    assert 0.55 < np.subtract(*ends(made)[::-1]) <= 0.61


@pytest.mark.parametrize("kind", [*LEARNED, {"range_gradient": "none"}])
@pytest.mark.parametrize("in_function", [False, True])
def test_a_provisional_range_is_forgotten_in_training(kind, in_function):
    made = quantizer(**kind)
    made.assign_range(-100.0, 200.0, PROVISIONAL)
    assert made.has_seen_data()
    run = tf.function(made) if in_function else made
    run(tf.constant([[-0.5, 1.0]]), training=True)
    np.testing.assert_allclose(ends(made), (-0.5, 1.0))
    assert made.batches_seen.numpy() == 1
    run(tf.constant([[-0.6, 2.0]]), training=True)
    np.testing.assert_allclose(ends(made), (-0.6, 2.0))
    # No other is, however little a batch has.
    made.assign_range(-4.0, 4.0)
    run(tf.constant([[0.0, 0.1]]), training=True)
    assert ends(made) == (-4.0, 4.0)


@pytest.mark.parametrize("kind", [*LEARNED, {"range_gradient": "none"}])
def test_largest_values_may_be_rare(kind):
    """An epoch that changes nothing else leaves a calibrated range as it is."""
    made = quantizer(-16.0, 16.0, **kind)
    rng = np.random.default_rng(0)
    for i in range(200):
        x = rng.uniform(-1.0, 1.0, (8, 4)).astype("float32")
        if i % 40 == 39:
            x[0] = 16.0
        made(tf.constant(x), training=True)
    assert ends(made) == (-16.0, 16.0)


@pytest.mark.parametrize(("bits", "clipping"), [(2, 6.0), (4, 2.5), (7, 1.5), (8, 1.5)])
def test_ranges_of_few_bits_may_clip(bits, clipping):
    made = quantizer(0.0, 1.0, bits=bits, relu=True)
    made(tf.constant([[clipping - 0.01, 0.9]]), training=True)
    assert ends(made) == (0.0, 1.0)
    made(tf.constant([[clipping * 2, 0.9]]), training=True)
    np.testing.assert_allclose(ends(made), (0.0, 1.0 + 0.2 * 1.0), rtol=1e-6)


def test_ranges_of_16_bits_come_after_the_largest_magnitude():
    made = quantizer(-1.0, 1.0, bits=16)
    made(tf.constant([[-3.0, 0.5]]), training=True)
    np.testing.assert_allclose(made.range_max.numpy(), 1.2, rtol=1e-6)


@pytest.mark.parametrize("kind", [*LEARNED, {"range_gradient": "none"}])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_batch_that_diverges_tells_nothing(kind, value):
    made = quantizer(-1.0, 2.0, **kind)
    made(tf.constant([[value, -value]]), training=True)
    assert ends(made) == (-1.0, 2.0)


def test_a_range_is_held_against_the_first_samples_of_a_batch():
    made = quantizer(-1.0, 1.0)
    for values, last in ((VALUES // 10, 10), (VALUES // SAMPLES, SAMPLES), (VALUES, SAMPLES)):
        x = np.zeros((last + 1, values), "f")
        x[last] = 9.0
        made(tf.constant(x), training=True)
        assert ends(made) == (-1.0, 1.0)
        made(tf.constant(x[1:]), training=True)
        assert ends(made)[1] > 1.0
        made.assign_range(-1.0, 1.0)


def test_a_traced_step_moves_no_range_that_is_to_stay():
    def assignments(made):
        run = tf.function(lambda x: made(x, training=True))
        graph = run.get_concrete_function(tf.TensorSpec([4, 3])).graph
        return sum(op.type == "AssignVariableOp" for op in graph.get_operations())

    assert assignments(quantizer()) == 3
    assert assignments(quantizer(-1.0, 1.0)) == 3
    assert assignments(quantizer(-1.0, 1.0, is_input=True)) == 0
    frozen = quantizer(-1.0, 1.0)
    frozen.trainable = False
    assert assignments(frozen) == 0


def test_a_stateless_call_follows_batches():
    """Whether the range is calibrated is an argument there, not known when tracing."""
    made = quantizer()

    @tf.function
    def run(trainable, others, x):
        return made.stateless_call(trainable, others, x, training=True)

    trainable = [tf.convert_to_tensor(v.value) for v in made.trainable_variables]
    _, (seen,) = run(trainable, [tf.zeros(())], tf.constant([[-1.0, 2.0]]))
    assert seen.numpy() == 1.0


def test_none_goes_on_where_values_are():
    made = quantizer(-1.0, 2.0, range_gradient="none")
    # Outliers that calibration has cut are left out on.
    for low, high, expected in ((-0.5, 2.9, (-1.0, 2.0)), (-3.0, 1.0, (-3.0, 2.0))):
        made(tf.constant([[low, high]]), training=True)
        assert ends(made) == expected


@pytest.mark.parametrize("kind", [*LEARNED, {"range_gradient": "none"}])
@pytest.mark.parametrize("start", [1e-4, 20.0])
def test_a_range_that_starts_wrong_is_right_after_250_batches(kind, start):
    made = quantizer(-start, start, **kind)
    run = tf.function(made)
    rng = np.random.default_rng(0)
    for _ in range(250):
        run(tf.constant(rng.uniform(-1.0, 1.0, (8, 100)), tf.float32), training=True)
    # Within what is left to learning: from where outliers are cut to where half is empty.
    assert 0.66 < made.range_max.numpy() < 2.1
    assert -2.1 < made.range_min.numpy() < -0.66


def test_trainable_false_freezes_the_moving_average():
    made = quantizer(-1.0, 1.0, range_gradient="none")
    made.trainable = False
    made(tf.constant([[-50.0, 50.0]]), training=True)
    assert ends(made) == (-1.0, 1.0)
    made.trainable = True
    made(tf.constant([[-50.0, 50.0]]), training=True)
    assert ends(made) == (-50.0, 50.0)


@pytest.mark.parametrize("kind", KINDS)
def test_only_training_moves_the_range(kind):
    made = quantizer(**kind)
    made(tf.constant([[-1.0, 2.0]]), training=False)
    made(tf.constant([[-1.0, 2.0]]))
    assert made.batches_seen.numpy() == 0
    made(tf.constant([[-1.0, 2.0]]), training=True)
    assert ends(made) == (-1.0, 2.0)


@pytest.mark.parametrize("range_gradient", ["lsq", "none"])
def test_a_calibrated_range_is_not_set_again(range_gradient):
    made = quantizer(-1.0, 3.0, range_gradient=range_gradient)
    made(tf.constant([[-9.0, 9.0]]), training=True)
    lsq = (-1 - WIDENING_RATE * (9 / 1.5 - 1), 3 + WIDENING_RATE * (9 / 1.5 - 3))
    expected = {"lsq": lsq, "none": (-9.0, 9.0)}[range_gradient]
    np.testing.assert_allclose(ends(made), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_which_variables_train(kind):
    learned = kind in LEARNED
    assert len(quantizer(**kind).trainable_variables) == (2 if learned else 0)
    behind_relu = quantizer(**kind, relu=True)
    assert len(behind_relu.trainable_variables) == (1 if learned else 0)
    assert behind_relu.range_min is None


@pytest.mark.parametrize("kind", INPUT)
def test_the_range_of_an_input_stays_when_layers_are_unfrozen(kind):
    made = quantizer(-1.0, 1.0, **kind)
    made.trainable = False
    made.trainable = True
    made(tf.constant([[-50.0, 50.0]]), training=True)
    assert ends(made) == (-1.0, 1.0)


def test_clamp_is_the_relu():
    x = tf.constant([-3.0, -0.0, 2.0, 6.0, 7.0])
    np.testing.assert_array_equal(quantizer().clamp(x), x)
    np.testing.assert_array_equal(quantizer(relu=True).clamp(x), [0, 0, 2, 6, 7])
    np.testing.assert_array_equal(quantizer(relu=True, limit=6.0).clamp(x), [0, 0, 2, 6, 6])


def test_behind_a_relu_the_range_starts_at_zero_and_clamps():
    made = quantizer(relu=True)
    made(tf.constant([[-4.0, 2.55]]), training=True)
    np.testing.assert_allclose(ends(made), (0.0, 2.55))
    y = made(tf.constant([-4.0, -0.004, 0.0, 1.0, 9.0]))
    np.testing.assert_allclose(y, [0.0, 0.0, 0.0, 1.0, 2.55], rtol=1e-6)


def test_the_limit_holds_for_any_data():
    made = quantizer(relu=True, limit=6.0)
    made(tf.constant([[1.0, 60.0]]), training=True)
    assert ends(made) == (0.0, 6.0)
    made.assign_range(0.0, 9.0)
    assert ends(made) == (0.0, 6.0)
    np.testing.assert_array_equal(made(tf.constant([8.0])), [6.0])


@pytest.mark.parametrize(("limit", "expected"), [(6.0, 6.0), (None, 20.0)])
def test_first_batches_count_as_they_are_behind_the_relu(limit, expected):
    """As `calibrate` does: the extremes are those of the ReLU's output."""
    for values in ([3.0, 20.0], [20.0, 3.0]):
        made = quantizer(relu=True, limit=limit)
        for value in values:
            made(tf.constant([[0.0, value]]), training=True)
        np.testing.assert_allclose(ends(made), (0.0, expected), rtol=1e-6)


def test_a_batch_that_the_relu_shuts_counts_as_zero():
    made = quantizer(relu=True)
    made(tf.constant([[0.0, 4.0]]), training=True)
    made(tf.constant([[-9.0, -5.0]]), training=True)
    assert ends(made) == (0.0, 4.0)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-1.0, 2.0, (-1.0, 2.0)),
        (0.5, 2.0, (0.0, 2.0)),
        (-2.0, -0.5, (-2.0, NARROWEST)),
        (-3.0, 0.0, (-3.0, NARROWEST)),
    ],
)
def test_assign_range_makes_the_range_contain_zero(low, high, expected):
    made = quantizer()
    made.assign_range(low, high)
    np.testing.assert_allclose(ends(made), expected, rtol=1e-6)
    assert made.batches_seen.numpy() == CALIBRATED


@pytest.mark.parametrize("relu", [False, True])
def test_a_tensor_that_is_always_zero_gets_a_range_of_ordinary_size(relu):
    made = quantizer(relu=relu)
    made.assign_range(0.0, 0.0)
    assert ends(made) == (0.0, 1.0)
    made = quantizer(relu=relu)
    made(tf.zeros((2, 3)), training=True)
    assert ends(made) == (0.0, 1.0)
    np.testing.assert_array_equal(made(tf.zeros((2, 3))), np.zeros((2, 3)))


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("direction", [-1.0, 1.0])
@pytest.mark.parametrize("options", [{}, {"relu": True}, {"relu": True, "limit": 6.0}])
def test_ranges_contain_zero_and_stay_open_whatever_the_optimizer_does(
    optimizer, direction, options
):
    made = quantizer(-1.0, 1.0, range_gradient="clip", **options)
    steps = getattr(keras.optimizers, optimizer)(learning_rate=1e6)
    x = tf.constant([[-3.0, -2.0, 0.5, 2.0, 3.0]])
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(made(x, training=True) * tf.constant([-1.0, -1, 1, 1, 1]))
            loss = direction * loss
        variables = made.trainable_variables
        steps.apply(tape.gradient(loss, variables), variables)
        low, high = ends(made)
        assert low <= 0.0 < NARROWEST <= high * 1.0001
        if "limit" in options:
            assert high <= 6.0
        # The variables themselves are held there, not only what is read from them.
        np.testing.assert_allclose(made.range_max.numpy(), high)
        assert np.isfinite(made(x)).all()
        Grid.from_range(low, high)


def test_the_output_lies_on_the_grid():
    x = np.random.default_rng(0).normal(0, 1, (50, 40)).astype("float32")
    made = quantizer(-1.3, 2.1)
    grid = made.grid().numpy()
    expected = Grid.from_range(np.float32(-1.3), np.float32(2.1))
    np.testing.assert_array_equal(grid.scale, expected.scale)
    np.testing.assert_array_equal(grid.zero_point, expected.zero_point)
    np.testing.assert_allclose(made(x), expected.dequantize(expected.quantize(x)), atol=1e-5)


def test_lsq_divides_by_the_values_of_a_sample():
    """Esser et al. 2020, section 2.2: factor 1 / sqrt(N * levels), N the values of one sample."""
    found = {}
    for copies in (1, 4):
        made = quantizer(-1.0, 1.0, range_gradient="lsq")
        x = tf.tile(tf.constant([[3.0, 0.0]]), [1, copies])
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(made(x, training=True))
        found[copies] = float(tape.gradient(loss, made.range_max.value))
    np.testing.assert_allclose(found[1], 255 / np.sqrt(2 * 255), rtol=1e-5)
    # Four times the gradient, over the root of four times the values.
    np.testing.assert_allclose(found[4], 2 * found[1], rtol=1e-5)


def test_options_come_back_from_the_configuration():
    options = {"bits": 4, "relu": True, "limit": 6.0, "range_gradient": "clip", "is_input": True}
    made = ActivationQuantizer(**options, name="q")
    again = ActivationQuantizer.from_config(made.get_config())
    assert again.get_config() == made.get_config()
    assert {key: getattr(again, key) for key in options} == options


def test_constraints_project():
    np.testing.assert_array_equal(AtMostZero()(tf.constant([-1.0, 0.0, 2.0])), [-1, 0, 0])
    x = tf.constant([-1.0, 0.0, 2.0, 9.0])
    np.testing.assert_allclose(UpperEnd()(x), [NARROWEST, NARROWEST, 2, 9])
    np.testing.assert_allclose(UpperEnd(6.0)(x), [NARROWEST, NARROWEST, 2, 6])
    again = keras.constraints.deserialize(keras.constraints.serialize(UpperEnd(6.0)))
    assert isinstance(again, UpperEnd) and again.limit == 6.0


@pytest.mark.parametrize("shape", [(7, 5), (3, 3, 4, 5)])
def test_weight_range_is_the_largest_magnitude_of_a_channel(shape):
    kernel = np.random.default_rng(0).normal(size=shape).astype("float32")
    kernel[..., 2] = 0.0
    expected = np.abs(kernel).reshape(-1, 5).max(0)
    expected[2] = NARROWEST
    np.testing.assert_array_equal(weight_range(tf.constant(kernel)), np.float32(expected))
    # Below 8 bits by squared errors, which are 0 in float32 at such sizes; exactly, by powers of 2.
    tiny = np.float32(2.0**-80)
    found, small = (weight_range(tf.constant(kernel * k), 4) for k in (np.float32(1), tiny))
    np.testing.assert_array_equal(np.delete(small, 2), tiny * np.delete(found, 2))


def test_weights_of_an_empty_channel_stay_zero():
    kernel = tf.constant([[0.0, 1.01], [0.0, -2.0]])
    found = fake_quant_per_channel(kernel, weight_range(kernel))
    np.testing.assert_allclose(found, [[0.0, 64 * 2 / 127], [0.0, -2.0]], rtol=1e-5)


def test_the_penalty_by_hand():
    made = quantizer(-1.0, 2.0, bits=4, range_gradient="clip", range_penalty=0.05)
    x = tf.constant([[-3.0, 0.5, 2.5, 4.0, 5.0]])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(made(x)) + tf.add_n(made.losses)
    low, high = tape.gradient(loss, [made.range_min.value, made.range_max.value])
    # One value is below the range and three are above it; the penalty's gradient is 2 p end.
    assert float(low) == pytest.approx(1 + 2 * 0.05 * -1.0)
    assert float(high) == pytest.approx(3 + 2 * 0.05 * 2.0)
    # What follows the data has none, nor what is frozen.
    assert not quantizer(0.0, 1.0, range_gradient="none", range_penalty=0.05).losses
    made.trainable = False
    assert not made.losses
