"""From continuous input gradients to changes of binary spikes that leave them binary.

Source: sections 5.2.3 and 5.2.4.
"""

from __future__ import annotations

from torch import Tensor


def vanishes(gradient: Tensor) -> Tensor:
    """Per sample, whether its gradient is zero everywhere. Shapes: (T, N, ...) -> (N,)."""
    return ~(gradient != 0).transpose(0, 1).flatten(1).any(1)


def normalised(gradient: Tensor) -> Tensor:
    """|g| over the largest of its sample, over all steps, channels and positions; 0 where the sample's is 0.

    Shapes: (T, N, ...), values in [0, 1].
    Source: section 5.2.3, norm(|g|) of equation 5.5.
    """
    size = gradient.abs()
    largest = size.transpose(0, 1).flatten(1).amax(1).reshape(1, -1, *(1,) * (gradient.ndim - 2))
    return size / largest.where(largest > 0, largest.new_ones(()))


def sampling_mask(gradient: Tensor, draws: Tensor) -> Tensor:
    """Which elements pass: each with the probability norm(|g|), so that the largest always does.

    draws: uniform in [0, 1).
    Shapes: all (T, N, ...), boolean.
    Source: equation 5.5.
    """
    return draws < normalised(gradient)


def transformed(sign: Tensor, spikes: Tensor) -> Tensor:
    """The ternary gradient without what would leave {0, 1}: +1 falls on 0 alone, -1 on 1 alone.

    Shapes: all (T, N, ...); values -1, 0, 1.
    Source: table 5.2.
    """
    return sign.clamp(min=0) * (1 - spikes) + sign.clamp(max=0) * spikes


def constructed(mask: Tensor, spikes: Tensor) -> Tensor:
    """The ternary gradient that flips each chosen spike: +1 on 0, -1 on 1.

    Shapes: all (T, N, ...); values -1, 0, 1.
    Source: table 5.4, equation 5.8.
    """
    return mask.to(spikes.dtype) * (1 - 2 * spikes)


def spike_gradient(gradient: Tensor, spikes: Tensor, draws: Tensor | None) -> Tensor:
    """The gradient-to-spike converter: probabilistic sampling, sign, overflow-aware transformation.

    draws: uniform in [0, 1); None leaves the sampling out.
    Shapes: all (T, N, ...); values -1, 0, 1.
    Source: equation 5.7.
    """
    sign = gradient.sign()
    if draws is not None:
        sign = sign * sampling_mask(gradient, draws)
    return transformed(sign, spikes)


def flipped(spikes: Tensor, draws: Tensor, gamma: float) -> Tensor:
    """The restricted spike flipper: each spike changes with the probability gamma.

    Shapes: all (T, N, ...); values -1, 0, 1.
    Source: section 5.2.4.
    """
    return constructed(draws < gamma, spikes)
