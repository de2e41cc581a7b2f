import dataclasses

import numpy as np
import pytest

from kerasq.grid import Grid

# Worked by hand from Jacob et al. 2018, section 3.1: scale = (high - low) / (qmax - qmin), and
# zero_point = qmin + round(-low / scale), halves up.
HAND_WORKED = [
    # low, high, bits, narrow, scale, zero_point
    (0.0, 255.0, 8, False, 1.0, -128),
    (-128.0, 127.0, 8, False, 1.0, 0),
    (-255.0, 0.0, 8, False, 1.0, 127),
    (-32.0, 31.75, 8, False, 0.25, 0),
    (-0.4, 254.6, 8, False, 1.0, -128),  # 0.4 steps below zero: the nearest code is the first
    (-0.6, 254.4, 8, False, 1.0, -127),
    (-0.5, 254.5, 8, False, 1.0, -127),  # a half goes up
    (-254.6, 0.4, 8, False, 1.0, 127),
    (-127.0, 127.0, 8, True, 1.0, 0),
    (-3.5, 3.5, 4, True, 0.5, 0),
    (0.0, 15.0, 4, False, 1.0, -8),
    (-2.0, 1.0, 2, False, 1.0, 0),
    (-1.0, 1.0, 2, True, 1.0, 0),
    (-32768.0, 32767.0, 16, False, 1.0, 0),
    (-32767.0, 32767.0, 16, True, 1.0, 0),
    (0.0, 65535.0, 16, False, 1.0, -32768),
]
RANGES = [(0.0, 1e-6), (-1e-6, 0.0), (-3.7, 11.3), (0.0, 6.0), (-1.0, 1.0), (-1e6, 7.0)]


@pytest.mark.parametrize(("low", "high", "bits", "narrow", "scale", "zero_point"), HAND_WORKED)
def test_from_range_gives_the_hand_worked_grid(low, high, bits, narrow, scale, zero_point):
    grid = Grid.from_range(low, high, bits=bits, narrow=narrow)
    assert (grid.scale, grid.zero_point) == (scale, zero_point)
    assert grid.scale.dtype == np.float32 and grid.zero_point.dtype == np.int32
    assert (grid.bits, grid.narrow, grid.axis) == (bits, narrow, None)


@pytest.mark.parametrize(
    ("bits", "narrow", "qmin", "qmax", "dtype"),
    [
        (2, False, -2, 1, np.int8),
        (4, False, -8, 7, np.int8),
        (4, True, -7, 7, np.int8),
        (8, False, -128, 127, np.int8),
        (8, True, -127, 127, np.int8),
        (9, False, -256, 255, np.int16),
        (16, True, -32767, 32767, np.int16),
    ],
)
def test_codes_and_their_type(bits, narrow, qmin, qmax, dtype):
    grid = Grid(scale=1.0, zero_point=0, bits=bits, narrow=narrow)
    assert (grid.qmin, grid.qmax, grid.dtype) == (qmin, qmax, dtype)


@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_zero_is_exactly_on_the_grid(low, high, bits):
    grid = Grid.from_range(low, high, bits=bits)
    assert grid.qmin <= grid.zero_point <= grid.qmax
    assert grid.quantize(0.0) == grid.zero_point
    assert grid.dequantize(grid.zero_point) == 0.0
    assert grid.low <= 0.0 <= grid.high


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_symmetric_narrow_ranges_have_zero_point_zero(bits):
    high = np.exp(np.random.default_rng(bits).uniform(-14, 14, 500))
    grid = Grid.from_range(-high, high, bits=bits, narrow=True, axis=0)
    np.testing.assert_array_equal(grid.zero_point, 0)
    np.testing.assert_array_equal(grid.low, -grid.high)
    np.testing.assert_array_equal(grid.scale, np.float32(high / (2 ** (bits - 1) - 1)))


def test_ends_move_by_at_most_half_a_step():
    rng = np.random.default_rng(0)
    low, high = -rng.uniform(0, 5, 300), rng.uniform(0.1, 5, 300)
    grid = Grid.from_range(low, high, axis=0)
    slack = grid.scale * 0.5001
    assert (np.abs(grid.low - low) <= slack).all() and (np.abs(grid.high - high) <= slack).all()
    assert (grid.low != np.float32(low)).any()


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
def test_per_channel_grids_work_along_their_axis(axis):
    shape = (3, 4, 5)
    rng = np.random.default_rng(1)
    x = rng.normal(0, 3, shape).astype("float32")
    low, high = -rng.uniform(0.5, 4, shape[axis]), rng.uniform(0.5, 4, shape[axis])
    grid = Grid.from_range(low, high, axis=axis)
    codes = grid.quantize(x)
    real = grid.dequantize(codes)
    for channel in range(shape[axis]):
        alone = Grid.from_range(low[channel], high[channel])
        expected = alone.quantize(x.take(channel, axis))
        np.testing.assert_array_equal(codes.take(channel, axis), expected)
        np.testing.assert_array_equal(real.take(channel, axis), alone.dequantize(expected))


