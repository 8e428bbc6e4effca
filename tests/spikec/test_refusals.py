"""Bad input: exit code 2, one message of at most two lines on stderr, nothing on stdout, no file left."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save

from compiler.ir import Reset
from compiler.ir.ops import Array
from spikec.commands.target import COMMON, CUDA_ONLY
from tests.golden import Golden
from tests.spikec.command import refusal, spikec
from tests.spikec.graphs import saved

COMPILE = ("-o", "out/n.h2l")
DIGITS = ("--data", "digits", "--samples")
TARGET = ("compile", "net.spk", *COMPILE)


@pytest.fixture
def files(workplace: Path, digits_program: Path) -> Path:
    """A working folder with a network, a program, and files of other kinds."""
    saved(Path("net.spk"))
    Path("net.h2l").write_bytes(digits_program.read_bytes())
    for suffix in ("spk", "h2l"):
        whole = Path(f"net.{suffix}").read_bytes()
        Path(f"cut.{suffix}").write_bytes(whole[: len(whole) // 2])
        Path(f"noise.{suffix}").write_bytes(np.random.default_rng(0).bytes(4096))
        Path(f"empty.{suffix}").write_bytes(b"")
        Path(f"other.{suffix}").write_bytes(save({"a": np.zeros(3, np.float32)}))
        Path(f"folder.{suffix}").mkdir()
    Path("renamed.spk").write_bytes(digits_program.read_bytes())
    Path("renamed.h2l").write_bytes(Path("net.spk").read_bytes())
    return workplace


def messages(cases: Mapping[str, tuple[str, ...]]) -> str:
    """What each command is refused with; each leaves the folder `out` empty."""
    lines = []
    for name, arguments in cases.items():
        lines.append(f"{name}:\n{refusal(*arguments)}")
        assert os.listdir("out") == [], name
    return "\n".join(lines)


def test_files(files: Path, golden: Golden) -> None:
    cases: dict[str, tuple[str, ...]] = {}
    for kind in ("cut", "noise", "empty", "other", "renamed", "folder", "absent"):
        cases[f"{kind} graph"] = ("compile", f"{kind}.spk", *COMPILE)
        cases[f"{kind} program"] = ("run", f"{kind}.h2l", *DIGITS, "1")
        for suffix in ("spk", "h2l"):
            shown = refusal("inspect", f"{kind}.{suffix}")
            assert shown == refusal(*cases[f"{kind} {'graph' if suffix == 'spk' else 'program'}"])
    cases |= {
        "inspect another suffix": ("inspect", "net.txt"),
        "run a graph": ("run", "net.spk", *DIGITS, "1"),
        "compile a program": ("compile", "net.h2l", *COMPILE),
        "compile an ONNX file": ("compile", "net.onnx", *COMPILE),
    }
    golden("files.txt", messages(cases))


def test_options(files: Path, golden: Golden) -> None:
    Path("not_toml.toml").write_text("clock_ghz = = 1\n")
    Path("no_rows.toml").write_text('base = "h2learn"\n[forward]\nrows = 0\n')
    Path("unknown.toml").write_text('base = "h2learn"\n[forward]\nrow = 64\n')
    cases = {
        "no time steps": (*TARGET, "--timesteps", "0"),
        "negative time steps": (*TARGET, "--timesteps", "-1"),
        "no samples in a sub-batch": (*TARGET, "--batch", "0"),
        "too many samples in a sub-batch": (*TARGET, "--batch", "100000"),
        "too many time steps": (*TARGET, "--timesteps", "100000"),
        "negative seed": ("compile", "zoo:digits-fc", *COMPILE, "--seed", "-1"),
        "large seed": ("compile", "zoo:digits-fc", *COMPILE, "--seed", str(2**63)),
        "unknown pass": (*TARGET, "--print-after", "Fold"),
        "unknown preset": (*TARGET, "--config", "h3learn"),
        "absent configuration": (*TARGET, "--config", "absent.toml"),
        "no TOML": (*TARGET, "--config", "not_toml.toml"),
        "zero rows": (*TARGET, "--config", "no_rows.toml"),
        "unknown field": (*TARGET, "--config", "unknown.toml"),
        "absent folder": ("compile", "net.spk", "-o", "nowhere/n.h2l"),
        "folder as output": ("compile", "net.spk", "-o", "folder.h2l"),
        "output of another kind": ("compile", "net.spk", "-o", "out/n.spk"),
        "no output": ("compile", "net.spk", "-o", ""),
    }
    golden("options.txt", messages(cases))


CUDA = ("compile", "zoo:digits-fc", "--target", "cuda", "-o", "out/cuda")
OF_H2LEARN = {  # each option of the accelerator alone, at its default
    "--mode": ("infer",),
    "--config": ("h2learn",),
    "--print-after": ("",),
    "--loss": ("cross_entropy",),
    "--loss-scale": ("64.0",),
    "--learning-rate": ("0.01",),
    "--momentum": ("0.9",),
    "--weight-decay": ("0.0",),
    "--batch-group": ("4",),
    "--machines": ("1",),
    "--master-weights": (),
    "--fold-batch-norm": (),
    "--balance": ("",),
    "--balance-samples": ("32",),
}


@pytest.mark.parametrize("option", OF_H2LEARN)
def test_an_option_of_the_accelerator_for_cuda(option: str, files: Path) -> None:
    message = refusal(*CUDA, option, *OF_H2LEARN[option])
    want = f"{option}: error: meaningless with --target cuda\n  hint: leave out, or take --target h2learn\n"
    assert message == want
    assert os.listdir("out") == []


def test_options_of_another_target(files: Path, golden: Golden) -> None:
    cases = {
        "architecture for the accelerator": (*TARGET, "--arch", "sm_80"),
        "several": (*CUDA, "--momentum", "0.5", "--mode", "train", "--seed", "1"),
        "unknown architecture": (*CUDA, "--arch", "sm_81"),
    }
    golden("target.txt", messages(cases))


def test_every_option_belongs_to_a_target() -> None:
    from spikec.cli import compile_command

    parameters = set(signature(compile_command).parameters) - {"context"}
    of_h2learn = {option.removeprefix("--").replace("-", "_") for option in OF_H2LEARN}
    assert parameters == COMMON | CUDA_ONLY | of_h2learn


def test_parts_of_a_configuration(files: Path) -> None:
    Path("parts.toml").write_text('name = "x"\n')
    for part in ("backward", "clock_ghz", "tile", "weight_update"):
        assert f"{part} is missing" in refusal(*TARGET, "--config", "parts.toml")


def test_names(files: Path, golden: Golden) -> None:
    cases = {
        "unknown network": ("compile", "zoo:digits", *COMPILE),
        "unknown training data": ("compile", "zoo:digits-fc@nowhere", *COMPILE),
        "training data not named": ("compile", "zoo:digits-fc@", *COMPILE),
        "training data of another shape": ("compile", "zoo:cifar10@digits", *COMPILE),
        "no model": ("compile", "net", *COMPILE),
        "nothing": ("compile", "", *COMPILE),
        "unknown data": ("run", "net.h2l", "--data", "letters"),
    }
    golden("names.txt", messages(cases))


def test_data(files: Path, golden: Golden) -> None:
    x = np.zeros((3, 1, 8, 8), np.float32)
    for name, value in (("nan", np.nan), ("large", 1e6)):
        x[1, 0, 2, 3] = value
        np.savez(f"{name}.npz", x=x, y=np.zeros(3, np.int64))
    cases = {
        "more samples than there are": ("run", "net.h2l", *DIGITS, "361"),
        "negative samples": ("run", "net.h2l", *DIGITS, "-1"),
        "another shape": ("run", "net.h2l", "--data", "synthetic:3x32x32"),
        "a sequence": ("run", "net.h2l", "--data", "synthetic:10x1x8x8"),
        "no shape": ("run", "net.h2l", "--data", "synthetic:8"),
        "absent file": ("run", "net.h2l", "--data", "absent.npz"),
        "NaN in a sample": ("run", "net.h2l", "--data", "nan.npz"),
        "a sample that FP16 cannot hold": ("run", "net.h2l", "--data", "large.npz"),
    }
    golden("data.txt", messages(cases))


def with_value(value: float) -> dict[str, Array]:
    """Weights of the linear layer with one that is not finite, in a file that our own writer would refuse."""
    weight = np.zeros((10, 320), np.float32)
    weight[3, 5] = value
    return {"w3": weight}


def test_graphs(workplace: Path, golden: Golden) -> None:
    peak = np.zeros((5, 4, 3, 3), np.float32)
    peak[2, 0, 0, :] = 30000
    cases: dict[str, Callable[[Path], object]] = {
        "NaN weight": lambda path: damage(path, with_value(np.nan)),
        "infinite weight": lambda path: damage(path, with_value(-np.inf)),
        "weight beyond FP16": lambda path: saved(path, with_value(1e6)),
        "LUT entry beyond FP16": lambda path: saved(path, {"w2": peak}),
        "threshold 0": lambda path: saved(path, lif2={"threshold": 0.0}),
        "threshold below 0": lambda path: saved(path, lif2={"threshold": -0.5}),
        "threshold that FP16 flushes to 0": lambda path: saved(path, lif2={"threshold": 1e-9}),
        "threshold beyond FP16": lambda path: saved(path, lif2={"threshold": 1e9}),
        "delayed reset": lambda path: saved(path, lif1={"reset_delay": True, "reset": Reset.SOFT}),
    }
    lines = []
    for name, write in cases.items():
        write(Path("net.spk"))
        lines.append(messages({name: TARGET}))
    golden("graphs.txt", "\n".join(lines))


def damage(path: Path, weights: dict[str, Array]) -> None:
    """Change arrays of a file behind the graph's back."""
    saved(path)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    path.write_bytes(save(arrays | weights, metadata))


