"""What the Backward Engine does for tiles of which only densities are known: masks drawn at random."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from hwmodel.config import H2LearnConfig, Synchronise
from hwmodel.errors import CompileError, Loc
from hwmodel.isa import GradConvTile
from hwmodel.timing.masked_tiles import F64, Mask, counts_by_image, mask_counts, output_groups, source_size, window_sums
from hwmodel.timing.tiles import TileCounts

ITERATIONS_PER_SAMPLE = 8  # an iteration averages over its own tiles, so that a pool needs fewer of them
FIRST = 1 << 15  # the least `top` and `left` of an instruction


@dataclass(frozen=True, slots=True, kw_only=True)
class Density:
    """The part of ones in the masks of a layer's gradient: 1 - sparsity of table 3.2.

    inputs: of the gradients that arrive, equation 3.2. outputs: of the spike gradients that are wanted, equation 3.1.
    """

    inputs: float
    outputs: float


@dataclass(frozen=True, slots=True)
class SampledTiles:
    """Random masks of given densities, by the layer number of the instructions.

    The elements of a mask are drawn independently. With `spread` c the density of each channel of a tile is itself
    drawn, from the beta distribution of alpha = p * c and beta = (1 - p) * c: the less c, the more channels differ.
    Each shape of tile has a pool of `samples_per_shape` tiles from which an instruction draws its own, so that all
    follows from seed, shape, densities and position. Where PEs run on from tile to tile the pool holds whole
    iterations, whose channels keep their density. The halo is drawn as the rest: no zeros at the rim of the map.
    Raises: CompileError for a layer without densities, or a number out of range.
    """

    config: H2LearnConfig
    densities: Mapping[int, Density]
    seed: int
    samples_per_shape: int = 64
    spread: float | None = None
    _pools: dict[_Key, _Pool] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for layer, density in self.densities.items():
            if not (0 <= density.inputs <= 1 and 0 <= density.outputs <= 1):
                raise CompileError(
                    f"layer {layer} has densities {density.inputs} and {density.outputs}, must be from 0 to 1",
                    Loc("densities"),
                    hint="a density is 1 - sparsity",
                )
        if self.spread is not None and not self.spread > 0:
            raise CompileError(f"the spread is {self.spread}, must be positive", Loc("densities"))
        if self.samples_per_shape < 1:
            raise CompileError(f"{self.samples_per_shape} samples per shape, must be at least 1", Loc("densities"))

    def counts(self, tile: GradConvTile, position: int) -> TileCounts:
        """The work of tiles drawn for this place in the stream."""
        density = self.densities.get(tile.layer)
        if density is None:
            known = ", ".join(map(str, sorted(self.densities))) or "none"
            raise CompileError(f"layer {tile.layer} has no densities, those given are {known}", Loc("densities"))
        images = tile.nt * tile.nn
        by_iteration = self._by_iteration()
        key = (_numbers(tile), images if by_iteration else 1, density)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pool(tile, key)
            self._pools[key] = pool
        rng = np.random.default_rng([pool.seed, position])
        drawn = pool.counts[rng.integers(len(pool.counts), size=1 if by_iteration else images)].sum(axis=0)
        cycles, macs, outputs, pe_cycles = drawn.tolist()
        return TileCounts(cycles=cycles, macs=macs, outputs=outputs, pe_cycles=pe_cycles)

    def _pool(self, tile: GradConvTile, key: _Key) -> _Pool:
        numbers, images, density = key
        sequence = np.random.SeedSequence([self.seed, *numbers, images, *_bits(density.inputs, density.outputs)])
        rng = np.random.default_rng(sequence)
        if self._by_iteration():
            samples = -(-self.samples_per_shape // ITERATIONS_PER_SAMPLE)
            counts = np.array([self._iteration(tile, density, rng) for _ in range(samples)])
        else:
            tiles = replace(tile, nt=1, nn=self.samples_per_shape)
            inputs, outputs = self._masks(tiles, density, rng, self.samples_per_shape)
            sums, groups = window_sums(inputs, tiles, self.config), output_groups(outputs, tiles, self.config)
            counts = counts_by_image(sums, groups, self.samples_per_shape)
            counts[:, 0] += self.config.backward.pipe
        return _Pool(counts=counts, seed=int(sequence.generate_state(1, np.uint64)[0]))

    def _by_iteration(self) -> bool:
        """Whether the tiles of an iteration depend on each other."""
        backward = self.config.backward
        return backward.synchronise is Synchronise.ITERATION or backward.run_ahead > 0

    def _iteration(self, tile: GradConvTile, density: Density, rng: np.random.Generator) -> tuple[float, ...]:
        found = mask_counts(*self._masks(tile, density, rng, 1), tile, self.config)
        return found.cycles, found.macs, found.outputs, found.pe_cycles

    def _masks(
        self, tile: GradConvTile, density: Density, rng: np.random.Generator, draws: int
    ) -> tuple[Mask, Mask | None]:
        """Masks of all tiles; the densities of channels are drawn anew for each tile, or once for all."""
        images = tile.nt * tile.nn
        height = source_size(tile.h, tile.top, tile.stride_h)
        width = source_size(tile.w, tile.left, tile.stride_w)
        inputs = self._mask((images, height, width, tile.rows), density.inputs, rng, draws)
        if not tile.out_sparsity:
            return inputs, None
        return inputs, self._mask((images, tile.h, tile.w, tile.cols), density.outputs, rng, draws)

    def _mask(self, shape: tuple[int, ...], density: float, rng: np.random.Generator, draws: int) -> Mask:
        by_channel: float | F64 = density
        if self.spread is not None and 0 < density < 1:
            alpha, beta = density * self.spread, (1 - density) * self.spread
            by_channel = rng.beta(alpha, beta, (draws, 1, 1, shape[-1]))
        drawn: npt.NDArray[np.bool_] = rng.random(shape) < by_channel
        return drawn


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pool:
    """Counts of tiles (or of iterations), pipeline fills included, and what the draws from it begin with.

    Shapes: counts (samples, 4) in the order of `TileCounts`.
    """

    counts: F64
    seed: int


_Key = tuple[tuple[int, ...], int, Density]  # the shape of a tile, tiles that are drawn together


def _numbers(tile: GradConvTile) -> tuple[int, ...]:
    """What the counts of a tile depend on; the first taps, which may be negative, from 0."""
    kernel = (tile.kernel_h, tile.kernel_w, tile.stride_h, tile.stride_w)
    return (*kernel, tile.h, tile.w, tile.top + FIRST, tile.left + FIRST, tile.rows, tile.cols, int(tile.out_sparsity))


def _bits(*values: float) -> list[int]:
    return [int(bits) for bits in np.array(values, np.float64).view(np.uint64)]
