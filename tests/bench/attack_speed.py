"""Untargeted attacks: all samples together, one sample at a time, and algorithm 5 as a plain torch loop.

    python -m tests.bench.attack_speed --json
    python -m tests.bench.attack_speed --model zoo:digits-attack@digits

One process, the same network, samples, settings, threads and malloc for all; the contenders take turns, each over all
samples. The loops have one image in each batch and use autograd through the torch module, one forward pass for verdict
and gradient. One takes gradients of the parameters too, which nobody uses, as the dissertation's released code does;
the other those of the input alone, which is the fastest way to write algorithm 5 down.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tests.bench.training_contenders.process import MALLOCS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compiler.attack.settings import Case, Settings
    from compiler.attack.victim import Victim
    from compiler.ir import Encoding
    from frontends.datasets import Samples

WARM_UP = 2  # samples
Attack = Callable[[Sequence["Case"]], "Tally"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What an attack on all samples came to."""

    iterations: int
    successes: int
    clean_errors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One contender: medians over the rounds, and how many times the batched attack's numbers they are."""

    contender: str
    total_s: float
    cpu_s: float
    per_image_ms: float
    per_image_and_iteration_ms: float
    iterations: int
    successes: int
    clean_errors: int
    per_image_ratio: float
    per_image_and_iteration_ratio: float
    cpu_ratio: float


class Loop:
    """Algorithm 5, untargeted, with an infinite bound; of direct coding, equation 5.3 with random signs for RSF."""

    def __init__(self, module: nn.Module, victim: Victim, settings: Settings, *, of_parameters: bool) -> None:
        import torch

        self.module, self.settings, self.of_parameters = module, settings, of_parameters
        self.encoding: Encoding | None = victim.encoding
        self.loss, self.timesteps = victim.loss, victim.graph.timesteps
        self.generator = torch.Generator().manual_seed(settings.seed)

    def __call__(self, cases: Sequence[Case]) -> Tally:
        self.module.requires_grad_(self.of_parameters)
        done = [self.attack(case) for case in cases]
        return Tally(
            iterations=sum(self.settings.iterations if count is None else count for count in done),
            successes=sum(count is not None and count > 0 for count in done),
            clean_errors=done.count(0),
        )

    def attack(self, case: Case) -> int | None:
        """After how many iterations the attack succeeds: 0 for a sample that is misclassified as it is, None never."""
        import torch

        from frontends.recipe import loss_of

        x = torch.from_numpy(case.x)
        label = torch.tensor([case.label])
        for iteration in range(self.settings.iterations + 1):
            seen = self.encoded(x).requires_grad_()
            scores = self.module(seen)
            first, second = scores.detach()[0].topk(2).values
            is_right = bool(first > second) and int(scores.argmax()) == case.label
            if iteration == 0 and not is_right:
                return 0
            if first > second and not is_right:
                return iteration
            if iteration < self.settings.iterations:
                loss_of(self.loss, scores, label).backward()
                assert seen.grad is not None
                x = self.updated(x, seen.detach(), seen.grad)
        return None

    def encoded(self, x: Tensor) -> Tensor:
        """Bernoulli spikes (T, 1, C, H, W), spikes as they are, or the image (1, C, H, W)."""
        from compiler.ir import Encoding

        if self.encoding is Encoding.BERNOULLI:
            return (self.uniform((self.timesteps, 1, *x.shape)) < x).float()
        return x.unsqueeze(x.ndim - 3).clone()

    def updated(self, x: Tensor, seen: Tensor, gradient: Tensor) -> Tensor:
        from compiler.ir import Encoding

        if seen.ndim == 4:
            return (x + (self.settings.step or 0.02) * self.direction(gradient)[0]).clamp(0, 1)
        change = self.ternary(seen, gradient)[:, 0]
        if self.encoding is Encoding.BERNOULLI:
            return (x + (self.settings.step or 1.0) * change.mean(0)).clamp(0, 1)
        return x + change

    def ternary(self, spikes: Tensor, gradient: Tensor) -> Tensor:
        """G2S, or RSF where the gradient vanishes."""
        import torch

        size = gradient.abs()
        largest = size.max()
        draws = self.uniform(gradient.shape)
        if largest == 0:
            return torch.where(draws < self.settings.gamma, 1 - 2 * spikes, torch.zeros_like(spikes))
        sign = gradient.sign() * (draws < size / largest)
        return torch.where(sign > 0, 1 - spikes, torch.where(sign < 0, -spikes, torch.zeros_like(spikes)))

    def direction(self, gradient: Tensor) -> Tensor:
        import torch

        if gradient.any():
            return gradient.sign()
        draws, gamma = self.uniform(gradient.shape), self.settings.gamma
        return torch.where(draws < gamma / 2, -1.0, torch.where(draws < gamma, 1.0, 0.0))

    def uniform(self, shape: Iterable[int]) -> Tensor:
        import torch

        return torch.rand(tuple(shape), generator=self.generator)


