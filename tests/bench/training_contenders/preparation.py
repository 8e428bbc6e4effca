"""Trains a network in a process of its own: a recipe as JSON on the command line, what it is now on stdout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A trained network, and how sparse it runs on the images that it is timed on."""

    network: str
    timesteps: int
    input: str
    path: str
    facts: dict[str, str | int | float]  # of its training
    densities: list[dict[str, str | float]]  # layer by layer

    def lines(self) -> list[str]:
        """For a reader."""
        facts = self.facts
        shares = [f"{layer['layer']} {layer['spikes']:.1%} / {layer['open_windows']:.1%}" for layer in self.densities]
        return [
            f"{self.network}, T = {self.timesteps}, {self.input} input: trained on {facts['samples']} images of "
            f"{facts['data']} for {facts['epochs']} epochs, {facts['test_accuracy']:.1%} of {facts['test_samples']} "
            "held-out ones right",
            f"  spikes / open surrogate windows: {', '.join(shares)}",
        ]


def prepared(recipe: dict[str, object]) -> Prepared:
    """The network of a recipe's fields, trained now unless it is in the cache folder; its progress is on stderr.

    Ends this process too if it cannot be trained.
    """
    threads = str(recipe["threads"])
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(recipe)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": threads, "TVM_NUM_THREADS": threads},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.returncode)
    return Prepared(**json.loads(done.stdout))


def main() -> None:
    import torch

    from hwmodel.errors import CompileError
    from tests.bench.training_contenders.child import claim_stdout
    from tests.bench.training_contenders.densities import densities
    from tests.bench.training_contenders.trained import Recipe, trained

    answers = claim_stdout()
    recipe = Recipe(**json.loads(sys.argv[1]))
    torch.set_num_threads(recipe.threads)
    try:
        path, facts = trained(recipe)
    except CompileError as error:
        sys.exit(str(error))
    result = Prepared(
        network=recipe.network,
        timesteps=recipe.timesteps,
        input=recipe.input,
        path=str(path),
        facts=asdict(facts),
        densities=[asdict(density) for density in densities(recipe.setting(str(path)))],
    )
    print(json.dumps(asdict(result)), file=answers)


if __name__ == "__main__":
    main()
