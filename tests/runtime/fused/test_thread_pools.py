"""OpenMP's threads and TVM's in one process: none is pinned to a core, and none spins while the others work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAM = """
import json, os, torch
from torch import nn
from compiler.fused.spikes.geometry import Geometry
from compiler.tvm_setup import thread_count
from runtime.fused.spikes.words import pack
from runtime.fused.threads import free_cores

TASKS = "/proc/self/task"
convolution, x = nn.Conv2d(16, 16, 3), torch.rand(8, 16, 32, 32)
maps = Geometry(images=4, height=32, width=32, channels=64, out_channels=1)
spikes, words = torch.ones(4, 32, 32, 64), torch.zeros(4, 32, 32, 2, dtype=torch.int32)

def both():
    convolution(x)
    pack(maps, spikes, words, lambda role, shape, dtype: torch.empty(shape, dtype=dtype))

def cores():
    return [sorted(os.sched_getaffinity(int(task))) for task in os.listdir(TASKS)]

def tasks():
    return set(os.listdir(TASKS))

found = {"all": sorted(os.sched_getaffinity(0)), "cores": [], "dealt_out_to": []}
for threads in (2, 1, 2):
    torch.set_num_threads(threads)
    both()
    found["cores"] += cores()
    found["dealt_out_to"].append(thread_count())
found["words"] = int((words == -1).sum())
before = tasks()
convolution(x)
working = tasks() - before
free_cores()
found["workers"], found["left"] = len(working), len(tasks() & working)
convolution(x)
found["again"] = len(tasks() - before)
free_cores()
found["of_tvm"] = len(tasks() & before) - len(before)
print(json.dumps(found))
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="affinities are read as Linux tells them")
def test_threads_of_both_pools() -> None:
    variables = {"OMP_NUM_THREADS": "2", "TVM_NUM_THREADS": "2"}
    ignored = {"TVM_BIND_THREADS", "TVM_THREAD_POOL_SPIN_COUNT", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY"}
    environment = {name: value for name, value in os.environ.items() if name not in ignored} | variables
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    found = json.loads(done.stdout)
    assert found["words"] == 4 * 32 * 32 * 2
    assert found["dealt_out_to"] == [2, 2, 2]  # on one thread serial kernels are called, and the pool stays
    assert all(cores == found["all"] for cores in found["cores"])
    # torch's worker spins for 10 ms after an operator, unless it has ended; the next operator begins another one
    assert (found["workers"], found["left"], found["again"]) == (1, 0, 1)
    assert found["of_tvm"] == 0  # TVM's own threads sleep, and stay
