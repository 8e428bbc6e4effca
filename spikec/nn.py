"""Neuron modules for PyTorch networks: `spikec.nn.LIF` and `spikec.nn.LI`."""

from compiler.ir import Compare, Reset, Surrogate, SurrogateKind
from frontends.nn import LI, LIF, set_timesteps

__all__ = ["LI", "LIF", "Compare", "Reset", "Surrogate", "SurrogateKind", "set_timesteps"]
