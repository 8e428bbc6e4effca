from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from frontends import zoo
from frontends.datasets import Samples, Split, load
from frontends.recipe import Loss, Progress, accuracy, bernoulli, recipe_for, shifted, train
from hwmodel.errors import CompileError


def stripes(count: int, seed: int) -> Samples:
    """Two classes of 8x8 images: bright upper or lower half, on a noisy ground."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 2
    x = 0.3 * rng.random((count, 1, 8, 8), dtype=np.float32)
    x[y == 0, :, :4] += 0.6
    x[y == 1, :, 4:] += 0.6
    return Samples(x=x, y=y, name="stripes")


def tiny(seed: int = 0) -> nn.Module:
    return zoo.build("digits-fc", seed=seed, timesteps=3)


@pytest.mark.parametrize("loss", Loss)
def test_learns_two_stripes(loss: Loss) -> None:
    result = train(tiny(), stripes(64, 0), stripes(40, 1), epochs=3, batch=8, lr=3e-3, seed=0, loss=loss)
    assert result.accuracy_test >= 0.95
    assert result.losses[-1] < result.losses[0]
    assert len(result.losses) == 3


def test_same_seed_same_bits_and_global_state_untouched() -> None:
    def trained(seed: int) -> tuple[Tensor, tuple[float, ...]]:
        module = tiny()
        result = train(module, stripes(32, 0), stripes(8, 1), epochs=1, batch=8, lr=1e-3, seed=seed, shift=1)
        return torch.cat([p.detach().ravel() for p in module.parameters()]), result.losses

    before = torch.random.get_rng_state()
    (first, losses), (second, again), (other, _) = trained(3), trained(3), trained(4)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first, second)
    assert losses == again
    assert not torch.equal(first, other)


def test_progress_counts_every_batch() -> None:
    seen: list[Progress] = []
    module = tiny()
    train(module, stripes(20, 0), stripes(8, 1), epochs=2, batch=8, lr=1e-3, seed=0, progress=seen.append)
    assert [(p.epoch, p.done, p.total, p.epochs) for p in seen] == [
        (epoch, 3 * (epoch - 1) + batch, 6, 2) for epoch in (1, 2) for batch in (1, 2, 3)
    ]
    assert not module.training


def test_images_become_spikes_for_a_network_of_spikes() -> None:
    module = nn.Sequential(zoo.build("certify-fc", timesteps=2))
    rng = np.random.default_rng(0)
    samples = Samples(x=rng.random((6, 1, 28, 28), dtype=np.float32), y=np.arange(6) % 2, name="noise")
    result = train(module, samples, samples, epochs=1, batch=3, lr=1e-3, seed=0, encode=bernoulli(2))
    assert np.isfinite(result.losses).all()


def test_events_reach_the_network_time_first() -> None:
    class Expecting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)
            for parameter in self.parameters():
                nn.init.zeros_(parameter)

        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[0] == 5
            scores: Tensor = self.linear(x[..., 0, 0].mean(0))
            return scores

    events = Samples(x=np.ones((4, 5, 3, 1, 1), dtype=np.float32), y=np.zeros(4, dtype=np.int64), name="e")
    assert train(Expecting(), events, events, epochs=9, batch=4, lr=0.5, seed=0).accuracy_train == 1.0


def test_bernoulli_rate_is_the_pixel_value() -> None:
    spikes = bernoulli(4000)(torch.tensor([[0.0, 0.25, 1.0]]), Generator().manual_seed(0))
    assert spikes.shape == (4000, 1, 3)
    assert spikes[:, 0, 0].sum() == 0
    assert spikes[:, 0, 2].sum() == 4000
    # five standard deviations of 4000 draws at 0.25
    assert abs(spikes[:, 0, 1].mean().item() - 0.25) < 0.035


@given(shift=st.integers(1, 3), seed=st.integers(0, 999), time=st.sampled_from([(), (2,)]))
@settings(max_examples=40)
def test_shift_moves_each_sample_whole(shift: int, seed: int, time: tuple[int, ...]) -> None:
    x = torch.rand((5, *time, 2, 6, 7), generator=Generator().manual_seed(seed)) + 1.0
    moved = shifted(x, shift, Generator().manual_seed(seed))
    padded = nn.functional.pad(x, (shift,) * 4)
    for before, after in zip(padded, moved, strict=True):
        places = [
            torch.equal(after, before[..., row : row + 6, column : column + 7])
            for row in range(2 * shift + 1)
            for column in range(2 * shift + 1)
        ]
        assert any(places)


def test_accuracy_counts_the_highest_score() -> None:
    samples = Samples(x=np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1), y=np.array([0, 1, 0]), name="eye")
    assert accuracy(nn.Flatten(), samples) == pytest.approx(2 / 3, abs=0)


def test_divergence_names_the_epoch() -> None:
    class Poisoned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.weight * x[:, 0, 0, :2] * (float("nan") if self.calls == 6 else 1.0)

    with pytest.raises(CompileError, match="training on stripes: error: loss is nan in epoch 2\n") as caught:
        train(Poisoned(), stripes(32, 0), stripes(8, 1), epochs=3, batch=8, lr=1e-3, seed=0)
    assert caught.value.hint == "lower the learning rate"


@pytest.mark.parametrize(("epochs", "batch", "lr"), [(0, 8, 1e-3), (1, 0, 1e-3), (1, 8, 0.0), (1, 8, float("nan"))])
def test_settings_out_of_range(epochs: int, batch: int, lr: float) -> None:
    with pytest.raises(CompileError, match="must be positive"):
        train(tiny(), stripes(8, 0), stripes(8, 1), epochs=epochs, batch=batch, lr=lr, seed=0)


def test_samples_without_labels() -> None:
    noise = load("synthetic:1x8x8", split=Split.TRAIN)
    with pytest.raises(CompileError, match="has no labels to train on"):
        train(tiny(), noise, noise, epochs=1, batch=8, lr=1e-3, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_digits_are_learned_through_a_bernoulli_code(seed: int) -> None:
    recipe = recipe_for("digits-attack")
    result = train(
        zoo.build("digits-attack", seed=seed, timesteps=15),
        load("digits", split=Split.TRAIN),
        load("digits", split=Split.TEST),
        epochs=recipe.epochs,
        batch=recipe.batch,
        lr=recipe.lr,
        seed=seed,
        threads=recipe.threads,
        encode=bernoulli(15),
    )
    assert result.accuracy_test >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "floor"), [("digits-conv", 0.97), ("digits-fc", 0.95)])
def test_recipes_reach_their_accuracy(name: str, floor: float, seed: int) -> None:
    recipe = recipe_for(name)
    result = train(
        zoo.build(name, seed=seed),
        load("digits", split=Split.TRAIN),
        load("digits", split=Split.TEST),
        epochs=recipe.epochs,
        batch=recipe.batch,
        lr=recipe.lr,
        seed=seed,
        shift=recipe.shift,
        loss=recipe.loss,
        threads=recipe.threads,
    )
    assert result.accuracy_test >= floor
