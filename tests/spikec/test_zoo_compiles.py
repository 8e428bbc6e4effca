"""Every network of the dissertation's tables compiles, at its own number of time steps."""

from __future__ import annotations

import pytest

from compiler.h2learn.compile import compile_inference
from compiler.ir import CompileError
from frontends.zoo import entry, names
from hwmodel.config import load_config
from spikec.models import load_model

LARGE = ("imagenet", "alexnet", "attack-image-cifar10", "attack-spike-cifar10dvs", "cifar10dvs", "attack-image-mnist")
RESIDUAL = ("resnet34",)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in LARGE else ()) for n in names() if n not in RESIDUAL]
)
def test_network_compiles(name: str) -> None:
    """The checker runs inside the compiler: a program that comes out is proved valid."""
    model = load_model(f"zoo:{name}", timesteps=entry(name).timesteps)
    program = compile_inference(model.graph, load_config("h2learn")).program
    assert program.timesteps == entry(name).timesteps
    weighted = [layer for layer in program.layers if layer.kind != "pool"]
    notation = [word for word in entry(name).notation.split("-") if not word.startswith("AP")]
    assert len(weighted) == len(notation)


@pytest.mark.slow
def test_residual_network_is_refused() -> None:
    with pytest.raises(CompileError, match="H2Learn has no unit for a residual sum"):
        compile_inference(load_model("zoo:resnet34").graph, load_config("h2learn"))