def test_ties_go_to_the_even_code_and_the_ends_clip():
    grid = Grid(scale=np.float32(0.5), zero_point=np.int32(0))
    # Real values in half steps, so that x / scale is k + 1/2.
    x = np.array([-1.25, -0.75, -0.25, 0.25, 0.75, 1.25, 63.25, 63.75, 1e9, -63.75, -64.25, -1e9])
    expected = [-2, -2, 0, 0, 2, 2, 126, 127, 127, -128, -128, -128]
    codes = grid.quantize(x)
    assert codes.dtype == np.int8
    np.testing.assert_array_equal(codes, expected)


def test_ties_are_decided_before_the_zero_point_is_added():
    grid = Grid(scale=np.float32(1.0), zero_point=np.int32(3))
    np.testing.assert_array_equal(grid.quantize([0.5, 1.5, -0.5, -1.5]), [3, 5, 3, 1])


def test_infinities_clip_and_narrow_leaves_out_the_lowest_code():
    grid = Grid.from_range(-127.0, 127.0, narrow=True)
    np.testing.assert_array_equal(grid.quantize([-np.inf, -128.0, np.inf]), [-127, -127, 127])


def test_dequantize_matches_a_table():
    grid = Grid(scale=np.float32(0.25), zero_point=np.int32(-28))
    real = grid.dequantize(np.array([-128, -28, -27, 127], np.int8))
    assert real.dtype == np.float32
    np.testing.assert_array_equal(real, [-25.0, 0.0, 0.25, 38.75])
    assert (grid.low, grid.high) == (-25.0, 38.75)


@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_every_code_survives_the_round_trip(low, high, bits):
    grid = Grid.from_range(low, high, bits=bits)
    codes = np.arange(grid.qmin, grid.qmax + 1, dtype=grid.dtype)
    np.testing.assert_array_equal(grid.quantize(grid.dequantize(codes)), codes)


def test_rounding_is_idempotent_and_off_by_at_most_half_a_step():
    x = np.random.default_rng(2).uniform(-1.5, 3.5, 5000).astype("float32")
    grid = Grid.from_range(-1.5, 3.5)
    once = grid.dequantize(grid.quantize(x))
    np.testing.assert_array_equal(grid.dequantize(grid.quantize(once)), once)
    inside = (x >= grid.low) & (x <= grid.high)
    assert np.abs(once - x)[inside].max() <= grid.scale * 0.501
    assert np.abs(once - x)[inside].max() > grid.scale * 0.45


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 3)])
def test_empty_arrays_keep_shape_and_type(shape):
    grid = Grid.from_range(-1.0, 1.0)
    codes = grid.quantize(np.zeros(shape))
    assert codes.shape == shape and codes.dtype == np.int8
    real = grid.dequantize(codes)
    assert real.shape == shape and real.dtype == np.float32


@pytest.mark.parametrize("bits", [-8, 0, 1, 17, 32])
def test_bits_outside_2_to_16_are_an_error(bits):
    with pytest.raises(ValueError, match=rf"`bits` must be in \[2, 16\].*bits={bits}\."):
        Grid(scale=1.0, zero_point=0, bits=bits)
    with pytest.raises(ValueError, match=rf"`bits` must be in \[2, 16\].*bits={bits}\."):
        Grid.from_range(0.0, 1.0, bits=bits)


@pytest.mark.parametrize("bits", [2, 16])
def test_bits_at_the_bounds_are_legal(bits):
    assert Grid(scale=1.0, zero_point=0, bits=bits).bits == bits


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0.5, 1.0),
        (-1.0, -0.5),
        (0.0, 0.0),
        (1.0, -1.0),
        ([-1.0, 0.1], [1.0, 1.0]),
        ([-1.0, 0.0], [1.0, 0.0]),
    ],
)
def test_ranges_without_zero_or_width_are_an_error(low, high):
    with pytest.raises(ValueError, match=r"must contain 0\.0.*Received: low=.*Widen it"):
        Grid.from_range(low, high)


@pytest.mark.parametrize(
    ("low", "high"), [(np.nan, 1.0), (0.0, np.nan), (-np.inf, 1.0), (0.0, np.inf)]
)
def test_ranges_that_are_not_finite_are_an_error(low, high):
    with pytest.raises(ValueError, match=r"must be finite\. Received: low="):
        Grid.from_range(low, high)


def test_a_grid_cannot_be_changed_or_made_by_position():
    grid = Grid.from_range(0.0, 1.0)
    with pytest.raises(dataclasses.FrozenInstanceError, match="scale"):
        grid.scale = 2.0
    with pytest.raises(TypeError, match="positional"):
        Grid(1.0, 0)


def test_numpy_turns_tensors_into_arrays():
    tf = pytest.importorskip("tensorflow")
    grid = Grid(scale=tf.constant([0.5, 0.25]), zero_point=tf.constant([0.0, -3.0]), axis=-1)
    plain = grid.numpy()
    assert isinstance(plain.scale, np.ndarray) and plain.scale.dtype == np.float32
    assert plain.zero_point.dtype == np.int32 and plain.axis == -1
    np.testing.assert_array_equal(plain.quantize([[1.0, 1.0]]), [[2, 1]])
