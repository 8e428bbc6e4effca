"""Decides which engine runs a layer."""

from __future__ import annotations

from compiler.h2learn.layers import NetworkLayer
from hwmodel.isa import Queue


def assign_engine(layer: NetworkLayer) -> Queue:
    """Weights on real values go to the Backward Engine, which multiplies; all else to the Forward Engine.

    Pooling from memory runs in the Forward Engine's Soma. Source: section 3.2.4 (the encoding layer).
    """
    return Queue.BE if layer.real and layer.synapse is not None else Queue.FE
