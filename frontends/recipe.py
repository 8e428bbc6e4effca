"""The repository's training recipe: surrogate-gradient training of a zoo network in plain torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Generator, Tensor, nn

from compiler.losses import RATE_SCALE, Loss
from frontends.datasets import Samples
from hwmodel.errors import CompileError, Loc

_EVALUATION_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one zoo network is trained; Adam with a cosine from `lr` to zero."""

    epochs: int
    batch: int
    lr: float
    shift: int = 0  # images move by up to so many pixels in each direction
    loss: Loss = Loss.MSE
    threads: int | None = None  # None: as torch is set; the bits of the weights depend on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where training stands after a batch."""

    epoch: int  # from 1
    epochs: int
    done: int  # batches, over all epochs
    total: int
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """What training reached; accuracies are fractions, the test samples were never trained on."""

    accuracy_test: float
    accuracy_train: float
    losses: tuple[float, ...]  # mean over the samples of each epoch
    seconds: float


Encoder = Callable[[Tensor, Generator], Tensor]  # (N, C, H, W) -> (T, N, C, H, W)
ProgressCallback = Callable[[Progress], None]

# without BatchNorm a larger rate leaves last neurons that never fire again
_DEFAULT = Recipe(epochs=15, batch=64, lr=5e-4)
# one thread is as fast as two for networks this small, far faster when cores are shared, and makes the
# weights independent of the number of cores
_RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "digits-conv": Recipe(epochs=12, batch=64, lr=4e-3, threads=1),
        "digits-fc": Recipe(epochs=25, batch=64, lr=4e-3, threads=1),
        "digits-attack": Recipe(epochs=8, batch=32, lr=2e-3, threads=1),
        "digits-events": Recipe(epochs=8, batch=32, lr=1e-3, threads=1),
    }
)


def recipe_for(name: str) -> Recipe:
    """The recipe of a zoo network."""
    return _RECIPES.get(name, _DEFAULT)


def bernoulli(timesteps: int) -> Encoder:
    """Fresh spikes at each presentation, with a pixel's value as their probability."""

    def encode(x: Tensor, generator: Generator) -> Tensor:
        draws = torch.rand((timesteps, *x.shape), generator=generator)
        return (draws < x).to(x.dtype)

    return encode


def train(
    module: nn.Module,
    train: Samples,
    test: Samples,
    *,
    epochs: int,
    batch: int,
    lr: float,
    seed: int,
    shift: int = 0,
    loss: Loss = Loss.MSE,
    threads: int | None = None,
    encode: Encoder | None = None,
    progress: ProgressCallback | None = None,
) -> TrainingResult:
    """Train in place and leave the module in evaluation mode; the same seed gives the same bits.

    `encode` makes spikes of images for a network that takes spikes. The global random state stays as it was.
    Raises: CompileError for samples that cannot be trained on, and where loss or weights stop being finite.
    """
    _check(train, test, epochs, batch, lr)
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]), torch_threads(threads):
        torch.default_generator.manual_seed(seed)  # for the module's own draws, as in dropout
        generator = Generator().manual_seed(seed)
        step = _Step(module, lr, epochs * _batches(len(train), batch), loss)
        x, y = torch.from_numpy(train.x), torch.from_numpy(train.y)
        losses = []
        for epoch in range(1, epochs + 1):
            module.train()
            total = 0.0
            for index in torch.split(torch.randperm(len(y), generator=generator), batch):
                shown = shifted(x[index], shift, generator)
                value = step(_sequence(shown, encode, generator), y[index])
                if not math.isfinite(value):
                    raise _diverged(f"loss is {value} in epoch {epoch}", train)
                total += value * len(index)
                if progress is not None:
                    progress(Progress(epoch=epoch, epochs=epochs, done=step.done, total=step.total, loss=value))
            losses.append(total / len(y))
            if not all(torch.isfinite(parameter).all() for parameter in module.parameters()):
                raise _diverged(f"a weight is not finite after epoch {epoch}", train)
        return TrainingResult(
            accuracy_test=accuracy(module, test, seed=seed, encode=encode),
            accuracy_train=accuracy(module, train, seed=seed, encode=encode),
            losses=tuple(losses),
            seconds=time.perf_counter() - start,
        )


