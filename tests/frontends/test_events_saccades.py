from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontends import zoo
from frontends.cache import trained
from frontends.datasets import Split, load, train_and_test
from frontends.events.saccades import path, saccade_events
from frontends.recipe import Recipe, recipe_for, train
from hwmodel.errors import CompileError


def test_the_path_is_a_triangle_of_three_equal_runs() -> None:
    places = path(15, 3, 1)
    assert len(places) == 16
    corners = [(Fraction(row), Fraction(column)) for row, column in ((3, -1), (-3, 0), (3, 1), (3, -1))]
    assert places[::5] == corners
    assert places[2] == (3 + Fraction(2, 5) * -6, -1 + Fraction(2, 5))
    assert places[13] == (Fraction(3), 1 - Fraction(3, 5) * 2)


@given(timesteps=st.integers(1, 40), height=st.integers(1, 4), width=st.integers(1, 4))
def test_the_path_stays_within_the_margin(timesteps: int, height: int, width: int) -> None:
    places = path(timesteps, height, width)
    assert len(places) == timesteps + 1
    assert all(abs(row) <= height and abs(column) <= width for row, column in places)


def seen_slowly(image: npt.NDArray[np.float32], row: float, column: float, place: tuple[float, float]) -> float:
    """The image at a point of the camera's, interpolated between its pixels."""
    height, width = image.shape
    y, x = row - 1 - place[0], column - 1 - place[1]
    total = 0.0
    for i in range(height):
        for j in range(width):
            total += float(image[i, j]) * max(0.0, 1 - abs(y - i)) * max(0.0, 1 - abs(x - j))
    return total


@given(seed=st.integers(0, 10**6), timesteps=st.integers(1, 7))
@settings(max_examples=25, deadline=None)
def test_events_are_what_a_pixel_by_pixel_camera_gives(seed: int, timesteps: int) -> None:
    rng = np.random.default_rng(seed)
    image = (rng.random((3, 3)) * (rng.random((3, 3)) < 0.6)).astype(np.float32)
    places = [(float(row), float(column)) for row, column in path(timesteps, 1, 1)]
    want = np.zeros((timesteps, 2, 5, 5), dtype=np.bool_)
    is_certain = np.ones_like(want)
    for row in range(5):
        for column in range(5):
            level = math.log(0.1 + seen_slowly(image, row, column, places[0]))
            for step, place in enumerate(places[1:]):
                change = (math.log(0.1 + seen_slowly(image, row, column, place)) - level) / 0.4
                if abs(change) > 0.5 and abs(change - round(change)) < 1e-4:
                    # f32 rounds: what lies on a threshold may fall on either side, and all that follows with it
                    is_certain[step:, :, row, column] = False
                    break
                level += 0.4 * math.trunc(change)
                want[step, 0, row, column] = change <= -1
                want[step, 1, row, column] = change >= 1
    events = saccade_events(image[None], timesteps)[0]
    assert is_certain[0].any()
    np.testing.assert_array_equal(events[is_certain], want[is_certain])


def test_a_flat_black_image_gives_no_events() -> None:
    assert not saccade_events(np.zeros((2, 8, 8), dtype=np.float32), 15).any()


def test_a_bright_point_is_on_in_front_and_off_behind() -> None:
    image = np.zeros((1, 8, 8), dtype=np.float32)
    image[0, 4, 4] = 1.0
    events = saccade_events(image, 3)[0]
    # by whole runs: from (row 6, column 4) to (4, 5), to (6, 6) and back
    for step, (off, on) in enumerate([((6, 4), (4, 5)), ((4, 5), (6, 6)), ((6, 6), (6, 4))]):
        assert np.argwhere(events[step, 0]).tolist() == [list(off)]
        assert np.argwhere(events[step, 1]).tolist() == [list(on)]


def test_digits_as_saccades() -> None:
    test = load("synthetic-saccades:digits", split=Split.TEST)
    assert test.x.shape == (360, 15, 2, 10, 10)
    assert np.isin(test.x, (0, 1)).all()
    assert 0.08 < test.x.mean() < 0.15
    images = load("digits", split=Split.TEST)
    np.testing.assert_array_equal(test.y, images.y)
    assert test.labelled
    # each sample's events come of its own image alone
    np.testing.assert_array_equal(saccade_events(images.x[7:8, 0], 15)[0], test.x[7])


def test_options_of_saccades() -> None:
    train_set, test = train_and_test("synthetic-saccades:digits,timesteps=6,per_class=2")
    for samples in (train_set, test):
        assert samples.x.shape == (20, 6, 2, 10, 10)
        assert np.bincount(samples.y).tolist() == [2] * 10
    assert train_set.digest() != test.digest()
    assert load("synthetic-saccades:digits,timesteps=6,per_class=2", split=Split.TEST).digest() == test.digest()


def test_saccades_of_idx_files(tmp_path: Path) -> None:
    images = np.zeros((2, 28, 28), dtype=np.uint8)
    images[1, 10:15, 3:20] = 255
    header = bytes((0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(header + images.tobytes())
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(bytes((0, 0, 8, 1, 0, 0, 0, 2, 3, 4)))
    samples = load(f"synthetic-saccades:fashion:{tmp_path}", split=Split.TEST)
    assert samples.x.shape == (2, 15, 2, 34, 34)
    assert samples.y.tolist() == [3, 4]
    assert not samples.x[0].any()
    assert samples.x[1].any()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("synthetic-saccades:", "'' is no source of images"),
        ("synthetic-saccades", "'' is no source of images"),
        ("synthetic-saccades:nmnist:F", "'nmnist:F' is no source of images"),
        ("synthetic-saccades:digits,size=9", "option 'size' is not known"),
        ("synthetic-saccades:digits,timesteps=99999999", "360 samples hold"),
    ],
)
def test_saccades_of_nothing(name: str, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        load(name, split=Split.TEST)


def test_a_network_takes_as_many_steps_as_its_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIKEC_CACHE", str(tmp_path))
    quick = Recipe(epochs=1, batch=10, lr=1e-3)
    data = "synthetic-saccades:digits,timesteps=3,per_class=2"
    assert trained("digits-events", data, recipe=quick)[1].timesteps == 3
    images = tmp_path / "images.npz"
    np.savez(images, x=np.zeros((10, 1, 8, 8), dtype=np.float32), y=np.arange(10))
    assert trained("digits-attack", str(images), recipe=quick)[1].timesteps == 10
    with pytest.raises(CompileError, match="samples have 3 time steps, the network 4"):
        trained("digits-events", data, recipe=quick, timesteps=4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_events_of_digits_are_learned(seed: int) -> None:
    recipe = recipe_for("digits-events")
    result = train(
        zoo.build("digits-events", seed=seed, timesteps=15),
        *train_and_test("synthetic-saccades:digits"),
        epochs=recipe.epochs,
        batch=recipe.batch,
        lr=recipe.lr,
        seed=seed,
        threads=recipe.threads,
    )
    assert result.accuracy_test >= 0.93
