"""What goes into a population at each step, and its numbers as fields of an op."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, fx

from compiler.ir import Number, Param
from frontends.torch_import.recurrence.polynomial import Atom, Coefficient, Kind, Polynomial, coefficient, same
from frontends.torch_import.recurrence.proof import Drive
from frontends.torch_import.recurrence.reading import Equations

Drives = tuple[Coefficient, tuple[Drive, ...]]


def driven(equations: Equations, holders: Mapping[Atom, fx.Node], terms: Sequence[Polynomial]) -> Drives | None:
    """The factor b and the nodes with terms[t] = b * node[t]; sums that no node holds are put together.

    holders: the nodes of other populations' spikes.
    None: the factor is not the same at each step.
    """
    return _held(equations, terms) or _summed(equations, holders, terms)


def _held(equations: Equations, terms: Sequence[Polynomial]) -> Drives | None:
    by_atoms: dict[frozenset[frozenset[Atom]], list[tuple[fx.Node, Polynomial]]] = {}
    for node, polynomial in equations.polynomials.items():
        by_atoms.setdefault(frozenset(polynomial.terms), []).append((node, polynomial))
    found = []
    for wanted in terms:
        candidates = by_atoms.get(frozenset(wanted.terms), [])
        ratios = [(node, wanted.ratio(polynomial)) for node, polynomial in candidates]
        found.append([(node, ratio) for node, ratio in ratios if ratio is not None])
    if not all(found):
        return None
    # In the first step, which starts from zeros, the sum that later steps take holds the same as its one term.
    kind = found[-1][0][0].target
    chosen = [next((pair for pair in pairs if pair[0].target == kind), pairs[0]) for pairs in found]
    factor = chosen[0][1]
    if not all(same(ratio, factor) for _, ratio in chosen):
        return None
    return factor, tuple(Drive(((node, 1.0),)) for node, _ in chosen)


def _summed(equations: Equations, holders: Mapping[Atom, fx.Node], terms: Sequence[Polynomial]) -> Drives | None:
    drives = []
    scale = next(iter(terms[0].terms.values()))
    for wanted in terms:
        parts = []
        for monomial, value in wanted.terms.items():
            (atom,) = monomial
            ratio = value / scale if scale.all() else value
            node = equations.values[atom.index] if atom.kind is Kind.VALUE else holders[atom]
            factor = 1.0 if same(ratio, np.ones(())) else short(ratio)
            if factor is None:
                return None
            parts.append((node, factor))
        drives.append(Drive(tuple(parts)))
    factors = {tuple(factor for _, factor in drive.parts) for drive in drives}
    return (scale, tuple(drives)) if len(factors) == 1 and scale.all() else None


def short(value: Coefficient) -> float | None:
    """The shortest decimal that is the same number in f32; None for more than one number."""
    rounded = coefficient(value.astype(np.float32))
    return float(str(np.float32(rounded))) if rounded.ndim == 0 else None


def field(name: str, value: Coefficient, shape: tuple[int, ...], arrays: dict[str, Tensor]) -> Number | None:
    """A number of an op: one, or one per channel, which goes to `arrays`; None where it differs within a channel.

    Shapes: shape (N, C, ...).
    """
    single = short(value)
    if single is not None:
        return single
    whole = np.broadcast_to(value, shape)
    channels = whole.reshape(shape[0], shape[1], -1)[0, :, 0]
    if not bool((whole == channels.reshape(1, -1, *(1,) * (len(shape) - 2))).all()):
        return None
    arrays[name] = torch.from_numpy(channels.astype(np.float32))
    return Param(name)
