"""The package as a user's Python sees it: its public names, what it imports and when, whose names it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import spikec
import spikec.nn
from frontends.nn import LIF
from tests.spikec.graphs import saved

ROOT = Path(__file__).parents[2]
PACKAGES = ("hwmodel", "compiler", "frontends", "runtime")
HEAVY = ("torch", "tvm", "numpy", "scipy", "sklearn", "networkx", "safetensors", "rich.table", "compiler", "runtime")


def python(code: str, *arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, as if this repository were installed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("FORCE_COLOR", None)
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def console_script(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`spikec` as its console script runs it."""
    return python("from spikec.cli import main; main()", *arguments, folder=folder)


def test_every_public_name_resolves() -> None:
    assert sorted(spikec.__all__) == spikec.__all__
    for name in spikec.__all__:
        assert getattr(spikec, name).__name__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        spikec.nothing  # noqa: B018  # the access is the test


def test_names_come_late() -> None:
    code = "import sys, spikec; print('torch' in sys.modules); spikec.nn.LIF; print('torch' in sys.modules)"
    assert python(code).stdout.split() == ["False", "True"]


def test_the_neuron_module_spikes() -> None:
    assert spikec.nn.LIF is LIF
    spikes = spikec.nn.LIF(decay=0.5, threshold=1.0)(torch.tensor([[[0.75]], [[0.75]], [[0.75]]]))
    # m: 0.75; 0.375 + 0.75 = 1.125 fires and resets; 0.75
    assert spikes.flatten().tolist() == [0, 1, 0]


def test_help_imports_nothing_heavy() -> None:
    code = "import json, sys, spikec.cli; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(python(code).stdout)
    assert "spikec.cli" in loaded
    assert [name for name in loaded if name.startswith(HEAVY)] == []


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("is_folder", [True, False])
def test_a_package_that_takes_our_name_is_named(tmp_path: Path, name: str, is_folder: bool) -> None:
    taken = tmp_path / name / "__init__.py" if is_folder else tmp_path / f"{name}.py"
    taken.parent.mkdir(exist_ok=True)
    taken.write_text("")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import spikec"
    last = python(code).stderr.strip().splitlines()[-1]
    assert last == (
        f"ImportError: spikec needs its own package {name!r}, but that name is taken by {taken.resolve()}; "
        "install spikec into an environment of its own"
    )


def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(ImportError, match="own package 'no_such_package', but it cannot be imported"):
        spikec.check_package_names(ROOT, ("hwmodel", "no_such_package"))


def test_bad_input_at_the_console(tmp_path: Path) -> None:
    """As a user sees it, with whatever libraries write to stderr by themselves."""
    saved(tmp_path / "net.spk")
    done = console_script("compile", "net.spk", "-o", "nowhere/n.h2l", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "nowhere/n.h2l: error: the folder nowhere does not exist\n  hint: create it first\n"


def test_a_forward_that_fails_is_one_message_at_the_console(tmp_path: Path) -> None:
    text = "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(5, 3))\n"
    (tmp_path / "nets.py").write_text(text)
    done = console_script("compile", "nets:net", "-o", "n.h2l", "--input-shape", "1x2x3", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("net: error: torch.export cannot trace the network: RuntimeError: ")
    assert len(done.stderr.splitlines()) == 1


def test_json_at_the_console_when_stderr_is_a_terminal(tmp_path: Path) -> None:
    saved(tmp_path / "net.spk")
    main_end, terminal = os.openpty()
    code = "import json, sys; from spikec.cli import main; assert sys.stderr.isatty(); main()"
    with os.fdopen(terminal, "wb") as stderr, os.fdopen(main_end, "rb"):
        done = subprocess.run(
            [sys.executable, "-c", code, "compile", "net.spk", "-o", "n.h2l", "--json"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            check=True,
        )
    assert json.loads(done.stdout)["program"] == "n.h2l"
