"""The results file: what is read back, what is dropped, and what is refused and left as it is."""

from __future__ import annotations

import fcntl
import json
from dataclasses import replace
from pathlib import Path

import pytest

from compiler.h2learn.facts import network_layers
from hwmodel.config import load_config
from hwmodel.errors import CompileError
from hwmodel.estimate import Mode
from spikec.explore.points import PointResult, Study, TiledNetwork
from spikec.explore.results import ResultsFile, header_of
from spikec.explore.space import Axis, Space
from spikec.models import load_model

PRESET = load_config("h2learn")
LAYERS = network_layers(load_model("zoo:digits-fc").graph, PRESET)
STUDY = Study(
    base=PRESET,
    mode=Mode.TRAIN,
    timesteps=4,
    batch=64,
    seed=0,
    networks=(TiledNetwork(tile=PRESET.tile, layers=LAYERS, densities=None),),
)
SPACE = Space(axes=(Axis(path="forward.rows", values=(32, 64)),))
RESULTS = tuple(PointResult(number=number, changes={"tile": 4}, refused="why") for number in range(5))


def results_file(path: Path, study: Study = STUDY, points: int = 5) -> ResultsFile:
    return ResultsFile(
        path=path, header=header_of(study, SPACE, network="net", densities="dense", points=points, seed=0)
    )


def begun(path: Path, count: int) -> ResultsFile:
    """A file that a run left behind after so many points, the last first."""
    file = results_file(path)
    with file.appending() as end:
        for result in reversed(RESULTS[:count]):
            end.add(result)
    return file


def test_finished_points_are_read_back(tmp_path: Path) -> None:
    file = begun(tmp_path / "r.jsonl", 3)
    assert file.read() == {0: RESULTS[0], 1: RESULTS[1], 2: RESULTS[2]}
    assert list(file.read()) == [2, 1, 0]


def test_a_finished_file_is_in_order(tmp_path: Path) -> None:
    file = begun(tmp_path / "r.jsonl", 5)
    file.finish(RESULTS)
    assert list(file.read()) == [0, 1, 2, 3, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


def test_every_cut_of_the_last_line_drops_that_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    begun(path, 2)
    whole = path.read_bytes()
    start = whole[:-1].rfind(b"\n") + 1
    for length in range(start, len(whole)):
        path.write_bytes(whole[:length])
        file = results_file(path)
        assert list(file.read()) == [1]
        with file.appending() as end:
            end.add(RESULTS[0])
        assert path.read_bytes() == whole


def test_a_line_that_is_no_result_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    file = begun(path, 2)
    header, first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + first[:9] + b"\n" + second)
    with pytest.raises(CompileError, match=r"r\.jsonl:2: error: is no result of a point\n  hint: delete that line"):
        file.read()


@pytest.mark.parametrize("content", [b"text", b"text\n", b"{}\n", b"[1]\n", b"\xff\xfe\n", b'{"point": 1}\n'])
def test_another_kind_of_file_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    with pytest.raises(CompileError, match="holds no exploration\n  hint: name another file; this one stays"):
        results_file(path).read()
    assert path.read_bytes() == content


def test_an_empty_file_is_begun(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.touch()
    assert results_file(path).read() == {}
    begun(path, 1)
    assert list(results_file(path).read()) == [0]


def test_what_differs_from_another_exploration_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    begun(path, 2)
    with pytest.raises(CompileError, match="is of another exploration: points differs"):
        results_file(path, points=6).read()
    with pytest.raises(CompileError, match="another exploration: mode, timesteps differ"):
        results_file(path, replace(STUDY, mode=Mode.INFER, timesteps=5)).read()
    other = replace(STUDY, base=replace(PRESET, clock_ghz=0.9))
    with pytest.raises(CompileError, match="another exploration: the network's layers, the configuration or"):
        results_file(path, other).read()


def test_a_file_that_another_run_writes(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    file = begun(path, 1)
    with path.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(CompileError, match="another run is writing it"), file.appending():
            pass
    with file.appending():
        pass


def test_a_folder_that_is_not_there_stays_away(tmp_path: Path) -> None:
    with (
        pytest.raises(CompileError, match="cannot be written: No such file"),
        results_file(tmp_path / "none" / "r.jsonl").appending(),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_header_is_readable(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    begun(path, 0)
    (line,) = path.read_text().splitlines()
    header = json.loads(line)
    assert (header["network"], header["mode"], header["axes"]) == ("net", "train", {"forward.rows": [32, 64]})
    assert len(header["exploration"]) == 64
