"""Write a run while processes are forked from the one that writes: `python -m tests.forking_process FOLDER`.

A thread writes without a pause. The children try to write, leave the session's `with` block, and end as an interpreter
ends: in that order all that could harm the parent's file.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from precscope.errors import RunDirectoryError
from precscope.records import NoticeRecord
from precscope.writer import RunWriter
from tests.core_fixtures import random_arrays, run_record, sample_record, tensor_record

CHILDREN, SAMPLES = 12, 60


def child(writer: RunWriter) -> None:
    assert not writer.is_mine
    try:
        writer.add_notice(NoticeRecord(None, "info", "child", "must not be written"))
        refused = ""
    except RunDirectoryError as error:
        refused = str(error)
    assert "was forked from the one that records" in refused
    writer.close("failed", "the child's")


def main(folder: Path) -> None:
    writer = RunWriter.create(folder / "run", run_record())
    writer.add_tensors([tensor_record(0)])
    done = threading.Event()

    def complain() -> None:
        number = 0
        while not done.is_set():
            writer.add_notice(NoticeRecord(number, "info", "thread", "message"))
            number += 1

    thread = threading.Thread(target=complain)
    thread.start()
    children = []
    for step in range(SAMPLES):
        writer.add_sample(sample_record(step), *random_arrays(1, seed=step))
        if step % (SAMPLES // CHILDREN) == 0:
            pid = os.fork()
            if pid == 0:
                child(writer)
                sys.exit(0)  # as an interpreter ends, not by os._exit
            children.append(pid)
    statuses = [os.waitpid(pid, 0)[1] for pid in children]
    done.set()
    thread.join()
    writer.close("finished")
    print(statuses)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
