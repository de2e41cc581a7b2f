"""Names, configurations and instances."""

import keras
import pytest

from kerasq.support import identifiers

NAMED = {"zeros": keras.initializers.Zeros, "normal": keras.initializers.RandomNormal}


def find(identifier):
    return identifiers.find("start", identifier, keras.initializers.Initializer, NAMED)


def test_a_name_is_a_new_instance_each_time():
    assert isinstance(find("zeros"), keras.initializers.Zeros)
    assert find("normal") is not find("normal")


def test_an_instance_is_itself():
    found = keras.initializers.Constant(3.0)
    assert find(found) is found


def test_a_configuration_keeps_its_arguments():
    config = keras.saving.serialize_keras_object(keras.initializers.Constant(3.0))
    assert find(config).get_config() == {"value": 3.0}


@pytest.mark.parametrize("other", ["ones", 1, None, {"value": 3.0}, keras.initializers.Zeros])
def test_anything_else_is_an_error(other):
    match = r"`start` must be one of \['zeros', 'normal'\]\. Received: start="
    with pytest.raises(ValueError, match=match):
        find(other)
