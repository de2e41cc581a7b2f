"""Arguments that are numbers."""

import numpy as np
import pytest

from kerasq.support.numbers import check_integer, check_number


@pytest.mark.parametrize("value", [None, "1", True, 1j, [1.0], np.ones(2)])
def test_what_is_no_number_is_named(value):
    with pytest.raises(ValueError, match=r"`rate` must be a number. Received: rate="):
        check_number("rate", value)


@pytest.mark.parametrize("value", [None, "1", True, 2.0, 1, -5])
def test_what_is_no_integer_above_the_least_is_named(value):
    with pytest.raises(ValueError, match=r"`steps` must be an integer of at least 2, in all. Rec"):
        check_integer("steps", value, 2, "in all")


def test_numbers_of_any_kind_pass():
    for value in (0, -1.5, np.float32(2), np.int8(3), float("nan")):
        check_number("rate", value)
    for value in (2, np.int64(9)):
        check_integer("steps", value, 2)
