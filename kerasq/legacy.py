"""Models of Keras 2: from .h5 files and from `tf_keras`, rebuilt in Keras 3."""

import contextlib
import inspect
import json
import os
import pathlib
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

import h5py
import keras

from kerasq import graph
from kerasq.graph import keras2
from kerasq.support import hdf5, optional
from kerasq.support.files import path_of


class UnsafeFileError(ValueError):
    """A file was not read, since reading it would run code, or read files that it names."""


def load_model(
    path: str | os.PathLike, custom_objects: dict | None = None, *, safe_mode: bool = True
) -> keras.Model:
    """Reads a model of Keras 3, or of Keras 2: TensorFlow 2.0 to 2.15, `tf_keras`.

    Models of Keras 2 are read by `tf_keras` and rebuilt: same layers, names, weights and outputs.

    Args:
        path: a .keras or .h5 file.
        custom_objects: by name, classes and functions of your own in it; of `tf_keras` for a file
            of Keras 2.
        safe_mode: as for `keras.models.load_model`: whether a file is refused that holds code (a
            Lambda of a Python lambda; in a .h5 file any Lambda). False runs that code, whatever it
            does: only for a file that you trust. Of what a lambda names around itself, such as
            modules, a file keeps nothing; a named function, given in `custom_objects`, needs none.

    Raises:
        FileNotFoundError: where there is no file at the path.
        ImportError: where a file of Keras 2 needs `tf_keras`, which is not installed.
        ValueError: for a file that is damaged, or holds code in safe mode, and for layers that
            Keras 3 does not have.
    """
    safe_mode = safe_mode is not False  # None, or 0, is no leave to run code.
    path = path_of(path)
    if not path.exists():
        raise FileNotFoundError(f"`path` must be a file. Received: {str(path)!r}.")
    with _reading(path, safe_mode):
        if h5py.is_hdf5(path):
            hdf5.check(path)
            if safe_mode:
                _check_no_code(path)
            is_old = _is_of_keras2(path)
        else:
            is_old = _is_archive_of_keras2(path)
    library = optional.load("tf_keras", "legacy") if is_old else keras
    with _reading(path, safe_mode):
        model = library.models.load_model(
            path, custom_objects=custom_objects, compile=False, safe_mode=safe_mode
        )
    return rebuild(model) if is_old else model


@contextlib.contextmanager
def _reading(path: pathlib.Path, safe_mode: bool) -> Iterator[None]:
    """Makes a ValueError of whatever readers of files raise, which is anything on damaged ones."""
    try:
        yield
    except UnsafeFileError:
        raise
    except Exception as error:
        # Keras refuses code, and files that a file names, by a ValueError that says how to.
        if safe_mode and isinstance(error, ValueError) and "safe_mode=False" in str(error):
            raise _unsafe(path, str(error).partition(". ")[0]) from error
        raise ValueError(
            "`path` must be a model file that Keras reads. Received: "
            f"{str(path)!r}: {type(error).__name__}: {f'{error!s:.500}'.rstrip('.')}. Save the "
            "model again if the file is damaged; give layers and functions of your own as "
            "`custom_objects`."
        ) from error


def _unsafe(path: pathlib.Path, found: str) -> UnsafeFileError:
    """The error of a file that safe mode refuses."""
    return UnsafeFileError(
        "A model file must hold no code, which reading it would run, and name no other files. "
        f"Received: {str(path)!r}: {found:.300}. Replace that by a layer or `keras.ops`; or, if "
        "you trust the file, load it with `safe_mode=False`, which runs its code."
    )


def _check_no_code(path: pathlib.Path) -> None:
    """Raises an UnsafeFileError for a .h5 file that holds code."""
    # tf_keras, and Keras before 3.11.3, would run it, whatever their `safe_mode` is.
    with h5py.File(path) as file:
        held = sorted(_held_code(json.loads(file.attrs["model_config"])))
    if held:
        raise _unsafe(path, f"Lambda in {held}")


def _is_of_keras2(path: pathlib.Path) -> bool:
    """Whether a .h5 file was saved by Keras 2."""
    with h5py.File(path) as file:
        return str(file.attrs.get("keras_version", "2")) < "3"


def _is_archive_of_keras2(path: pathlib.Path) -> bool:
    """Whether a .keras file was saved by Keras 2, which refuses code in it as Keras 3 does."""
    with zipfile.ZipFile(path) as file:
        return str(json.loads(file.read("metadata.json"))["keras_version"]) < "3"


def _held_code(config: Any) -> Iterator[str]:
    """Names of layers and functions in a configuration that are Python code."""
    if isinstance(config, dict) and config.get("class_name") in ("Lambda", "__lambda__"):
        yield str(dict(config.get("config") or {}).get("name", "a function"))
    elif isinstance(config, (dict, list)):
        for part in config.values() if isinstance(config, dict) else config:
            yield from _held_code(part)


