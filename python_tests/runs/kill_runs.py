"""Runs `trb train` and a study's worker in children of one warm process, and kills them, for test_kill.py.

Reads tasks from standard input, one JSON object per line, and answers each by the child's wait status:
    words: of `trb`, or worker: [settings file, keep_model]     log: file that what it prints is appended to
    seconds: kill it after so long, or event: at its so-many-th access to a file of its folder (null = let it end)
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch

torch.set_num_threads(1)  # before the first operation: the threads of a pool would be missing in a child

# What a run imports as it goes. Each child would import it again.
import matplotlib.backends.backend_agg  # noqa: E402, F401
import matplotlib.font_manager  # noqa: E402, F401
import PIL.Image  # noqa: E402
import rich._emoji_codes  # noqa: E402, F401
import scipy.io  # noqa: E402, F401
import torch.distributed.tensor.experimental  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

import trbext.rollout.speculative_rounds  # noqa: E402, F401
import trbext.runs.plots  # noqa: E402, F401
from trbext.cli import main  # noqa: E402
from trbext.studies.compare import worker  # noqa: E402
from trbext.training.trainer import TRBTrainer  # noqa: E402, F401


def kill_at(event: int, folder: str) -> None:
    """Ends this process at its `event`-th opening, renaming or removal of a file of `folder`."""
    left = [event]

    def count(name: str, arguments: tuple[Any, ...]) -> None:
        if name in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"):
            path = arguments[0]
            if isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(folder):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def child(task: dict[str, Any]) -> int:
    log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(log, number)
    random.seed()  # a process of its own would not start from this one's random state
    np.random.seed()
    torch.manual_seed(random.getrandbits(32))
    if task.get("event") is not None:
        kill_at(task["event"], task["folder"])
    try:
        if "worker" in task:
            worker.train(Path(task["worker"][0]), keep_model=task["worker"][1])
            return 0
        return main(task["words"])
    except BaseException:
        traceback.print_exc()
        return 1


def run(task: dict[str, Any]) -> int:
    """Runs a task, and returns the wait status of its process."""
    process = os.fork()
    if process == 0:
        code = child(task)
        sys.stdout.flush()
        os._exit(code)
    if task.get("seconds") is not None:
        deadline = time.monotonic() + task["seconds"]
        while time.monotonic() < deadline:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                return status
            time.sleep(0.002)
        os.kill(process, signal.SIGKILL)
    return os.waitpid(process, 0)[1]


if __name__ == "__main__":
    PIL.Image.init()  # imports the formats
    Figure.tight_layout = lambda *_: None  # where labels lie takes a third of the time of a plot
    gc.collect()
    gc.freeze()  # a run collects garbage, for which a child would copy and search all that was imported
    for line in sys.stdin:
        print(run(json.loads(line)), flush=True)
