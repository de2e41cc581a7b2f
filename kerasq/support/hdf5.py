"""HDF5 files that can be read, which is found out where nothing is lost."""

import pathlib
import subprocess
import sys

# Reads all of a file: its library reads no more than that.
_READ_ALL = """
import sys
import h5py

def read(name, item):
    dict(item.attrs)
    if isinstance(item, h5py.Dataset):
        item[()]

with h5py.File(sys.argv[1]) as file:
    read("", file)
    file.visititems(read)
"""
# Seconds to read a file, at least, and how many bytes of it in each.
_LEAST, _BYTES = 30.0, 1e6


def check(path: pathlib.Path) -> None:
    """Raises a ValueError for a damaged file, on which the HDF5 library may hang or crash.

    Another process reads it, which takes about a third of a second.
    """
    limit = _LEAST + path.stat().st_size / _BYTES
    command = [sys.executable, "-c", _READ_ALL, str(path)]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        fault = f"one that is not read within {limit:.0f} s"
    else:
        if found.returncode == 0:
            return
        lines = found.stderr.strip().splitlines()
        fault = lines[-1] if lines else f"one that ends its reader with {found.returncode}"
    raise ValueError(f"A .h5 file must be sound. Received: {fault}.")