def is_legacy(model: Any) -> bool:
    """Whether a model is one of `tf_keras`."""
    tf_keras = sys.modules.get("tf_keras")
    return tf_keras is not None and isinstance(model, tf_keras.Model)


def rebuild(model: Any) -> keras.Model:
    """The Keras 3 model that computes what a `tf_keras` model does, with its weights.

    Args:
        model: a built Functional or Sequential model of `tf_keras`.

    Raises:
        ValueError: for subclassed models, and layers or functions that Keras 3 does not have.
    """
    if not keras2.is_functional(model):
        raise ValueError(
            "A tf_keras model must be a built Functional or Sequential one. "
            f"Received: {type(model).__name__} {model.name!r}. Rebuild it in Keras 3."
        )
    made: dict[int, tuple[Any, Any]] = {}  # by id of a layer, it and what stands for it

    def call(old: Any, args: tuple, kwargs: dict) -> Any:
        # Once for all its calls, which share its weights.
        if id(old) not in made:
            made[id(old)] = old, rebuild(old) if is_legacy(old) else _layer(old)
        kwargs = {k: v for k, v in kwargs.items() if v is not None and k != "name"}
        return made[id(old)][1](*args, **kwargs)

    rebuilt = keras2.rebuild(model, call)
    for old, new in made.values():
        # Those of a model in this one were set when that was rebuilt.
        if not isinstance(new, keras.Model):
            graph.set_weights(new, old)
    return rebuilt


def _layer(old: Any) -> keras.Layer:
    """A layer of Keras 3 with the configuration of one of Keras 2."""
    kind = type(old).__name__
    cls = getattr(keras.layers, kind, None)
    if cls is None:
        raise ValueError(
            "A layer of a Keras 2 model must be one that Keras 3 has. "
            f"Received: {old.name!r} ({kind}). Call tfmot's strip_pruning or strip_clustering "
            "first, where it is one of its wrappers; else rebuild the model in Keras 3."
        )
    if kind == "Lambda":  # Its configuration is code.
        return cls(old.function, arguments=old.arguments, **_translated_config(old))
    config = _shared_config(old, cls) | _translated_config(old)
    for key, inner in _inner_layers(old, config):
        config[key] = keras.saving.serialize_keras_object(_layer(inner))
    try:
        return cls.from_config(config)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "A layer of a Keras 2 model must be one that Keras 3 makes from its configuration. "
            f"Received: {old.name!r} ({kind}): {error!s:.200}. Rebuild the model in Keras 3."
        ) from error


def _shared_config(old: Any, cls: Any) -> dict[str, Any]:
    """What of the configuration of a layer of Keras 2 means the same to a class of Keras 3."""
    known = {"name", "trainable", "dtype"}
    for base in cls.__mro__:  # Constructors pass on by `**kwargs` what their bases take.
        known |= {*inspect.signature(base.__init__).parameters}
    # Weights are copied, and some initializers are none of Keras 3.
    config = {
        key: value
        for key, value in old.get_config().items()
        if key in known and not key.endswith("_initializer")
    }
    for key in ("activation", "recurrent_activation"):
        if config.get(key) == "hard_sigmoid":
            raise ValueError(
                "The hard sigmoid of Keras 2, clip(0.2 x + 0.5), is not that of Keras 3, "
                f"relu6(x + 3) / 6. Received: layer {old.name!r}. Replace it, and train again."
            )
    return config


def _translated_config(old: Any) -> dict[str, Any]:
    """What Keras 3 calls otherwise than Keras 2, or takes in another form."""
    kind = type(old).__name__
    config = {"name": keras2.name_of(old), "dtype": old.dtype_policy.name}
    if kind == "LeakyReLU":
        config["negative_slope"] = float(old.alpha)
    if kind == "BatchNormalization":
        (config["axis"],) = old.axis
    if _is_own(getattr(old, "activation", None)):
        config["activation"] = old.activation
    return config


def _is_own(function: Any) -> bool:
    """Whether an activation is a function that Keras 2 does not have, such as a user's."""
    # By identity, as its name may be that of one of Keras's.
    home = optional.load("tf_keras", "legacy").activations
    return inspect.isfunction(function) and not any(function is x for x in vars(home).values())


def _inner_layers(old: Any, config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The layers inside a wrapper of Keras 2, by their keys in its configuration."""
    for key in ("layer", "backward_layer", "cell"):
        if config.get(key) is not None:
            # Bidirectional runs a copy of its layer, which its configuration does not tell.
            forward = getattr(old, "forward_layer", None) if key == "layer" else None
            yield key, forward or getattr(old, key)
