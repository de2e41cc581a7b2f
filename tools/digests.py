"""Digests of exports: shows that a change of the code left every exported byte as it was.

    python -m tools.digests >new.txt  # or with names of rows behind it
    git worktree add /tmp/before <commit>
    PYTHONPATH=/tmp/before python tools/digests.py >old.txt
    diff old.txt new.txt

Every row is a network of the zoo under one scheme, with random weights, calibrated and exported.
"""

import contextlib
import hashlib
import io

import keras
from absl import app

import kerasq
from tools import zoo

# By name of a row of the zoo, the options of `quantize_model` that it is exported under.
NETWORKS: dict[str, list[dict]] = {
    "ds_cnn": [{}, {"batch_norm": "keep"}, {"scheme": "w2a3"}, {"scheme": "w4a16"}],
    "unet": [{}, {"scheme": "w4a8", "weights": "dorefa"}],
    "tcn": [{}, {"scheme": "w8a16"}, {"scheme": "w4a4"}],
    "squeeze_excite": [{}, {"scheme": "w8a4"}, {"scheme": "w3a16"}],
    "transformer": [{}, {"scheme": "w4a8", "overrides": {"*_normalization*": "float"}}],
    "gru": [{}],
    "two_by_two": [{}, {"scheme": "w8a16", "overrides": {"image": "w8a8", "conv2d*": "w8a8"}}],
    "mobilenetv2": [{}],
    "mobilenetv3small": [{}],
    "efficientnetb0": [{}],
    "resnet50v2": [{}],
    "nasnetmobile": [{}],
}


def digest(name: str, options: dict) -> str:
    """SHA-256 of the export of a network, or the error that it ends in."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    model = zoo.ROWS[name].make()
    x = zoo.samples(model, 16)
    zoo.shake(model, x)
    try:
        q = kerasq.quantize_model(model, **options)
        kerasq.calibrate(q, [keras.tree.pack_sequence_as(model.input, x)])
        content = kerasq.export_tflite(q).content
    except ValueError as error:
        return f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
    return hashlib.sha256(content).hexdigest()


def main(argv: list[str]) -> None:
    """Prints a line for each scheme of the networks that are named; of all by default."""
    for name in argv[1:] or NETWORKS:
        for options in NETWORKS[name]:
            with contextlib.redirect_stdout(io.StringIO()):
                found = digest(name, options)
            print(name, options, found, flush=True)


if __name__ == "__main__":
    app.run(main)
