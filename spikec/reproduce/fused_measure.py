"""One training step measured on this machine's CPU, in a process of its own: time, and how far the process grows."""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hwmodel.errors import CompileError, Loc

WARM_UP_STEPS = 1  # compiles kernels
TIMED_STEPS = 3
_CLASSES = 10
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RSS_AND_PEAK = "5"  # to clear_refs: the high-water mark falls to what is resident


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSetting:
    """What a process trains, on random images."""

    network: str  # of the zoo
    batch_norm: bool
    timesteps: int
    batch: int
    fused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredStep:
    """The fastest of some steps; peak over what was resident before the first step of a fresh model."""

    step_s: float
    peak_bytes: int


def measure(setting: MeasuredSetting) -> MeasuredStep:
    """Measure in a fresh process. Needs Linux, whose /proc tells the peak.

    Raises: CompileError on another system, or with the last line of a process that fails.
    """
    if not _CLEAR_REFS.exists():
        raise _not_measured(setting, f"there is no {_CLEAR_REFS}, which Linux has")
    command = [sys.executable, "-m", "spikec.reproduce.fused_measure", json.dumps(asdict(setting))]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode < 0:
        raise _not_measured(setting, f"signal {-run.returncode} ended the process")
    if run.returncode > 0:
        # a traceback ends with the fault; what is indented below belongs to it
        lines = [line for line in run.stderr.splitlines() if line.strip() and not line.startswith(" ")]
        raise _not_measured(setting, lines[-1] if lines else f"exit code {run.returncode}")
    return MeasuredStep(**json.loads(run.stdout.splitlines()[-1]))


def _not_measured(setting: MeasuredSetting, why: str) -> CompileError:
    message = f"a training step cannot be measured on this CPU: {why}"
    return CompileError(message, Loc(setting.network), hint="--no-simulated leaves out what is measured")


def _measure_here(setting: MeasuredSetting) -> MeasuredStep:
    step = _training(setting)
    for _ in range(WARM_UP_STEPS):
        step()
    seconds = min(_seconds(step) for _ in range(TIMED_STEPS))
    del step
    step = _training(setting)  # without gradients and scratch memory yet
    _give_back()
    before = _status_bytes("VmRSS")
    step()
    return MeasuredStep(step_s=seconds, peak_bytes=_status_bytes("VmHWM") - before)


def _training(setting: MeasuredSetting) -> Callable[[], None]:
    """A training step of a fresh network."""
    import torch
    from torch import nn

    import spikec
    from frontends.spiking_network import spiking_network
    from frontends.zoo import entry

    chosen = replace(entry(setting.network), batch_norm=setting.batch_norm)
    model: nn.Module = spiking_network(chosen, seed=0, timesteps=setting.timesteps)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(chosen.example_shape(setting.batch, setting.timesteps), generator=generator)
    labels = torch.randint(_CLASSES, (setting.batch,), generator=generator)
    if setting.fused:
        model = spikec.fuse(model, images, setting.timesteps)
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)

    def step() -> None:
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _give_back() -> None:
    """Freed memory goes back to the system, and the high-water mark falls to what is resident."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR_REFS.write_text(_RSS_AND_PEAK)


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    print(json.dumps(asdict(_measure_here(MeasuredSetting(**json.loads(sys.argv[1]))))))
