"""One training step of a spiking network on the CPU, f32, all contenders in turn.

    python -m tests.bench.training_step --json
    python -m tests.bench.training_step --trained --data mnist:FOLDER --json

With --trained the networks are trained first, by `spikec.fuse`, unless the cache folder has them; all contenders get
those weights and real images, and the output says what shares of the neurons spike. A fresh input at each time step
then is a rate code of the pixels.

Each contender has a fresh process, in both memory layouts (the faster one counts), under the same malloc setting and
number of threads; within a round every process gets its turn, and neither building nor compiling is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import TypeVar, cast

from tests.bench.training_contenders.load import IDLE_SHARE, wait_for_idle, watched
from tests.bench.training_contenders.names import CONTENDERS
from tests.bench.training_contenders.networks import NETWORKS
from tests.bench.training_contenders.preparation import Prepared, prepared
from tests.bench.training_contenders.process import MALLOCS, ContenderFailedError, Process
from tests.bench.training_contenders.rows import Comparison, Row, Times, comparisons, row, table
from tests.bench.training_contenders.setting import MissingContenderError, Setting

INPUTS = ("fresh", "repeated")
LAYOUTS = ("contiguous", "channels_last")
MEMORY_STEPS = 2
SPIKE_TOLERANCE = 0.02  # roundings turn a spike here and there
TRAIN_SAMPLES = 2000
FREE_MEMORY_MB = 4096  # less than this, and the processes not yet made take their turns after the others
T = TypeVar("T")


class Bench:
    """Runs settings; what is missing or fails is told on stderr, counted, and left out."""

    def __init__(self, *, rounds: int, steps: int, wait_s: float, compile_cache: Path) -> None:
        self.rounds = rounds
        self.steps = steps
        self.wait_s = wait_s
        self.compile_cache = compile_cache
        self.missing: set[str] = set()
        self.output_spikes: dict[tuple[str, int], int] = {}
        self.failures = 0

    def rows(self, settings: list[Setting], malloc: str) -> list[Row]:
        """One row per contender; the settings differ in contender and layout."""
        times = self.times(settings, malloc)
        rows = []
        for contender in dict.fromkeys(setting.contender for setting in times):
            by_layout = {s.layout: of_layout for s, of_layout in times.items() if s.contender == contender}
            best = min(by_layout, key=lambda layout: by_layout[layout].median_s)
            chosen = next(s for s in times if s.contender == contender and s.layout == best)
            talk(f"  memory of {contender}, {best}")
            memory = self.tried(chosen, lambda chosen=chosen: self.memory(chosen, malloc))
            if memory is not None:
                rows.append(row(chosen, malloc, by_layout, memory))
        return rows

    def times(self, settings: list[Setting], malloc: str) -> dict[Setting, Times]:
        """Seconds of every step; as many processes take turns as the memory holds."""
        times: dict[Setting, Times] = {}
        waiting = list(settings)
        while waiting:
            with ExitStack() as stack:
                wave: list[Process] = []
                while waiting and (not wave or available_mb() > FREE_MEMORY_MB):
                    setting = waiting.pop(0)
                    if setting.contender in self.missing:
                        continue
                    talk(f"  start {setting.contender}, {setting.layout}")
                    process = self.tried(setting, lambda s=setting: Process(s, malloc, self.compile_cache))
                    if process is not None:
                        wave.append(stack.enter_context(process))
                        self.check_spikes(process)
                times |= self.turns(wave)
        return times

    def turns(self, wave: list[Process]) -> dict[Setting, Times]:
        """Round after round, the order reversed in every other one."""
        times: dict[Setting, Times] = {p.setting: Times(output_spikes=p.output_spikes) for p in wave}
        for index in range(self.rounds):
            talk(f"  round {index + 1} of {self.rounds}, {len(times)} processes")
            for process in wave if index % 2 == 0 else reversed(wave):
                setting = process.setting
                if setting not in times:
                    continue
                turn = self.tried(setting, lambda process=process: self.turn(process))
                if turn is None:
                    del times[setting]
                    continue
                step_s, others_cpu_share = turn
                times[setting].step_s.extend(step_s)
                times[setting].others_cpu_share.append(others_cpu_share)
        return times

    def check_spikes(self, process: Process) -> None:
        """A failure if the trained network fires otherwise than in the process before: it would not be the same."""
        spikes = process.output_spikes
        if spikes is None:
            return
        setting = process.setting
        first = self.output_spikes.setdefault((setting.trained, setting.timesteps), spikes)
        if abs(spikes - first) > SPIKE_TOLERANCE * first:
            talk(f"{setting.contender}, {setting.layout}: {spikes} output spikes, and {first} of the first contender")
            self.failures += 1

    def turn(self, process: Process) -> tuple[list[float], float]:
        """Seconds of each step, and the share of all cores that others took."""
        end = time.monotonic() + self.wait_s
        while True:
            wait_for_idle(end)
            answer, others_cpu_share = watched(process.pid, lambda: process.ask("go", self.steps))
            if others_cpu_share <= 1 - IDLE_SHARE or time.monotonic() >= end:
                return cast("list[float]", answer["step_s"]), others_cpu_share
            talk(f"    again, {process.setting.contender}: others took {others_cpu_share:.0%} of the cores")

    def memory(self, setting: Setting, malloc: str) -> dict[str, float]:
        with Process(setting, malloc, self.compile_cache) as process:
            return cast("dict[str, float]", process.ask("memory", MEMORY_STEPS))

    def tried(self, setting: Setting, work: Callable[[], T]) -> T | None:
        """The work's result, or None after telling why there is none."""
        try:
            return work()
        except MissingContenderError as missing:
            talk(f"{setting.contender}: left out, {missing}")
            self.missing.add(setting.contender)
        except ContenderFailedError as failure:
            talk(f"{setting.contender}, {setting.layout}: failed, {failure}")
            self.failures += 1
        return None


