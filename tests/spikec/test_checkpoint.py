"""Checkpoint files: what damaged ones, and those of other runs, are refused with."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from compiler.ir import Graph
from frontends.descent import F32, BatchResult, Labels, State
from hwmodel.errors import CompileError
from spikec.training.checkpoint import CheckpointFile, Identity
from spikec.training.history import History, fresh_order

RUN: Identity = {"seed": 5, "learning_rate": 0.1, "config": None, "fold_batch_norm": True, "loss": "mse"}
HINT = "\n  hint: it is cut off, damaged or of another kind; name another file"


class Arrays:
    """A trainer that is only its state."""

    def __init__(self) -> None:
        self.arrays: State = {
            "weight": np.arange(6, dtype=np.float16).reshape(2, 3).T,
            "presented": np.array(7),
            "mask": np.ones((2, 0), np.uint8),
        }

    def step(self, x: F32, labels: Labels, learning_rate: float) -> BatchResult:
        raise NotImplementedError

    def predict(self, x: F32) -> Labels:
        raise NotImplementedError

    def weights(self) -> dict[str, F32]:
        raise NotImplementedError

    def graph(self) -> Graph:
        raise NotImplementedError

    def state(self) -> State:
        return self.arrays

    def restore(self, state: State) -> None:  # type: ignore[override]
        self.arrays = state


def contents(trainer: Arrays) -> dict[str, tuple[object, ...]]:
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in trainer.arrays.items()}


def history() -> History:
    return History(
        random=fresh_order(3), epoch=1, batches=2, step=9, loss=0.1 + 0.2, correct=4, losses=[1 / 3], accuracies=[0.7]
    )


def written(path: Path, run: Identity = RUN) -> CheckpointFile:
    file = CheckpointFile(path=path, identity=run)
    file.save(history(), Arrays())
    return file


def refusal(path: Path, run: Identity = RUN) -> str:
    with pytest.raises(CompileError) as caught:
        CheckpointFile(path=path, identity=run).load(Arrays())
    return str(caught.value)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    file, trainer = written(tmp_path / "c"), Arrays()
    trainer.arrays = {}
    assert file.load(trainer) == history()
    assert contents(trainer) == contents(Arrays())
    assert os.listdir(tmp_path) == ["c"]


def test_no_file_is_a_fresh_run(tmp_path: Path) -> None:
    assert CheckpointFile(path=tmp_path / "c", identity=RUN).load(Arrays()) is None


def test_equal_states_give_equal_bytes(tmp_path: Path) -> None:
    written(tmp_path / "a")
    written(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_another_run_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c"
    written(path)
    other: Identity = {**RUN, "seed": 6, "loss": "cross_entropy"}
    del other["config"]
    assert refusal(path, other | {"machines": 2}) == (
        f"{path}: error: is a checkpoint of another run: loss is mse there and cross_entropy here; "
        "machines is None there and 2 here; seed is 5 there and 6 here\n"
        "  hint: repeat that run's options, or name another file"
    )


@given(place=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_a_changed_byte_is_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, place: int, flip: int) -> None:
    path = tmp_path_factory.mktemp("c") / "c"
    file = written(path)
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= flip
    path.write_bytes(content)
    trainer = Arrays()
    try:
        found = file.load(trainer)
    except CompileError as fault:
        found, message = None, str(fault)
    if found is None:
        assert message.startswith(f"{path}: error: is ")
    else:  # a byte of white space in the header
        assert found == history()
        assert contents(trainer) == contents(Arrays())


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_cut_file_is_refused(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    path = tmp_path_factory.mktemp("c") / "c"
    written(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert refusal(path).startswith(f"{path}: error: is not a sound checkpoint: ")
    assert refusal(path).endswith(HINT)


def test_files_of_other_kinds(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.mkdir()
    assert refusal(path) == f"{path}: error: is a folder, not a checkpoint\n  hint: name a file inside it"
    path = tmp_path / "weights"
    save_file({"w": np.zeros(3, np.float32)}, path)
    assert refusal(path) == (
        f"{path}: error: is no checkpoint of spikec\n  hint: name another file; this one stays as it is"
    )


def changed(path: Path, **fields: object) -> None:
    """Change the envelope of a file."""
    with safe_open(path, framework="numpy") as file:
        envelope = json.loads(file.metadata()["spikec.checkpoint"])
    save_file(load_file(path), path, metadata={"spikec.checkpoint": json.dumps(envelope | fields)})


def test_another_format(tmp_path: Path) -> None:
    path = tmp_path / "c"
    written(path)
    changed(path, format=2)
    assert refusal(path) == f"{path}: error: has format 2, this spikec reads format 1"


def test_a_better_looking_history_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c"
    written(path)
    body = json.dumps({"run": RUN, "history": history().as_fields() | {"losses": [0.0]}}, sort_keys=True)
    changed(path, body=body)
    assert refusal(path) == f"{path}: error: is not a sound checkpoint: its hash is wrong{HINT}"


@pytest.mark.parametrize("where", ["os.replace", "os.fsync"])
def test_a_full_disk_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    path = tmp_path / "c"
    file = written(path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(where, full)
    with pytest.raises(CompileError) as caught:
        file.save(history(), Arrays())
    assert str(caught.value) == f"{path}: error: cannot write the checkpoint: No space left on device"
    assert os.listdir(tmp_path) == ["c"]
    assert path.read_bytes() == before


def test_what_a_killed_run_left_beside_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "c.part").write_bytes(b"half")
    written(tmp_path / "c")
    assert os.listdir(tmp_path) == ["c"]
