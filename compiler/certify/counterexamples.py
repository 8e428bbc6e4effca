"""A search for counterexamples in any input set: the members that gradients favour, and random ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from compiler.attack.goal import wins
from compiler.attack.randomness import Purpose, stream_of
from compiler.attack.victim import BLOCK, Victim
from compiler.certify.input_sets import InputSet
from compiler.certify.verdicts import Floats, Replay
from compiler.losses import Loss

ROUNDS = 24
_STEP = 0.5  # of the way to a favoured member of a set of reals
_NOISE = 1e-9  # of the largest coefficient: equal ones are told apart at random


@dataclass(slots=True)
class _Walk:
    """One sample on its way."""

    sample: int
    inputs: InputSet
    label: int
    rng: np.random.Generator
    now: Floats
    seen: set[bytes] = field(default_factory=set)


def search(
    replay: Replay,
    sets: Sequence[InputSet],
    labels: Sequence[int],
    samples: Sequence[int],
    *,
    seed: int = 0,
    rounds: int = ROUNDS,
) -> list[Floats | None]:
    """Of each set a member on which the label is not alone at the top, as the replay confirms; None: none was found.

    Each round goes to the member where the first order of the loss is largest, x' = argmin of -gradient . x', which
    the set's support function tells; of a set of reals half of the way. From where that does not move it goes on at a
    random member. Random numbers and places in the block are those of the sample, so that others change nothing.

    samples: indices of the samples; no two that are equal modulo BLOCK.
    Shapes: each as its set.
    Raises: CompileError as `Victim`.
    """
    victim = Victim(replay.graph, loss=Loss.CROSS_ENTROPY)
    walks = [
        _Walk(sample, inputs, label, stream_of(seed, Purpose.SEARCH, sample), inputs.clean)
        for sample, inputs, label in zip(samples, sets, labels, strict=True)
    ]
    found: dict[int, Floats] = {}
    left = walks
    for _ in range(rounds):
        left = [walk for walk in left if walk.sample not in found]
        if not left:
            break
        for walk, x in zip(left, _moved(victim, left), strict=True):
            walk.now = x
        found |= _hits(victim, replay, left)
    return [found.get(sample) for sample in samples]


def favoured(inputs: InputSet, form: Tensor) -> Floats | None:
    """A member where a linear form is least: the gradient of the support function; None where that is no member.

    Shapes: form f64 as the set -> the same.
    """
    with torch.enable_grad():
        a = form.clone().requires_grad_()
        inputs.support(a).backward()  # type: ignore[no-untyped-call]
    assert a.grad is not None
    x = a.grad.numpy().astype(np.float32)
    return x if inputs.contains(x) else None


def _moved(victim: Victim, walks: Sequence[_Walk]) -> list[Floats]:
    """Where each goes in this round."""
    labels = torch.tensor([walk.label for walk in walks])
    places = [walk.sample % BLOCK for walk in walks]
    gradients = victim.gradient(_stacked(victim, walks), labels, places).movedim(int(victim.has_time), 0)
    return [_next(walk, gradient.double()) for walk, gradient in zip(walks, gradients, strict=True)]


def _next(walk: _Walk, gradient: Tensor) -> Floats:
    inputs = walk.inputs
    walk.seen.add(walk.now.tobytes())
    noise = torch.from_numpy(walk.rng.standard_normal(inputs.shape))
    scale = float(gradient.abs().max())
    best = favoured(inputs, -gradient + noise * (_NOISE * scale if scale > 0 else 1.0))
    if best is not None and not inputs.is_binary:
        middle = (walk.now + np.float32(_STEP) * (best - walk.now)).astype(np.float32)
        best = middle if inputs.contains(middle) else best
    if best is None or best.tobytes() in walk.seen:
        (best,) = inputs.sample(walk.rng, 1)
    return best


def _hits(victim: Victim, replay: Replay, walks: Sequence[_Walk]) -> dict[int, Floats]:
    """By sample, the inputs that are counterexamples."""
    labels = torch.tensor([walk.label for walk in walks])
    scores = victim.scores(_stacked(victim, walks), [walk.sample % BLOCK for walk in walks])
    wrong = ~wins(scores, labels)
    return {
        walk.sample: walk.now
        for walk, is_wrong in zip(walks, wrong.tolist(), strict=True)
        if is_wrong and walk.inputs.contains(walk.now) and not replay.is_right(walk.now, walk.label)
    }


def _stacked(victim: Victim, walks: Sequence[_Walk]) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(walk.now)) for walk in walks], int(victim.has_time))
