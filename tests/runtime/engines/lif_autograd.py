"""The networks that a Grad unit walks backwards, as differentiable torch functions on numbers exact in FP16."""

from __future__ import annotations

import numpy as np
import torch

from runtime.engines import GradNeuron, KeptStage, Param, Pool, PoolKind, Reset


class Fire(torch.autograd.Function):
    """Heaviside step with a rectangular surrogate. Source: equations 2.1 and 2.6."""

    @staticmethod
    def forward(ctx, m, threshold, low, high, eta):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(m, low, high)
        ctx.eta = eta
        return (m >= threshold).double()

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        m, low, high = ctx.saved_tensors
        return gradient * ctx.eta * ((low < m) & (m < high)), None, None, None, None


def lif(currents: torch.Tensor, neuron: GradNeuron, params: torch.Tensor) -> tuple[torch.Tensor, KeptStage]:
    """A neuron over all steps, differentiable, and what the backward pass keeps of it. Shapes: (T, N, c, h, w)."""
    decay, threshold, reset, low, high, scale = (
        params[row].reshape(-1, 1, 1)
        for row in (Param.DECAY, Param.THRESHOLD, Param.RESET_VALUE, Param.TH_L, Param.TH_R, Param.SCALE)
    )
    v, outputs, membranes = torch.zeros_like(currents[0]), [], []
    for x in currents:
        m = decay * v + (x * scale if neuron.has_scale else x)
        membranes.append(m.detach())
        if not neuron.fire:
            outputs.append(v := m)
            continue
        s = Fire.apply(m, threshold, low, high, neuron.eta)
        outputs.append(s)
        gate = s.detach() if neuron.detach else s
        match neuron.reset:
            case Reset.HARD:
                v = m * (1 - gate) + reset * gate
            case Reset.SOFT:
                v = m - threshold * gate
            case Reset.NONE:
                v = m
    membrane = torch.stack(membranes)
    mask = (low < membrane) & (membrane < high)
    kept = KeptStage(
        spikes=channels_last(torch.stack(outputs)).astype(np.uint8) if neuron.fire else None,
        mask=channels_last(mask).astype(np.uint8) if neuron.fire else None,
        membrane=channels_last(torch.where(mask, membrane, 0)).astype(np.float16),
    )
    return torch.stack(outputs), kept


def channels_last(values: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.detach().numpy().transpose(0, 1, 3, 4, 2))


def pooled(values: torch.Tensor, pool: Pool | None) -> torch.Tensor:
    if pool is None:
        return values
    torch_pool = torch.nn.functional.avg_pool2d if pool.kind is PoolKind.AVG else torch.nn.functional.max_pool2d
    maps = torch_pool(values.flatten(0, 1), (pool.kernel_h, pool.kernel_w))
    return maps.unflatten(0, values.shape[:2])


def table(seed: int, channels: int) -> np.ndarray:
    """Parameters on a grid of halves, decay 1/2, scales powers of two."""
    rng = np.random.default_rng(seed)
    params = np.zeros((9, channels))
    params[Param.DECAY], params[Param.THRESHOLD] = 0.5, 1.0
    params[Param.SCALE] = 2.0 ** rng.integers(-1, 2, channels)
    params[Param.RESET_VALUE] = rng.integers(-1, 2, channels) / 2
    params[Param.TH_L], params[Param.TH_R] = 0.25, 1.75
    return params


def currents_to(membranes: np.ndarray, neuron: GradNeuron, params: np.ndarray) -> np.ndarray:
    """Inputs that lead a neuron along given membrane potentials. Shapes: (T, N, c, h, w)."""
    column = {row: params[row].reshape(-1, 1, 1) for row in Param}
    v, currents = np.zeros_like(membranes[0]), []
    for m in membranes:
        x = m - column[Param.DECAY] * v
        currents.append(x / column[Param.SCALE] if neuron.has_scale else x)
        fired = (m >= column[Param.THRESHOLD]) & neuron.fire
        after = {Reset.HARD: column[Param.RESET_VALUE], Reset.SOFT: m - column[Param.THRESHOLD], Reset.NONE: m}
        v = np.where(fired, after[neuron.reset], m)
    return np.stack(currents)


def spread(currents: np.ndarray, pool: Pool, rng: np.random.Generator) -> np.ndarray:
    """Maps that are pooled to the currents: two values apart around an average, or nothing above a maximum."""
    shape = (*currents.shape[:3], currents.shape[3], 2, currents.shape[4], 2)
    wide = np.broadcast_to(currents[:, :, :, :, None, :, None], shape)
    offsets = np.zeros(shape)
    if pool.kind is PoolKind.AVG:
        offsets[..., 0, :, :] = rng.integers(1, 3, offsets[..., 0, :, :].shape)
        offsets[..., 1, :, :] = -offsets[..., 0, :, :]
    else:
        offsets[...] = -rng.integers(0, 3, shape)
        offsets[..., 1, :, 0] = 0
    return (wide + offsets).reshape(*currents.shape[:3], 2 * currents.shape[3], 2 * currents.shape[4])