def available_mb() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) / 1024


def talk(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["cifar", "small"])
    parser.add_argument("--timesteps", nargs="+", type=int, default=[10])
    parser.add_argument("--inputs", nargs="+", choices=INPUTS, default=["fresh"], help="repeated: direct encoding")
    parser.add_argument(
        "--mallocs", nargs="+", choices=MALLOCS, default=list(MALLOCS), help="kept: no freed page goes back"
    )
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of each process in a round")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument(
        "--wait-for-idle",
        type=float,
        default=0.0,
        metavar="S",
        help="wait for an idle machine and repeat disturbed turns, so long at most for each turn",
    )
    parser.add_argument("--trained", action="store_true", help="train the networks first, feed them real images")
    parser.add_argument("--data", default="", help="of --trained: mnist:FOLDER or another name; mnist, else digits")
    parser.add_argument("--train-samples", type=int, default=TRAIN_SAMPLES)
    parser.add_argument("--train-epochs", type=int, help="cifar 2, small 6")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def prepare(given: argparse.Namespace, network: str, timesteps: int, kind: str) -> Prepared:
    """Train the network, or find it trained."""
    epochs = given.train_epochs or NETWORKS[network].train_epochs
    talk(f"{network}, T = {timesteps}, {kind} input: {epochs} epochs of training, unless it is kept")
    recipe: dict[str, object] = {"network": network, "timesteps": timesteps, "input": kind, "threads": given.threads}
    return prepared(recipe | {"data": given.data, "samples": given.train_samples, "epochs": epochs})


def main() -> int:
    """Print the rows; 1 if a contender failed, which is not the same as missing."""
    given = parsed()
    rows: list[Row] = []
    networks: list[Prepared] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(rounds=given.rounds, steps=given.steps, wait_s=given.wait_for_idle, compile_cache=Path(folder))
        for network, timesteps, kind in product(given.networks, given.timesteps, given.inputs):
            if given.trained:
                networks.append(prepare(given, network, timesteps, kind))
            for malloc in given.mallocs:
                talk(f"{network}, T = {timesteps}, {kind} input, malloc {malloc}, {given.threads} threads")
                one = Setting(
                    contender="",
                    network=network,
                    timesteps=timesteps,
                    input=kind,
                    layout="",
                    threads=given.threads,
                    trained=networks[-1].path if given.trained else "",
                )
                # layout by layout, so that all contenders of one take turns even if memory parts the layouts
                settings = [
                    replace(one, contender=contender, layout=layout)
                    for layout, contender in product(given.layouts, given.contenders)
                ]
                rows += bench.rows(settings, malloc)
    if given.json:
        parts: dict[str, list[Row] | list[Comparison] | list[Prepared]] = {
            "rows": rows,
            "comparisons": list(comparisons(rows)),
            "trained": networks,
        }
        print(json.dumps({name: [asdict(item) for item in items] for name, items in parts.items()}))
    else:
        print("\n".join(table(rows, networks)))
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
