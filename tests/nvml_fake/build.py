"""Build the fake NVML: `python build.py FOLDER [compiler option ...]` puts libnvidia-ml.so.1 there.

A program that is started with LD_LIBRARY_PATH=FOLDER then gets it wherever it asks for NVML, nvidia-ml-py included.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml_fake.c")
NAME = "libnvidia-ml.so.1"


def main(folder: str, *options: str) -> int:
    flags = ["-O2", "-Wall", "-Werror", "-shared", "-fPIC", f"-Wl,-soname,{NAME}", *options]
    return subprocess.run(["cc", *flags, "-o", str(Path(folder) / NAME), str(SOURCE)]).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
