"""The command line from end to end: what each verb prints and writes when all is well."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from compiler.h2learn.compile import PASSES
from compiler.ir.file import load_graph
from compiler.ir.text import parse_graph, print_graph
from compiler.passes.driver import pass_name, run_passes
from hwmodel.assembler import disassemble
from hwmodel.program_file import load_program
from spikec.commands import talk
from spikec.models import load_model
from tests.spikec.command import refusal, result, spikec
from tests.spikec.graphs import STEPS, saved

DIGITS = ("--data", "digits", "--samples")


def test_compile_reports_what_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "d.h2l"
    report = result("compile", "zoo:digits-conv", "-o", path)
    program = load_program(path)
    assert report["program"] == str(path)
    assert report["layers"] == len(program.layers) == 4
    assert report["instructions"] == program.instructions
    assert (report["timesteps"], report["batch"]) == (program.timesteps, program.batch) == (10, 4)
    assert report["file_bytes"] == path.stat().st_size
    assert report["cycles_per_sample"] == report["latency_cycles"] / 4
    assert report["latency_us"] == pytest.approx(report["latency_cycles"] / program.config.clock_ghz / 1e3)
    weights = 1 * 16 * 9 + 16 * 32 * 9 + 32 * 4 * 4 * 128 + 128 * 10
    assert (report["weights"], report["weights_flushed_to_zero"]) == (weights, 0)


def test_compile_as_a_table(tmp_path: Path) -> None:
    outcome = spikec("compile", "zoo:digits-fc", "-o", tmp_path / "d.h2l")
    assert (outcome.code, outcome.err) == (0, "")
    for text in ("zoo:digits-fc on h2learn", "instructions", "10, 4", "latency of a sub-batch", "cycles"):
        assert text in outcome.out


def test_square_brackets_are_printed_as_they_are(workplace: Path) -> None:
    saved(Path("[b]net[b].spk"))
    assert "[b]net[b].spk on h2learn" in spikec("compile", "[b]net[b].spk", "-o", "out/n.h2l").out


def test_weights_that_vanish_in_fp16_are_counted(workplace: Path) -> None:
    weight = np.ones((10, 320), np.float32)
    weight[0, :7] = 1e-9
    weight[0, 7] = 0
    saved(Path("net.spk"), {"w3": weight})
    assert result("compile", "net.spk", "-o", "out/n.h2l")["weights_flushed_to_zero"] == 7


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    def bytes_of(seed: str) -> bytes:
        path = tmp_path / "d.h2l"
        assert spikec("compile", "zoo:digits-fc", "-o", path, "--seed", seed).code == 0
        return path.read_bytes()

    assert bytes_of("7") == bytes_of("7")
    assert bytes_of("7") != bytes_of("8")


def test_batch_and_timesteps(tmp_path: Path) -> None:
    def report(*options: str) -> tuple[int, int, int]:
        report = result("compile", "zoo:digits-fc", "-o", tmp_path / "d.h2l", *options)
        return report["batch"], report["timesteps"], report["latency_cycles"]

    batch, timesteps, latency = report()
    assert (batch, timesteps) == (4, 10)
    alone = report("--batch", "1")
    assert alone[:2] == (1, 10)
    assert alone[2] < latency
    short = report("--timesteps", "3")
    assert short[:2] == (4, 3)
    assert short[2] < latency


def test_a_file_keeps_its_timesteps_unless_others_are_asked_for(workplace: Path) -> None:
    saved(Path("net.spk"))
    assert result("compile", "net.spk", "-o", "out/n.h2l")["timesteps"] == STEPS
    assert result("compile", "net.spk", "-o", "out/n.h2l", "--timesteps", "2")["timesteps"] == 2


def test_a_configuration_file_states_what_differs(workplace: Path) -> None:
    saved(Path("net.spk"))
    Path("slow.toml").write_text('base = "h2learn"\nname = "slow"\nclock_ghz = 0.2\nsub_batch = 2\n')
    report = result("compile", "net.spk", "-o", "out/n.h2l", "--config", "slow.toml")
    assert report["batch"] == 2
    assert report["latency_us"] == pytest.approx(report["latency_cycles"] / 200)
    assert "net.spk on slow" in spikec("compile", "net.spk", "-o", "out/n.h2l", "--config", "slow.toml").out


def test_run_as_json_and_as_a_table(digits_program: Path) -> None:
    report = result("run", digits_program, *DIGITS, "6")
    assert report["samples"] == len(report["predictions"]) == 6
    assert set(report["predictions"]) <= set(range(10))
    assert report["accuracy"] * 6 == pytest.approx(round(report["accuracy"] * 6))
    assert report["engine"] == "fast"
    assert "firing_rates" not in report
    table = spikec("run", digits_program, *DIGITS, "6")
    assert (table.code, table.err) == (0, "")
    assert " ".join(map(str, report["predictions"])) in table.out
    assert f"{report['accuracy']:.4f}" in table.out


def test_run_writes_what_it_cost(digits_program: Path, tmp_path: Path) -> None:
    page, trace = tmp_path / "cost.html", tmp_path / "cost.json"
    options = ("--data", "digits", "--samples", "4", "--html", page, "--trace", trace)
    report = result("run", digits_program, *options)
    assert report["latency_cycles"] == 4 * report["cycles_per_sample"] > 0
    assert report["energy_j_per_sample"] > 0
    assert "digits-conv" in page.read_text()
    assert json.loads(trace.read_text())["traceEvents"]


def test_run_backward_tells_the_cost_of_its_own_masks(tmp_path: Path) -> None:
    """Real masks are sparse: a step costs less than with dense gradients."""
    program = tmp_path / "t.h2l"
    options = ("--mode", "train", "--fold-batch-norm", "--batch-group", "2")
    dense = result("compile", "zoo:digits-conv", "-o", program, *options)
    trace = tmp_path / "t.json"
    measured = result("run", program, "--data", "digits", "--samples", "8", "--trace", trace)
    assert measured["cycles_per_sample"] < dense["cycles_per_sample"]
    assert json.loads(trace.read_text())["traceEvents"]


def test_channels_in_the_order_of_measured_masks(tmp_path: Path) -> None:
    """The same network, its channels elsewhere: as many right, weights permuted."""
    options = ("--mode", "train", "--fold-batch-norm", "--batch-group", "2", "--config", "h2learn_balanced")
    balance = ("--balance", "digits", "--balance-samples", "8")
    measured = {}
    for name, more in (("plain", ()), ("ordered", balance)):
        program = tmp_path / f"{name}.h2l"
        result("compile", "zoo:digits-conv", "-o", program, *options, *more)
        measured[name] = result("run", program, "--data", "digits", "--samples", "16")
    assert measured["plain"]["accuracy"] == measured["ordered"]["accuracy"]
    assert measured["plain"]["loss"] == pytest.approx(measured["ordered"]["loss"], rel=0.02)
    plain, ordered = (load_program(tmp_path / f"{name}.h2l").constants for name in measured)
    name = next(name for name in plain if name.startswith("0.weights"))
    assert not np.array_equal(plain[name], ordered[name])
    assert np.array_equal(np.sort(plain[name], axis=None), np.sort(ordered[name], axis=None))


def test_balance_needs_labels(tmp_path: Path) -> None:
    options = ("--mode", "train", "--fold-batch-norm", "--balance", "synthetic:1x8x8", "--balance-samples", "4")
    assert "has no labels" in refusal("compile", "zoo:digits-conv", "-o", tmp_path / "b.h2l", *options)
    assert not list(tmp_path.iterdir())


def test_a_trace_that_cannot_be_written_stops_the_run(digits_program: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "cost.json"
    assert "does not exist" in refusal("run", digits_program, "--data", "digits", "--trace", missing)
    assert not list(tmp_path.iterdir())


def test_engines_agree(digits_program: Path) -> None:
    fast, golden = (
        result("run", digits_program, *DIGITS, "5", "--rates", "--engine", engine) for engine in ("fast", "golden")
    )
    assert (fast["engine"], golden["engine"]) == ("fast", "golden")
    for key in ("predictions", "firing_rates", "accuracy", "latency_cycles", "instructions"):
        assert fast[key] == golden[key]


def test_rates_name_every_neuron_layer(digits_program: Path) -> None:
    rates = result("run", digits_program, *DIGITS, "4", "--rates")["firing_rates"]
    neurons = {neuron.node for layer in load_program(digits_program).layers for neuron in layer.neurons}
    assert set(rates) == neurons
    assert all(0 <= rate <= 1 for rate in rates.values())
    assert any(rate > 0 for rate in rates.values())
    table = spikec("run", digits_program, *DIGITS, "4", "--rates").out
    assert all(f"firing rate of {name}" in table for name in neurons)


def test_no_sample_count_means_all(digits_program: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((7, 1, 8, 8), np.float32)
    np.savez(tmp_path / "own.npz", x=x, y=np.zeros(7, np.int64))
    assert result("run", digits_program, "--data", tmp_path / "own.npz")["samples"] == 7
    assert result("run", digits_program, "--data", "synthetic:1x8x8", "--samples", "2")["accuracy"] is None


def test_inspect_prints_a_graph_that_parses_back(workplace: Path) -> None:
    graph = load_graph(saved(Path("net.spk")))
    text = spikec("inspect", "net.spk").out
    assert parse_graph(text, graph.parameters) == graph
    report = result("inspect", "net.spk")
    assert report["graph"] == "small"
    assert report["timesteps"] == STEPS
    assert report["digest_sha256"] == graph.digest()
    assert [node["name"] for node in report["nodes"]] == [node.name for node in graph.nodes]
    assert report["parameters"] == sum(array.size for array in graph.parameters.values())


def test_inspect_lists_a_program(digits_program: Path) -> None:
    program = load_program(digits_program)
    text = spikec("inspect", digits_program).out
    assert "program digits-conv for h2learn" in text
    assert all(layer.name[:25] in text for layer in program.layers)
    full = spikec("inspect", digits_program, "--full").out
    for queue, stream in program.streams.items():
        assert f"queue {queue}: {len(stream):,} instructions" in text
        assert all(disassemble(instruction) in full for instruction in stream)
    assert "all with --full" in text
    assert "all with --full" not in full


def test_inspect_a_program_as_json(digits_program: Path) -> None:
    program = load_program(digits_program)
    report = result("inspect", digits_program)
    assert report["listing"] is None
    assert sum(report["instructions"].values()) == program.instructions
    assert [layer["name"] for layer in report["layers"]] == [layer.name for layer in program.layers]
    assert report["latency_cycles"] == report["cycles_per_sample"] * 4
    listing = result("inspect", digits_program, "--full")["listing"]
    assert {queue: len(lines) for queue, lines in listing.items()} == report["instructions"]


@pytest.mark.parametrize("count", range(1, len(PASSES) + 1))
def test_print_after_shows_the_graph_on_stderr(tmp_path: Path, count: int) -> None:
    arguments = ("compile", "zoo:digits-fc", "-o", tmp_path / "d.h2l", "--json")
    outcome = spikec(*arguments, "--print-after", pass_name(PASSES[count - 1]))
    assert outcome.code == 0
    assert outcome.json["program"] == str(tmp_path / "d.h2l")
    graph, _ = run_passes(load_model("zoo:digits-fc").graph, PASSES[:count])
    assert outcome.err == print_graph(graph) + "\n"


def test_a_bernoulli_coded_network(tmp_path: Path) -> None:
    path = tmp_path / "c.h2l"
    assert result("compile", "zoo:certify-conv", "-o", path, "--timesteps", "4", "--seed", "3")["timesteps"] == 4
    assert "encoding bernoulli" in spikec("inspect", path).out
    assert load_program(path).host.seed == 3
    run = ("run", path, "--data", "synthetic:1x28x28", "--samples", "5")
    assert result(*run)["predictions"] == result(*run)["predictions"]


def test_an_event_network(tmp_path: Path) -> None:
    path = tmp_path / "l.h2l"
    result("compile", "zoo:loihi", "-o", path, "--batch", "1")
    report = result("run", path, "--data", "synthetic:10x2x34x34", "--samples", "1", "--rates")
    assert report["accuracy"] is None
    assert all(rate > 0 for rate in report["firing_rates"].values())
    message = refusal("run", path, "--data", "synthetic:2x34x34", "--samples", "1")
    assert "input has shape (1, 2, 34, 34), the program takes (10, N, 2, 34, 34)" in message


def test_progress_goes_to_stderr(digits_program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talk, "Console", partial(Console, force_terminal=True, force_interactive=True))
    outcome = spikec("run", digits_program, *DIGITS, "8", "--json")
    assert outcome.code == 0
    assert outcome.json["samples"] == 8
    assert "running" in outcome.err
    assert "8/8" in outcome.err


def test_without_arguments_the_verbs_are_listed() -> None:
    for arguments in ((), ("--help",)):
        out = spikec(*arguments).out
        assert all(verb in out for verb in ("demo", "compile", "run", "inspect"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "net.h2l"),
        ("compile", "net.spk"),
        ("compile", "net.spk", "-o", "out/n.h2l", "--timesteps", "many"),
        ("compile", "net.spk", "-o", "out/n.h2l", "--target", "abacus"),
        ("run", "net.h2l", "--data", "digits", "--engine", "slow"),
        ("demo", "--golden-samples", "0"),
        ("simulate",),
    ],
)
def test_wrong_usage_exits_with_2(workplace: Path, arguments: tuple[str, ...]) -> None:
    outcome = spikec(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert "--help" in outcome.err
    assert list(Path("out").iterdir()) == []
