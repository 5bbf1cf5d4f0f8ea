"""Starts children of one process that has imported everything. TRL and what it needs take four seconds to import.

Reads from standard input, a line each, JSON lists of children that run at the same time, and answers each by the list
of their wait statuses. If one ends badly, the others are killed. A child has
    call: "module:function" and `arguments` for it; what it returns is the exit code (None = 0)
    script: in place of `call`, the file that becomes __main__ with these `arguments`
    environment: variables     folder: the current one     log: the file that its output is appended to
    seconds: after which it is killed (left out = never)
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import runpy
import signal
import sys
import time
import traceback
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

import trbext.cli  # noqa: E402, F401
import trbext.rollout.speculative_rounds  # noqa: E402, F401
import trbext.runs.plots  # noqa: E402, F401
import trbext.studies.compare.worker  # noqa: E402, F401
import trbext.training.trainer  # noqa: E402, F401


def run(child: dict[str, Any]) -> int:
    """Becomes the child, and returns its exit code."""
    log = os.open(child["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(log, number)
    os.chdir(child["folder"])
    os.environ.update(child["environment"])
    random.seed()  # a process of its own would not start from this one's random state
    np.random.seed()
    torch.manual_seed(random.getrandbits(32))
    try:
        if "script" in child:
            sys.argv = [child["script"], *child["arguments"]]
            runpy.run_path(child["script"], run_name="__main__")
            return 0
        module, _, function = child["call"].partition(":")
        return int(getattr(importlib.import_module(module), function)(*child["arguments"]) or 0)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1


def started(child: dict[str, Any]) -> int:
    process = os.fork()
    if process == 0:
        code = run(child)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return process


def statuses(children: list[dict[str, Any]]) -> list[int]:
    """Runs the children to their ends, and returns their wait statuses."""
    began = time.monotonic()
    running = {started(child): child for child in children}
    processes, found = list(running), dict[int, int]()
    while running:
        limited = any("seconds" in child for child in running.values())
        process, status = os.waitpid(-1, os.WNOHANG if limited else 0)
        late = [p for p, child in running.items() if time.monotonic() - began > child.get("seconds", float("inf"))]
        if process:
            found[process] = status
            del running[process]
            if status:
                late = list(running)
        for other in late:
            if other in running:
                os.kill(other, signal.SIGKILL)
                running[other].pop("seconds", None)
        if limited and not process:
            time.sleep(0.002)
    return [found[process] for process in processes]


if __name__ == "__main__":
    PIL.Image.init()  # imports the formats
    gc.collect()
    gc.freeze()  # a child that collects garbage would copy and search all that was imported
    for line in sys.stdin:
        print(json.dumps(statuses(json.loads(line))), flush=True)