@pytest.mark.parametrize("engine", ["fast", "golden"])
def test_overflow_at_run_time(workplace: Path, engine: str, golden: Golden) -> None:
    """All four inputs of the second layer fire at every step: inside, 36 weights add up to x."""
    positive, negative = np.zeros((2, 5, 4, 3, 3), np.float32)
    positive[2] = 3000  # 9 taps x 4 channels x 3000 = 108000
    negative[4] = -1200  # -43200 a step, twice that at the second one: no spike, nothing leaks
    cases = {}
    for name, weight in (("partial", positive), ("membrane", negative)):
        saved(Path(f"{name}.spk"), {"w2": weight})
        assert spikec("compile", f"{name}.spk", "-o", f"{name}.h2l").code == 0
        cases[name] = ("run", f"{name}.h2l", *DIGITS, "2", "--engine", engine)
    golden("overflow.txt", messages(cases))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), suffix=st.sampled_from(["spk", "h2l"]))
def test_a_file_cut_anywhere_is_refused(
    tmp_path_factory: pytest.TempPathFactory, digits_program: Path, data: st.DataObject, suffix: str
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    whole = saved(folder / "net.spk").read_bytes() if suffix == "spk" else digits_program.read_bytes()
    path = folder / f"cut.{suffix}"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert f"{path}: error: is not a" in refusal("inspect", path)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), suffix=st.sampled_from(["spk", "h2l"]))
