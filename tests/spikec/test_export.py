"""`spikec export`: networks as files of other programs."""

from __future__ import annotations

from pathlib import Path

import nir
import pytest

from compiler.ir import CompileError
from frontends.from_nir import load_nir
from spikec.models import load_model
from tests.golden import Golden
from tests.spikec.command import refusal, result, spikec
from tests.spikec.graphs import saved, small_graph


def test_a_nir_file(workplace: Path) -> None:
    saved(Path("net.spk"))
    told = result("export", "net.spk", "-o", "net.nir", "--dt", "1e-3")
    assert told["graph"] == "small"
    assert told["file_bytes"] == Path("net.nir").stat().st_size
    assert {"encode", "lif1", "rate"} <= {finding["place"] for finding in told["findings"]}
    assert load_nir(Path("net.nir")).graph == small_graph()
    assert nir.read(Path("net.nir")).nodes["lif1"].tau.flat[0] == 2e-3


def test_the_table(workplace: Path, golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    saved(Path("net.spk"))
    outcome = spikec("export", "net.spk", "-o", "net.nir")
    assert (outcome.code, outcome.err) == (0, "")
    findings, _, summary = outcome.out.partition("\nnet.nir ")
    golden("export_table.txt", findings)
    assert f"{Path('net.nir').stat().st_size:,}" in summary


def test_batch_norms_are_folded_where_it_is_asked(workplace: Path) -> None:
    assert "--fold-batch-norm" in refusal("export", "zoo:digits-conv", "-o", "out/net.nir")
    assert list(Path("out").iterdir()) == []
    result("export", "zoo:digits-conv", "-o", "out/net.nir", "--fold-batch-norm")
    assert load_model("out/net.nir").graph.timesteps == 10


def test_another_number_of_steps(workplace: Path) -> None:
    saved(Path("net.spk"))
    result("export", "net.spk", "-o", "net.nir", "--timesteps", "9")
    assert load_model("net.nir").graph.timesteps == 9


def test_what_is_refused(workplace: Path, golden: Golden) -> None:
    saved(Path("net.spk"))
    cases = {
        "another ending": ("export", "net.spk", "-o", "net.h5"),
        "dt of ONNX": ("export", "net.spk", "-o", "net.onnx", "--dt", "1e-3"),
        "dt 0": ("export", "net.spk", "-o", "net.nir", "--dt", "0"),
        "a batch norm": ("export", "zoo:digits-conv", "-o", "net.nir"),
        "no folder": ("export", "net.spk", "-o", "absent/net.nir"),
        "no network": ("export", "absent.spk", "-o", "net.nir"),
    }
    golden("export_refusals.txt", "\n".join(f"{name}:\n{refusal(*case)}" for name, case in cases.items()))
    assert not Path("net.nir").exists()


def test_a_folder_in_its_place(workplace: Path) -> None:
    saved(Path("net.spk"))
    Path("net.nir").mkdir()
    assert "is a folder" in refusal("export", "net.spk", "-o", "net.nir")
    with pytest.raises(CompileError, match="is a folder"):
        load_model("net.nir")
