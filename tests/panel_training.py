"""A stand-in for a training with live=True: writes a run and draws a progress bar as Keras does, led by its input.

Usage: python -m tests.panel_training RUN_DIR. Each line of input is a step; an empty one ends the training.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from precscope.probes.live_process import LiveProcess
from precscope.records import LossScaleRecord
from precscope.writer import RunWriter
from tests.core_fixtures import layer_record, random_arrays, run_record, sample_record, tensor_record


def main(run_dir: str) -> None:
    writer = RunWriter.create(run_dir, run_record(started_unix_s=time.time()))
    writer.add_layers([layer_record("dense")])
    writer.add_tensors([tensor_record(0)])
    live = LiveProcess.start(Path(run_dir), lambda message: print(message, file=sys.stderr))
    try:
        print("training begins", flush=True)
        for line in iter(sys.stdin.readline, ""):
            if not line.strip():
                break
            step = int(line)
            writer.add_sample(sample_record(step, time_unix_s=time.time()), *random_arrays(1, seed=step))
            writer.add_loss_scale(LossScaleRecord(step + 1, 32768.0, step + 1, 0, None))
            for part in range(10):
                print(f"\r{part}/9 \x1b[1m{'=' * part}\x1b[0m", end="", flush=True)
            print(f"\r{f'step {step} done':<20}", flush=True)
    finally:
        writer.close("finished")
        if live is not None:
            live.stop()
    print("training is over", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
