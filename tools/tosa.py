"""Runs .tflite files on the TOSA reference model, by the calls that LiteRT's interpreter has.

TOSA is the instruction set behind which compilers of Arm's NPUs put a network. The converter and
the model come into a folder of their own, .tosa/, when they are first used: they want another NumPy
than TensorFlow does.
"""

import pathlib
import subprocess
import sys
import tempfile

import numpy as np

TOOLS, CONVERTER = "2026.8.0", "2026.2.0"
TITLE = f"TOSA {TOOLS}"
_HERE = pathlib.Path(__file__).resolve().parents[1] / ".tosa"
# Seconds that one program may take.
_LIMIT = 600


class TosaInterpreter:
    """A file on the TOSA reference model.

    Args:
        content: the file.

    Raises:
        RuntimeError: for what TOSA has no operators of, in the converter's words.
    """

    def __init__(self, content: bytes) -> None:
        _install()
        # Removed with the interpreter.
        self._folder = tempfile.TemporaryDirectory()
        here = self._path = pathlib.Path(self._folder.name)
        (here / "model.tflite").write_bytes(content)
        _run("tosa-converter-for-tflite", "model.tflite", "--text", "-o", "model.mlir", folder=here)
        _run(
            "tosa-opt",
            "model.mlir",
            "--tosa-serialize",
            "--tosa-flatbuffer-filename=model.tosa",
            "-o",
            "lowered.mlir",
            folder=here,
        )
        head = (here / "lowered.mlir").read_text().partition("func.func @main(")[2]
        arguments, _, results = head.partition("{\n")[0].partition(") -> ")
        self._inputs, self._outputs = arguments.count("tensor<"), results.count("tensor<")

    def allocate_tensors(self) -> None:
        """Nothing: the model takes its memory when it runs."""

    def get_input_details(self) -> list[dict[str, int]]:
        """Where `set_tensor` puts each input."""
        return [{"index": i} for i in range(self._inputs)]

    def get_output_details(self) -> list[dict[str, int]]:
        """Where `get_tensor` finds each output."""
        return [{"index": i} for i in range(self._outputs)]

    def set_tensor(self, index: int, value: np.ndarray) -> None:
        """Sets an input, by its place among them."""
        np.save(self._path / f"in{index}.npy", value)

    def get_tensor(self, index: int) -> np.ndarray:
        """An output, by its place among them."""
        return np.load(self._path / f"out{index}.npy")

    def invoke(self) -> None:
        """Runs the file once."""
        named = {
            "ifm_name": [f"TosaInput_{i}" for i in range(self._inputs)],
            "ifm_file": [f"in{i}.npy" for i in range(self._inputs)],
            "ofm_name": [f"TosaOutput_{i}" for i in range(self._outputs)],
            "ofm_file": [f"out{i}.npy" for i in range(self._outputs)],
        }
        (schema,) = _HERE.rglob("tosa.fbs")
        ends = [f"--{key}={','.join(names)}" for key, names in named.items()]
        places = ["--tosa_file=model.tosa", "--flatbuffer_dir=.", "--output_dir=."]
        _run("tosa_reference_model", f"--operator_fbs={schema}", *places, *ends, folder=self._path)


def _install() -> None:
    if (_HERE / "bin" / "tosa_reference_model").exists():
        return
    print(f"Setting up {TITLE} in .tosa (once)", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", _HERE], check=True)
    wanted = [f"tosa-tools=={TOOLS}", f"tosa-converter-for-tflite=={CONVERTER}"]
    pip = [str(_HERE / "bin/python"), "-m", "pip", "install", "--disable-pip-version-check"]
    # From there, since here pip would miss what kerasq needs.
    subprocess.run([*pip, "--quiet", *wanted], check=True, cwd=_HERE)


def _run(program: str, *arguments: str, folder: pathlib.Path) -> None:
    done = subprocess.run(
        [_HERE / "bin" / program, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=_LIMIT,
    )
    said = done.stdout + done.stderr
    # The model ends well where an operator is none of its own.
    if done.returncode or "could not allocate op" in said:
        raise RuntimeError(f"{program}: {said.strip()[-500:]}")
