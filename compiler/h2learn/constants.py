"""Lays weights and neuron parameters out in external memory, in the one order that all engines read boxes of."""

from __future__ import annotations

import numpy as np

from compiler.h2learn.quantise import F16, Quantised


def weight_values(constants: Quantised) -> F16:
    """Weights as (kernel position, input channel of the group, output channel); a linear layer has one position.

    Shapes: (O, C / groups, kh, kw) -> (kh * kw, C / groups, O).
    """
    assert constants.weights is not None
    out, channels, height, width = constants.weights.shape
    return np.ascontiguousarray(constants.weights.transpose(2, 3, 1, 0).reshape(height * width, channels, out))


def neuron_values(constants: Quantised) -> F16:
    """The parameter tables of the Soma's stages. Shapes: (stages, fields, C)."""
    return np.stack([stage.table for stage in constants.stages])