def ours(victim: Victim, settings: Settings, *, together: bool) -> Attack:
    """The library's attack: all cases in one call, or a call for each."""
    from compiler.attack.iterate import attack
    from compiler.attack.settings import Outcome, Status

    def run(cases: Sequence[Case]) -> Tally:
        outcomes: list[Outcome] = []
        for group in [cases] if together else [[case] for case in cases]:
            outcomes += attack(victim, group, settings)
        statuses = [outcome.status for outcome in outcomes]
        return Tally(
            iterations=sum(outcome.iterations for outcome in outcomes),
            successes=statuses.count(Status.SUCCESS),
            clean_errors=statuses.count(Status.CLEAN_ERROR),
        )

    return run


def taken(data: str, count: int) -> tuple[Samples, Samples]:
    """Held-out samples, and training ones where those are too few."""
    from frontends.datasets import train_and_test

    train, test = train_and_test(data)
    own = test.take(slice(0, count))
    return own, train.take(slice(0, count - len(own)))


def measured(
    contenders: dict[str, Attack], cases: Sequence[Case], rounds: int
) -> dict[str, tuple[list[float], list[float], Tally]]:
    """Wall and CPU seconds of each round, the order reversed in every other one, and the first round's tally."""
    found: dict[str, tuple[list[float], list[float], Tally]] = {}
    for run in contenders.values():
        run(cases[:WARM_UP])
    for index in range(rounds):
        for name, run in contenders.items() if index % 2 == 0 else reversed(contenders.items()):
            print(f"  round {index + 1} of {rounds}, {name}", file=sys.stderr, flush=True)
            wall, cpu = time.perf_counter(), time.process_time()
            tally = run(cases)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            walls, cpus, _ = found.setdefault(name, ([], [], tally))
            walls.append(wall)
            cpus.append(cpu)
    return found


def table(found: dict[str, tuple[list[float], list[float], Tally]], images: int) -> list[Row]:
    """Rows in the order of the first round; the first contender is what the others are compared with."""
    rows: list[Row] = []
    for name, (walls, cpus, tally) in found.items():
        total = statistics.median(walls)
        image, iteration = total / images * 1e3, total / max(tally.iterations, 1) * 1e3
        base = rows[0] if rows else None
        rows.append(
            Row(
                contender=name,
                total_s=total,
                cpu_s=statistics.median(cpus),
                per_image_ms=image,
                per_image_and_iteration_ms=iteration,
                **asdict(tally),
                per_image_ratio=image / base.per_image_ms if base else 1.0,
                per_image_and_iteration_ratio=iteration / base.per_image_and_iteration_ms if base else 1.0,
                cpu_ratio=statistics.median(cpus) / base.cpu_s if base else 1.0,
            )
        )
    return rows


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="zoo:digits-conv@digits")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--samples", type=int, default=500, help="held-out ones, then training ones")
    parser.add_argument("--timesteps", type=int, default=15)
    parser.add_argument("--iterations", type=int, default=25, help="at most, of each sample")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--malloc", choices=MALLOCS, default="default", help="kept: no freed page goes back")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def in_environment(wanted: dict[str, str]) -> None:
    """Begin anew unless the environment is so: threads and malloc read it when a process starts."""
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(
            sys.executable, [sys.executable, "-m", "tests.bench.attack_speed", *sys.argv[1:]], os.environ | wanted
        )


def main() -> None:
    given = parsed()
    in_environment(MALLOCS[given.malloc] | {"OMP_NUM_THREADS": str(given.threads)})

    import torch

    from compiler.attack.settings import Case, Settings
    from compiler.attack.victim import Victim
    from frontends.to_torch import to_torch
    from spikec.models import load_model

    torch.set_num_threads(given.threads)
    model = load_model(given.model, timesteps=given.timesteps)
    victim, settings = Victim(model.graph), Settings(iterations=given.iterations)
    held_out, trained_on = taken(given.data, given.samples)
    cases = [
        Case(sample=at, x=samples.x[at - begin], label=int(samples.y[at - begin]))
        for begin, samples in ((0, held_out), (len(held_out), trained_on))
        for at in range(begin, begin + len(samples))
    ]
    module = model.module if model.module is not None else to_torch(victim.sequence)
    contenders: dict[str, Attack] = {
        "batched": ours(victim, settings, together=True),
        "one at a time": ours(victim, settings, together=False),
        "torch loop": Loop(module.eval(), victim, settings, of_parameters=True),
        "input alone": Loop(module.eval(), victim, settings, of_parameters=False),
    }
    rows = table(measured(contenders, cases, given.rounds), len(cases))
    about = {
        "model": given.model,
        "data": given.data,
        "held_out": len(held_out),
        "trained_on": len(trained_on),
        "timesteps": model.graph.timesteps,
        "threads": torch.get_num_threads(),
        "malloc": given.malloc,
        "rounds": given.rounds,
    }
    if given.json:
        print(json.dumps(about | {"rows": [asdict(row) for row in rows]}))
        return
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    for row in rows:
        print(
            f"{row.contender:14} {row.total_s:8.2f} s (CPU {row.cpu_s:8.2f} s, {row.cpu_ratio:6.2f} x)  "
            f"{row.per_image_ms:8.3f} ms an image, {row.per_image_ratio:6.2f} x  "
            f"{row.per_image_and_iteration_ms:7.3f} ms an image and iteration, "
            f"{row.per_image_and_iteration_ratio:6.2f} x  {row.iterations} iterations, {row.successes} successes, "
            f"{row.clean_errors} clean errors"
        )


if __name__ == "__main__":
    main()
