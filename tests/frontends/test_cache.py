from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from frontends import cache
from frontends.cache import CacheWarning, cache_folder, trained
from frontends.recipe import Progress, Recipe
from hwmodel.errors import CompileError

QUICK = Recipe(epochs=1, batch=8, lr=1e-3)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small file of two classes; the cache lies beside it."""
    monkeypatch.setenv("SPIKEC_CACHE", str(tmp_path / "cache"))
    return write_data(tmp_path / "d.npz")


def write_data(path: Path) -> str:
    rng = np.random.default_rng(0)
    np.savez(path, x=rng.random((20, 1, 8, 8), dtype=np.float32), y=np.arange(20) % 2)
    return str(path)


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    other = second.state_dict()
    return all(torch.equal(value, other[key]) for key, value in first.state_dict().items())


def test_trains_once_then_loads(data: str) -> None:
    seen: list[Progress] = []
    first, info = trained("digits-conv", data, timesteps=2, recipe=QUICK, progress=seen.append)
    assert len(seen) == 2  # 16 of 20 samples are trained on
    assert not info.from_cache
    second, again = trained("digits-conv", data, timesteps=2, recipe=QUICK, progress=seen.append)
    assert len(seen) == 2
    assert again.from_cache
    assert same_weights(first, second)
    assert (again.weights_sha256, again.accuracy_test) == (info.weights_sha256, info.accuracy_test)
    assert not second.training
    assert sorted(p.suffix for p in Path(info.path).parent.iterdir()) == [".safetensors"]


def test_whatever_decides_the_weights_has_its_own_file(data: str) -> None:
    paths = [
        trained("digits-fc", data, timesteps=2, recipe=QUICK)[1].path,
        trained("digits-fc", data, timesteps=2, recipe=QUICK, seed=1)[1].path,
        trained("digits-fc", data, timesteps=3, recipe=QUICK)[1].path,
        trained("digits-fc", data, timesteps=2, recipe=Recipe(epochs=1, batch=8, lr=2e-3))[1].path,
    ]
    with np.load(data) as file:
        x, y = file["x"], file["y"]
    np.savez(data, x=x, y=1 - y)
    paths.append(trained("digits-fc", data, timesteps=2, recipe=QUICK)[1].path)
    assert len(set(paths)) == len(paths)
    assert not trained("digits-fc", data, timesteps=2, recipe=QUICK, seed=2)[1].from_cache


def test_a_changed_initialisation_retrains(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained("digits-fc", data, timesteps=2, recipe=QUICK)
    monkeypatch.setattr("frontends.spiking_network.DRIVE", 0.9)
    assert not trained("digits-fc", data, timesteps=2, recipe=QUICK)[1].from_cache


def test_retrained_weights_are_the_same_bits(data: str) -> None:
    first, info = trained("digits-conv", data, timesteps=2, recipe=QUICK)
    Path(info.path).unlink()
    second, again = trained("digits-conv", data, timesteps=2, recipe=QUICK)
    assert not again.from_cache
    assert same_weights(first, second)


@given(place=st.integers(0, 10**7), flip=st.integers(1, 255))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_byte_is_noticed(data: str, place: int, flip: int) -> None:
    first, info = trained("digits-fc", data, timesteps=1, recipe=QUICK)
    path = Path(info.path)
    damaged = bytearray(path.read_bytes())
    place %= len(damaged)
    assume(damaged[place] != ord(" "))  # another white space that pads the header means the same
    damaged[place] ^= flip
    path.write_bytes(damaged)
    with pytest.warns(CacheWarning, match="training again"):
        second, again = trained("digits-fc", data, timesteps=1, recipe=QUICK)
    assert not again.from_cache
    assert same_weights(first, second)


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 64])
def test_foreign_files_are_replaced(data: str, content: bytes) -> None:
    _, info = trained("digits-fc", data, timesteps=2, recipe=QUICK)
    Path(info.path).write_bytes(content)
    with pytest.warns(CacheWarning, match="training again"):
        assert not trained("digits-fc", data, timesteps=2, recipe=QUICK)[1].from_cache
    assert trained("digits-fc", data, timesteps=2, recipe=QUICK)[1].from_cache


def test_a_better_looking_accuracy_is_noticed(data: str) -> None:
    _, info = trained("digits-fc", data, timesteps=2, recipe=QUICK)
    text = Path(info.path).read_bytes()
    header = json.loads(text[8 : 8 + int.from_bytes(text[:8], "little")])["__metadata__"]
    stored = json.loads(header["info"])
    stored["accuracy_test"] = 1.5
    tensors = load_file(info.path)
    save_file(tensors, info.path, metadata=header | {"info": json.dumps(stored, sort_keys=True)})
    with pytest.warns(CacheWarning, match="its hash is wrong"):
        assert trained("digits-fc", data, timesteps=2, recipe=QUICK)[1].accuracy_test <= 1.0


def test_two_processes_at_once(data: str, tmp_path: Path) -> None:
    program = (
        "import sys; from frontends.cache import trained; from frontends.recipe import Recipe\n"
        "quick = Recipe(epochs=1, batch=8, lr=1e-3)\n"
        "print(trained('digits-fc', sys.argv[1], timesteps=2, recipe=quick)[1].weights_sha256)"
    )
    command = [sys.executable, "-W", "error", "-c", program, data]
    root = Path(cache.__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": str(root)}
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) for _ in range(2)
    ]
    printed = {run.communicate()[0] for run in runs}
    assert [run.returncode for run in runs] == [0, 0]
    _, info = trained("digits-fc", data, timesteps=2, recipe=QUICK)
    assert info.from_cache
    assert printed == {info.weights_sha256 + "\n"}
    assert len(list(Path(info.path).parent.iterdir())) == 1


def test_a_folder_that_cannot_be_written(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPIKEC_CACHE", str(tmp_path / "file"))
    with pytest.raises(CompileError, match="cannot keep the trained network") as caught:
        trained("digits-fc", data, timesteps=2, recipe=QUICK)
    assert caught.value.hint == "set $SPIKEC_CACHE to a folder that can be written"


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIKEC_CACHE", "~/x")
    assert cache_folder() == Path.home() / "x"
    monkeypatch.delenv("SPIKEC_CACHE")
    assert cache_folder().name == "spikec"


@pytest.mark.parametrize(
    ("network", "source", "message"),
    [
        (
            "mnist",
            "digits",
            r"zoo:mnist@digits: error: samples are \(1, 8, 8\), the network takes \(1, 28, 28\)",
        ),
        ("nmnist", "synthetic:2x32x32", "samples are images, the network takes events"),
        ("nmnist", "synthetic:4x2x32x32", "samples have 4 time steps, the network 2"),
        ("digits-conv", "synthetic:4x1x8x8", "samples have a time axis, the network takes images"),
        ("digits-conv", "synthetic:1x8x8", "has no labels"),
        ("nothing", "digits", "zoo:nothing: error: is no network"),
    ],
)
def test_network_and_data_must_fit(data: str, network: str, source: str, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        trained(network, source, timesteps=2, recipe=QUICK)


def test_labels_beyond_the_last_class(data: str) -> None:
    np.savez(data, x=np.zeros((6, 1, 8, 8), dtype=np.float32), y=np.full(6, 10))
    with pytest.raises(CompileError, match="a label is 10, the network has 10 classes"):
        trained("digits-fc", data, timesteps=2, recipe=QUICK)
