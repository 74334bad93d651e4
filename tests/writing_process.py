"""A process that writes a run until it is killed or the disk is full; prints the number of samples after each commit.

Usage: python -m tests.writing_process DIRECTORY [LARGEST_FILE_IN_BYTES]
"""

from __future__ import annotations

import itertools
import resource
import sys

from precscope.errors import RunDirectoryError
from precscope.writer import RunWriter
from tests.core_fixtures import layer_record, random_arrays, run_record, sample_record, tensor_record

TENSORS = 50


def main(directory: str, largest_file: str | None = None) -> None:
    writer = RunWriter.create(directory, run_record())
    writer.add_layers([layer_record()])
    writer.add_tensors([tensor_record(index, name=str(index)) for index in range(TENSORS)])
    arrays = random_arrays(TENSORS, seed=1)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest_file), resource.RLIM_INFINITY))
    for step in itertools.count():
        try:
            writer.add_sample(sample_record(step), *arrays)
        except RunDirectoryError as error:
            print(error, flush=True)
            break
        print(step + 1, flush=True)
    writer.close("finished", ended_unix_s=1_700_000_100.0)


if __name__ == "__main__":
    main(*sys.argv[1:])