def test_a_changed_byte_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, digits_program: Path, data: st.DataObject, suffix: str
) -> None:
    folder = tmp_path_factory.mktemp("changed")
    content = bytearray(saved(folder / "net.spk").read_bytes() if suffix == "spk" else digits_program.read_bytes())
    header = int.from_bytes(content[:8], "little") + 8
    content[data.draw(st.integers(0, header - 1))] ^= data.draw(st.integers(1, 255))
    path = folder / f"changed.{suffix}"
    path.write_bytes(content)
    outcome = spikec("inspect", path)
    assert outcome.code == 0 or (outcome.code == 2 and outcome.out == "" and ": error: " in outcome.err)


@pytest.mark.parametrize("where", ["os.replace", "pathlib.Path.write_bytes"])
def test_a_full_disk_leaves_nothing(workplace: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    saved(Path("net.spk"))
    write = Path.write_bytes

    def full(path: str | Path, *_: object) -> int:
        if where != "os.replace":
            write(Path(path), b"the first half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(where, full)
    assert refusal(*TARGET) == "out/n.h2l: error: cannot be written: No space left on device\n"
    assert os.listdir("out") == []


def test_a_refused_compilation_keeps_the_old_program(workplace: Path) -> None:
    saved(Path("net.spk"))
    assert spikec(*TARGET).code == 0
    before = Path("out/n.h2l").read_bytes()
    saved(Path("net.spk"), with_value(1e6))
    refusal(*TARGET)
    assert os.listdir("out") == ["n.h2l"]
    assert Path("out/n.h2l").read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("compile", "zoo:digits-fc", "-o", f"{'n' * 300}.h2l"),
        ("run", f"{'n' * 300}.h2l", "--data", "digits"),
        ("explore", "zoo:digits-fc", "-o", f"{'n' * 300}.jsonl"),
        ("report", "zoo:digits-fc", "--html", f"{'n' * 300}.html"),
    ],
)
def test_names_that_no_file_system_takes(arguments: tuple[str, ...]) -> None:
    assert "name too long" in refusal(*arguments)
