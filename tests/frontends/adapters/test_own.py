"""What is read of spikec's own neurons; that they compute what their ops say is tested beside the modules."""

from __future__ import annotations

import torch
from torch import nn

from compiler.ir import Compare, Reset, Surrogate, SurrogateKind
from frontends.nn import LI, LIF
from frontends.torch_import.adapters import read_neuron
from tests.golden import Golden

MODULES: dict[str, nn.Module] = {
    "LIF": LIF(),
    "LIF, one decay a channel": LIF(decay=torch.tensor([0.25, 0.75]), timesteps=4),
    "LIF, everything": LIF(
        decay=0.5,
        threshold=1.0,
        input_scale=0.5,
        leak_bias=0.125,
        reset=Reset.SOFT,
        reset_delay=True,
        compare=Compare.GT,
        initial=0.25,
        surrogate=Surrogate(kind=SurrogateKind.ATAN, width=2.0, offset=0.5),
    ),
    "LIF, no gradient": LIF(reset_value=-1.0, surrogate=Surrogate(scale=0.0)),
    "LI": LI(decay=0.9, input_scale=0.1),
}


def test_texts(golden: Golden) -> None:
    lines = []
    for what, module in MODULES.items():
        read = read_neuron("net.lif", module, 4)
        assert read is not None
        assert not read.assumed
        lines += [f"[{what}]", *read.read]
    golden("own.txt", "\n".join(lines) + "\n")
