"""One table: the interpreters that run .tflite files here, by the target that they belong to."""

import importlib.metadata
from typing import NamedTuple


class Runtime(NamedTuple):
    """An interpreter.

    Attributes:
        title: its name in words.
        package: what it comes with, as pip calls it.
    """

    title: str
    package: str

    def version(self) -> str:
        """The version that is installed; "" where none is."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return ""

    def __str__(self) -> str:
        return f"{self.title} {self.version()}".strip()


RUNTIMES = {
    "litert": Runtime("LiteRT", "ai-edge-litert"),
    "tflm": Runtime("TFLite Micro", "tflite-micro"),
}
