"""Each example runs, and says what it promises."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PROMISES = {
    "own_network.py": "predictions that agree with PyTorch: 1.00",
    "train_own_network.py": "learned something: True",
    "fuse_own_network.py": "learned something: True",
    "attack_own_network.py": "examples that do not fool SpikingJelly itself: 0 of",
    "spikingjelly_network.py": "spikes of SpikingJelly and of the graph that differ: 0",
    "snntorch_to_onnx.py": "differ from the graph's: 0\nthe file gives the same graph back: True",
}
NEEDS = {
    "attack_own_network.py": ("spikingjelly",),
    "spikingjelly_network.py": ("spikingjelly",),
    "snntorch_to_onnx.py": ("snntorch", "onnx", "onnxruntime"),
}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_example_runs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in NEEDS.get(path.name, ()):
        pytest.importorskip(package)
    runpy.run_path(str(path), run_name="__main__")
    assert PROMISES[path.name] in capsys.readouterr().out