def accuracy(module: nn.Module, samples: Samples, *, seed: int = 0, encode: Encoder | None = None) -> float:
    """Fraction of samples whose highest score is their label, in evaluation mode; the first wins a tie."""
    generator = Generator().manual_seed(seed)
    module.eval()
    hits = 0
    with torch.no_grad():
        for begin in range(0, len(samples), _EVALUATION_BATCH):
            part = samples.take(slice(begin, begin + _EVALUATION_BATCH))
            scores = module(_sequence(torch.from_numpy(part.x), encode, generator))
            hits += int((scores.argmax(1) == torch.from_numpy(part.y)).sum())
    return hits / len(samples)


class _Step:
    """One optimiser step after another, with the learning rate on a cosine."""

    def __init__(self, module: nn.Module, lr: float, total: int, loss: Loss) -> None:
        self.module = module
        self.loss = loss
        self.optimiser = torch.optim.Adam(module.parameters(), lr=lr)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, total)
        self.total = total
        self.done = 0

    def __call__(self, x: Tensor, y: Tensor) -> float:
        value = loss_of(self.loss, self.module(x), y)
        self.optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.schedule.step()
        self.done += 1
        return float(value.detach())


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Torch computes with so many threads in the block; None leaves it as it is set."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def loss_of(kind: Loss, scores: Tensor, y: Tensor) -> Tensor:
    """The loss, the mean over the batch. Shapes: scores (N, C), y (N,)."""
    match kind:
        case Loss.CROSS_ENTROPY:
            return nn.functional.cross_entropy(RATE_SCALE * scores, y)
        case Loss.MSE:
            wanted = nn.functional.one_hot(y, scores.shape[1]).to(scores.dtype)
            return nn.functional.mse_loss(scores, wanted)


def _sequence(x: Tensor, encode: Encoder | None, generator: Generator) -> Tensor:
    if x.ndim == 5:
        return x.transpose(0, 1)
    return x if encode is None else encode(x, generator)


def shifted(x: Tensor, shift: int, generator: Generator) -> Tensor:
    """Each sample moved by its own whole number of pixels; zeros come in."""
    if shift == 0:
        return x
    height, width = x.shape[-2:]
    padded = nn.functional.pad(x, (shift,) * 4)
    offsets = torch.randint(0, 2 * shift + 1, (2, len(x)), generator=generator)
    rows = offsets[0][:, None] + torch.arange(height)
    columns = offsets[1][:, None] + torch.arange(width)
    samples = torch.arange(len(x))[:, None, None]
    # the indexed axes come first: (sample, row, column, ..., channel)
    moved = padded.movedim((-2, -1), (1, 2))[samples, rows[:, :, None], columns[:, None, :]]
    return moved.movedim((1, 2), (-2, -1))


def _batches(samples: int, batch: int) -> int:
    return -(-samples // batch)


def _check(train: Samples, test: Samples, epochs: int, batch: int, lr: float) -> None:
    loc = Loc(f"data {train.name}")
    if not (train.labelled and test.labelled):
        raise CompileError("has no labels to train on", loc)
    if min(len(train), len(test)) < 1:
        raise CompileError(f"{len(train)} training and {len(test)} test samples", loc)
    if epochs < 1 or batch < 1 or not 0.0 < lr < math.inf:
        raise CompileError(f"epochs {epochs}, batch {batch}, learning rate {lr:g} must be positive", Loc("training"))


def _diverged(what: str, train: Samples) -> CompileError:
    return CompileError(what, Loc(f"training on {train.name}"), hint="lower the learning rate")
