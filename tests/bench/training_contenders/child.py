"""One contender in a process of its own: told on stdin what to measure, answers in lines of JSON on stdout.

go N       times N training steps               {"step_s": [...]}
memory N   memory of N steps and of a forward    {"peak_rss_rise_mb": ..., ...}
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

import torch
from torch import nn

from tests.bench.training_contenders.memory import gradient_mb, peak_rss_rise_mb, saved_activation_mb
from tests.bench.training_contenders.names import HIDES_SAVED
from tests.bench.training_contenders.setting import MissingContenderError, Setting

WARM_UP_STEPS = 2
LEARNING_RATE = 0.01
Kernel = tuple[str, str, str]  # layer, pass, way


class Training:
    """Training steps of one contender, f32, SGD without momentum, always on the same batch.

    Trained weights stay as they are, at a learning rate of 0: all steps see the densities that are told.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.model, self.x = setting.build()
        self.labels = setting.labels()
        self.optimiser = torch.optim.SGD(self.model.parameters(), lr=0.0 if setting.trained else LEARNING_RATE)
        self.kernels: set[Kernel] = set()  # taken so far

    def warm_up(self) -> None:
        """Kernels are compiled and their costs measured here."""
        for _ in range(WARM_UP_STEPS):
            self.step()
            self.has_new_kernels()

    def step(self) -> None:
        self.optimiser.zero_grad()
        nn.functional.cross_entropy(self.model(self.x), self.labels).backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()

    def timed(self, steps: int) -> list[float]:
        """Seconds of each step, all of them anew if one took a kernel for the first time, which compiles it."""
        while True:
            times, is_new = [], False
            for _ in range(steps):
                times.append(seconds(self.step))
                is_new |= self.has_new_kernels()
            if not is_new:
                return times

    def has_new_kernels(self) -> bool:
        """Whether the last step took spike kernels that no step took before; other frameworks' never change."""
        explained = getattr(self.model, "explained", None)
        taken = {(row.layer, row.of, row.way) for row in explained()} if explained is not None else set()
        is_new = not taken <= self.kernels
        self.kernels |= taken
        return is_new

    def output_spikes(self) -> int:
        """Spikes of the last layer with fixed statistics, with which all contenders compute the same."""
        model = getattr(self.model, "_orig_mod", self.model)  # not compiled for this alone
        model.eval()
        with torch.no_grad():
            rates = model(self.x)
        model.train()
        return int((self.setting.timesteps * rates.double()).round().sum())

    def memory(self, steps: int) -> dict[str, float | None]:
        self.optimiser.zero_grad()
        rise, gradients = peak_rss_rise_mb(self.step, steps), gradient_mb(self.model)
        hidden = self.setting.contender in HIDES_SAVED
        return {
            "saved_activation_mb": None if hidden else saved_activation_mb(self.model, lambda: self.model(self.x)),
            "peak_rss_rise_mb": rise,
            "parameter_gradient_mb": gradients,
            "peak_rss_rise_less_gradients_mb": rise - gradients,
        }


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def claim_stdout() -> TextIO:
    """Stdout for answers alone: whatever a framework prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def main() -> None:
    answers = claim_stdout()

    def answer(**values: object) -> None:
        print(json.dumps(values), file=answers, flush=True)

    setting = Setting(**json.loads(sys.argv[1]))
    torch.set_num_threads(setting.threads)
    try:
        training = Training(setting)
    except MissingContenderError as error:
        answer(missing=str(error))
        return
    output_spikes = training.output_spikes() if setting.trained else None
    training.warm_up()
    answer(output_spikes=output_spikes)
    for line in sys.stdin:
        task, count = line.split()
        if task == "go":
            answer(step_s=training.timed(int(count)))
        else:
            answer(**training.memory(int(count)))


if __name__ == "__main__":
    main()
