"""The command from end to end: its file, table, object and figure, and what it refuses."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from spikec.explore.densities import DENSE
from spikec.explore.pareto import dominates
from spikec.explore.results import ResultsFile
from tests.spikec.command import refusal, result, spikec
from tests.spikec.explore.studies import MODEL, SIZE, records, space_file
from tests.spikec.graphs import saved

ONE = ("--jobs", "1")


@pytest.fixture
def command(workplace: Path) -> tuple[str, ...]:
    """The small exploration, all of its space."""
    return (*MODEL, "--space", str(space_file(workplace)), "--points", "0", "-o", "r.jsonl")


def objectives(design: dict[str, float]) -> tuple[float, ...]:
    return -design["samples_per_second"], design["energy_j_per_sample"], design["area_mm2"]


def test_the_object_says_what_the_file_holds(command: tuple[str, ...]) -> None:
    report = result(*command, *ONE)
    lines = records(Path("r.jsonl"))
    assert [line["point"] for line in lines] == list(range(SIZE))  # the base is one of the grid
    designs = {line["point"]: line for line in lines if "refused" not in line}
    assert report["designs"] == SIZE
    assert report["designs_refused"] == SIZE - len(designs)
    assert (report["network"], report["mode"], report["densities"]) == ("zoo:digits-conv", "train", DENSE)
    front = {
        number
        for number, line in designs.items()
        if not any(dominates(objectives(other), objectives(line)) for other in designs.values())
    }
    assert {design["point"] for design in report["front"]} == front
    rates = [design["samples_per_second"] for design in report["front"]]
    assert rates == sorted(rates, reverse=True)
    base = designs[0]
    better = [n for n, line in designs.items() if dominates(objectives(line), objectives(base))]
    assert report["base"]["dominated_by"] == better
    assert report["base"]["on_front"] == (not better)
    least = min(designs.values(), key=lambda line: line["energy_j_per_sample"] / line["samples_per_second"])
    assert report["best_energy_delay"]["point"] == least["point"]
    dense = max(designs.values(), key=lambda line: line["samples_per_second"] / line["area_mm2"])
    assert report["best_throughput_per_area"]["point"] == dense["point"]


def test_invalid_combinations_are_lines_with_their_reason(command: tuple[str, ...]) -> None:
    result(*command, *ONE)
    for line in records(Path("r.jsonl")):
        rows, samples = line["changes"].get("forward.rows", 64), line["changes"].get("sub_batch", 4)
        refused = line.get("refused", "")
        assert bool(refused) == (rows == 48 or samples == 5)
        assert ("forward.rows is 48, must be a power of two" in refused) == (rows == 48)


def test_reasons_of_refusals_are_counted(command: tuple[str, ...]) -> None:
    """By hand: 48 rows are refused in a third of the designs, 5 samples in a third of the others."""
    rows, samples = SIZE // 3, (SIZE - SIZE // 3) // 3
    outcome = spikec(*command, *ONE)
    refusals = result(*command, *ONE)["refusals"]
    assert [entry["designs"] for entry in refusals] == [rows, samples]
    assert [entry["reason"].partition(",")[0] for entry in refusals] == ["forward.rows is 48", "sub_batch is 5"]
    shown = outcome.out[outcome.out.index("refused designs") :]
    assert re.findall(r"│ +(\d+) │ (\S+)", shown) == [(str(rows), "forward.rows"), (str(samples), "sub_batch")]


def test_rare_reasons_are_summed_up(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spikec.commands.explore.REASONS_SHOWN", 1)
    shown = spikec(*command, *ONE).out
    assert f"│ {(SIZE - SIZE // 3) // 3} │ for 1 more reason; --json lists all" in shown
    assert "sub_batch is 5" not in shown


def test_units_fit_the_numbers(command: tuple[str, ...]) -> None:
    """A sample of this network takes some uJ, and pJ s of energy-delay; the numbers are those of the object."""
    report = result(*command, *ONE)
    shown = re.sub(" +", " ", spikec(*command, *ONE).out)
    base, best = report["base"], report["best_energy_delay"]
    numbers = f"{base['samples_per_second']:,.0f}; {1e6 * base['energy_j_per_sample']:.2f};"
    assert f"base: samples/s, uJ/sample, mm2, W │ {numbers}" in shown
    assert f"{best['point']}: {1e12 * best['energy_delay_js_per_sample']:.1f} pJ s" in shown
    assert f"of the base │ {1e12 * base['energy_delay_js_per_sample']:.1f} pJ s" in shown
    assert "e-0" not in shown


def test_two_processes_give_the_same_bytes(command: tuple[str, ...]) -> None:
    result(*command, *ONE)
    want = Path("r.jsonl").read_bytes()
    Path("r.jsonl").unlink()
    result(*command, "--jobs", "2")
    assert Path("r.jsonl").read_bytes() == want
    result(*command, *ONE)
    assert Path("r.jsonl").read_bytes() == want


def test_a_finished_exploration_evaluates_nothing(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    first = dict(result(*command, *ONE))
    monkeypatch.delattr("spikec.explore.points._estimate")
    again = dict(result(*command, *ONE))
    del first["seconds"], again["seconds"]
    assert again == first


def test_a_table_and_a_figure(command: tuple[str, ...]) -> None:
    outcome = spikec(*command, *ONE, "--figure", "f.svg")
    assert outcome.code == 0, outcome.err
    for text in (
        "Pareto front, fastest first",
        "changed from h2learn",
        "base stands",
        f"{SIZE} designs, the base with them, of a space of {SIZE}",
    ):
        assert text in outcome.out
    drawn = Path("f.svg").read_bytes()
    assert drawn.startswith(b"<?xml")
    Path("f.svg").unlink()
    spikec(*command, *ONE, "--figure", "f.svg")
    assert Path("f.svg").read_bytes() == drawn
    assert sorted(path.name for path in Path().iterdir()) == ["f.svg", "out", "r.jsonl", "space.toml"]


def test_whether_the_base_got_other_buffers(command: tuple[str, ...], workplace: Path) -> None:
    assert result(*command, *ONE)["base"]["buffers_resized"]  # 4 steps instead of 10
    saved(Path("net.spk"))
    ten = result("explore", "net.spk", "--timesteps", "10", "--points", "1", *ONE, "-o", "ten.jsonl")
    assert not ten["base"]["buffers_resized"]


def test_inference_of_a_file(workplace: Path) -> None:
    saved(Path("net.spk"))
    report = result("explore", "net.spk", "--mode", "infer", "--points", "20", *ONE, "-o", "r.jsonl")
    assert report["designs"] == 21
    assert set(report["base"]["bound_by"]) == {"forward conv1", "forward conv2", "forward fc"}


def test_a_batch_is_the_same_for_every_sub_batch(command: tuple[str, ...]) -> None:
    header = ("samples_between_updates", "timesteps")
    result(*command, *ONE, "--batch-group", "10")
    found = json.loads(Path("r.jsonl").read_text().splitlines()[0])
    assert [found[name] for name in header] == [40, 4]
    assert not any(line.get("refused", "").startswith("sub_batch") for line in records(Path("r.jsonl")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-o", "none/r.jsonl"), "none/r.jsonl: error: the folder none does not exist"),
        (("-o", "out"), "out: error: is a folder, not a file"),
        (("--figure", "none/f.svg"), "none/f.svg: error: the folder none does not exist"),
        (("--figure", "f.png"), "f.png: error: a figure's file must end in .svg"),
        (("--densities", "x"), "--densities x: error: is not known"),
        (("--space", "none.toml"), "none.toml: error: cannot read the space"),
        (("--config", "none"), "none: error: no preset 'none'"),
        (("--cluster", "nowhere"), "--cluster nowhere: error: no cluster answers"),
        (("--cluster", "tcp://127.0.0.1:9"), "--cluster tcp://127.0.0.1:9: error: no cluster answers"),
    ],
)
def test_refusals_leave_nothing(
    command: tuple[str, ...], options: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spikec.workers.CONNECT_S", 0.2)
    assert refusal(*command, *options).startswith(message)
    assert sorted(path.name for path in Path().iterdir()) == ["out", "space.toml"]


@pytest.mark.parametrize(
    ("output", "figure"), [("a.svg", "a.svg"), ("a.svg", "out/../a.svg"), ("a.svg", "link.svg"), ("a.svg", "hard.svg")]
)
def test_results_and_figure_in_one_file(command: tuple[str, ...], output: str, figure: str) -> None:
    if figure == "link.svg":
        Path(figure).symlink_to(output)
    elif figure == "hard.svg":
        Path(output).touch()
        Path(figure).hardlink_to(output)
    before = sorted(Path().iterdir())
    assert refusal(*command, *ONE, "-o", output, "--figure", figure).startswith(
        f"{figure}: error: is the file of the results too\n  hint: name another file"
    )
    assert sorted(Path().iterdir()) == before


def test_a_figure_leaves_results_of_any_name(command: tuple[str, ...]) -> None:
    outcome = spikec(*command, *ONE, "-o", "f.svg.part", "--figure", "f.svg")
    assert outcome.code == 0, outcome.err
    assert len(records(Path("f.svg.part"))) == SIZE


def test_another_explorations_file_stays(command: tuple[str, ...]) -> None:
    result(*command, *ONE)
    before = Path("r.jsonl").read_bytes()
    message = refusal(*command, *ONE, "--mode", "infer")
    assert message.startswith("r.jsonl: error: is of another exploration: mode differs")
    assert Path("r.jsonl").read_bytes() == before


def test_a_base_without_room_for_a_tile(command: tuple[str, ...]) -> None:
    Path("small.toml").write_text('base = "h2learn"\n[backward.buffers_kb]\ngm_in = 1.0\n')
    message = refusal(*command, "--config", "small.toml")
    assert message.startswith("small.toml: error: backward.buffers_kb.gm_in gives a bank of 512 bytes, one tile needs")


def test_a_base_that_cannot_run(command: tuple[str, ...]) -> None:
    Path("base.toml").write_text('base = "h2learn"\nsub_batch = 3\n')
    message = refusal(*command, "--config", "base.toml", "--densities", "published:cifar10")
    assert "table 3.2 has 5 convolutions" in message
    assert not Path("r.jsonl").exists()


@pytest.mark.parametrize(("module", "option"), [("distributed", "--cluster"), ("matplotlib", "--figure")])
def test_a_missing_package_says_how_to_get_it(
    command: tuple[str, ...], module: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    message = refusal(*command, *ONE, option, {"--cluster": "local", "--figure": "f.svg"}[option])
    assert f"{module} is not installed\n  hint: pip install 'spikec[explore]'" in message


def test_ctrl_c_keeps_what_is_finished(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    result(*command, *ONE)
    want = Path("r.jsonl").read_bytes()
    Path("r.jsonl").unlink()
    counts = iter(range(10, 0, -1))

    def stop(_bar: object, _done: int, _total: int) -> None:
        if next(counts) == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("spikec.commands.talk.Bar.samples", stop)
        outcome = spikec(*command, "--jobs", "2")
    assert outcome.code != 0
    assert "interrupted; the same command goes on from r.jsonl" in outcome.err
    finished = [line["point"] for line in records(Path("r.jsonl"))]
    assert len(finished) == len(set(finished)) > 1
    result(*command, *ONE)
    assert Path("r.jsonl").read_bytes() == want


def test_a_full_disk_is_said_and_the_rest_goes_on(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("spikec.record_file.os.replace", full)
        assert refusal(*command, *ONE).startswith("r.jsonl: error: cannot be written: No space left")
    assert not any(Path().glob("r.jsonl*"))
    assert ResultsFile(path=Path("r.jsonl"), header={}).read() == {}
