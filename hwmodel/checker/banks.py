"""Checks what stands in the on-chip banks: sizes, shapes and formats that each instruction needs."""

from __future__ import annotations

from dataclasses import dataclass

from hwmodel.isa import (
    ENGINE_BUFFERS,
    NEURON_FIELDS,
    Buffer,
    ConvTile,
    EngineBuffers,
    FcTile,
    Load,
    LutMode,
    LutProgram,
    Part,
    PoolKind,
    PoolSetup,
    Queue,
    Soma,
)
from hwmodel.program import Format, Program


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Shape and format of a bank's content: (nt, nn, h, w, channels)."""

    format: Format
    nt: int
    nn: int
    h: int
    w: int
    nc: int
    flat: bool = False

    @property
    def size_bytes(self) -> int:
        """Bytes in the bank."""
        elements = self.nt * self.nn * self.h * self.w * self.nc
        return -(-elements // 8) if self.format is Format.S1 else 2 * elements

    def __str__(self) -> str:
        return f"{self.format} ({self.nt}, {self.nn}, {self.h}, {self.w}, {self.nc})"


Place = tuple[Buffer, int]  # a buffer, and bank + 2 * part


def part_of(buffer: Buffer, bank: int, part: int) -> Place:
    """A part of a bank."""
    return buffer, bank + 2 * part


def name_of(place: Place | tuple[str, int]) -> str:
    """A bank, or a part of one, as a report names it."""
    part = f"part {place[1] // 2} of " if place[1] > 1 else ""
    return f"{part}bank {place[1] % 2} of {place[0]}"


class BankError(Exception):
    """What an instruction needs and does not find; turned into one line of the checker's report."""


class BankRules:
    """Effects of engine instructions on the banks; raises BankError where a need is not met."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._config = program.config
        self.contents: dict[Place, Content] = {}
        self.unread: set[Place] = set()  # banks written and not yet read
        self._lut: LutProgram | None = None
        self._pools: dict[tuple[Queue, int], PoolSetup] = {}

    def put(self, place: Place, content: Content) -> None:
        """Fill a bank."""
        most = self._config.bank_bytes(place[0])
        if content.size_bytes > most:
            raise BankError(f"{content} is {content.size_bytes} bytes, a bank of {place[0]} holds {most}")
        others = [p for p in self.unread if p[0] is place[0] and (p[1] - place[1]) % 2 == 0 and p != place]
        total = content.size_bytes + sum(self.contents[p].size_bytes for p in others)
        if others and total > most:
            raise BankError(f"{content} and other parts are {total} bytes, a bank of {place[0]} holds {most}")
        if place in self.unread:
            raise BankError(f"overwrites {name_of(place)}, which nothing has read")
        self.contents[place] = content
        self.unread.add(place)

    def need(self, place: Place) -> Content:
        """The content of a bank that must have one, now read."""
        if place not in self.contents:
            raise BankError(f"reads {name_of(place)}, which nothing was written to")
        self.unread.discard(place)
        return self.contents[place]

    def load(self, load: Load) -> None:
        """The bank after a DMA load."""
        tensor = self._program.tensors[load.tensor]
        h, w = (1, 1) if load.flat else (load.h, load.w)
        content = Content(format=tensor.format, nt=load.nt, nn=load.nn, h=h, w=w, nc=load.nc, flat=load.flat)
        self.put(part_of(load.buffer, load.bank, load.part), content)

    def lut_program(self, program: LutProgram) -> None:
        """The sub-LUTs after programming."""
        forward = self._config.forward
        limit(program.rows, forward.rows, "rows")
        limit(program.cols, forward.cols, "cols")
        weights = self.need((Buffer.W, program.w_bank))
        if program.mode is LutMode.FC:
            limit(program.groups, forward.lut_entries, "groups")
            limit(program.inputs, program.groups * program.rows * forward.sub_luts, "inputs")
            self.weights(weights, 1, program.inputs, program.cols)
        else:
            pieces = -(-program.taps // forward.taps_per_pe)
            if program.first_piece + program.rows > program.inputs * pieces:
                last = program.first_piece + program.rows
                raise BankError(f"takes pieces up to {last} of {program.inputs * pieces} that the inputs have")
            self.weights(weights, program.taps, program.inputs, program.cols)
        self._lut = program

    def conv_tile(self, queue: Queue, tile: ConvTile) -> None:
        """Source, weights and partial sums of a convolution's grid iteration."""
        banks = ENGINE_BUFFERS[queue]
        source = self.need((banks.source, tile.src_bank))
        kernel_rows = tile.tap_rows if queue is Queue.BE else tile.kernel_h
        region = ((tile.h - 1) * tile.stride_h + kernel_rows, (tile.w - 1) * tile.stride_w + tile.kernel_w)
        steps = 1 if tile.hold else tile.nt
        self._hold(queue, tile)
        limit(tile.h, self._config.tile.h, "rows of a tile")
        limit(tile.w, self._config.tile.w, "columns of a tile")
        if (source.h, source.w) != region or (source.nt, source.nn) != (steps, tile.nn) or source.flat:
            raise BankError(f"needs a region {region} of {steps} steps and {tile.nn} samples, finds {source}")
        if queue is Queue.BE:
            self._dense_conv(tile, source, banks)
        else:
            self._lut_conv(tile, source)
        self._accumulate(banks, tile, steps, tile.h, tile.w)

    def _lut_conv(self, tile: ConvTile, source: Content) -> None:
        pieces = -(-tile.kernel_h * tile.kernel_w // self._config.forward.taps_per_pe)
        channels = (tile.first_piece + tile.rows - 1) // pieces + 1
        if source.format is not Format.S1 or source.nc != channels:
            raise BankError(f"needs spikes of {channels} channels, finds {source}")
        if self._lut is None or self._lut.mode is not LutMode.CONV:
            raise BankError("the LUTs are not programmed for a convolution")
        if (self._lut.rows, self._lut.cols) != (tile.rows, tile.cols):
            raise BankError(f"the LUTs hold {self._lut.rows} x {self._lut.cols} PEs, not {tile.rows} x {tile.cols}")
        if (self._lut.taps, self._lut.first_piece) != (tile.kernel_h * tile.kernel_w, tile.first_piece):
            raise BankError(f"the LUTs hold taps from piece {self._lut.first_piece} of {self._lut.taps}")

    def _dense_conv(self, tile: ConvTile, source: Content, banks: EngineBuffers) -> None:
        backward = self._config.backward
        limit(tile.rows, backward.rows, "rows")
        limit(tile.cols, backward.cols, "cols")
        if tile.tap_row0 + tile.tap_rows > tile.kernel_h or tile.tap_rows < 1:
            raise BankError(f"kernel rows {tile.tap_row0} to {tile.tap_row0 + tile.tap_rows} of {tile.kernel_h}")
        if source.format is not Format.FP16 or source.nc != tile.rows:
            raise BankError(f"needs real values of {tile.rows} channels, finds {source}")
        weights = self.need((banks.weights, tile.w_bank))
        self.weights(weights, tile.tap_rows * tile.kernel_w, tile.rows, tile.cols)
        limit(2 * source.h * source.w, backward.pe_tile_bytes // 2, "bytes of a PE's tile")
        limit(2 * tile.h * tile.w, backward.pe_psum_bytes * backward.pe_group, "bytes of partial sums")

    def fc_tile(self, queue: Queue, tile: FcTile) -> None:
        """Source, weights and partial sums of a linear layer's grid iteration."""
        banks = ENGINE_BUFFERS[queue]
        source = self.need((banks.source, tile.src_bank))
        steps = 1 if tile.hold else tile.nt
        self._hold(queue, tile)
        if not source.flat or (source.nt, source.nn, source.nc) != (steps, tile.nn, tile.inputs):
            raise BankError(f"needs {tile.inputs} inputs of {steps} steps and {tile.nn} samples, finds {source}")
        if queue is Queue.BE:
            backward = self._config.backward
            limit(tile.inputs, backward.rows, "inputs")
            limit(tile.cols, backward.cols, "cols")
            self.weights(self.need((banks.weights, tile.w_bank)), 1, tile.inputs, tile.cols)
            if source.format is not Format.FP16:
                raise BankError(f"needs real values, finds {source}")
        else:
            lut = self._lut
            if lut is None or lut.mode is not LutMode.FC:
                raise BankError("the LUTs do not hold a linear layer's weights")
            if (lut.rows, lut.groups, lut.cols) != (tile.rows, tile.groups, tile.cols):
                raise BankError(f"the LUTs hold {lut.groups} groups of {lut.rows} x {lut.cols} PEs")
            if lut.inputs != tile.inputs:
                raise BankError(f"the LUTs hold {lut.inputs} inputs, not {tile.inputs}")
            if source.format is not Format.S1:
                raise BankError(f"needs spikes, finds {source}")
        self._accumulate(banks, tile, steps, 1, 1)

    def _hold(self, queue: Queue, tile: ConvTile | FcTile) -> None:
        if tile.hold and queue is not Queue.BE:
            raise BankError("only the Backward Engine holds its source over time")

    def _accumulate(self, banks: EngineBuffers, tile: ConvTile | FcTile, steps: int, h: int, w: int) -> None:
        place = (banks.psum, tile.dst_bank)
        content = Content(format=Format.FP16, nt=steps, nn=tile.nn, h=h, w=w, nc=tile.cols)
        if tile.accumulate and self.need(place) != content:
            raise BankError(f"accumulates {content} onto {self.contents[place]}")
        full = Content(format=Format.FP16, nt=tile.nt, nn=tile.nn, h=h, w=w, nc=tile.cols)
        self.put(place, full)
        self.contents[place] = content

    def weights(self, weights: Content, h: int, w: int, nc: int) -> None:
        """Refuse constants of another shape."""
        if weights != Content(format=Format.FP16, nt=1, nn=1, h=h, w=w, nc=nc):
            raise BankError(f"needs {h} x {w} x {nc} constants, finds {weights}")

    def pool_setup(self, queue: Queue, setup: PoolSetup) -> None:
        """Windows for the Soma."""
        if setup.slot not in (1, 2):
            raise BankError(f"pooling slot {setup.slot} does not exist")
        self._pools[queue, setup.slot] = setup

    def soma(self, queue: Queue, soma: Soma) -> None:
        """Input, parameters, states and results of the Soma."""
        banks = ENGINE_BUFFERS[queue]
        x = self.need((banks.psum, soma.psum_bank))
        want = (soma.nn, soma.h, soma.w, soma.cols)
        if (x.nn, x.h, x.w, x.nc) != want or x.nt not in (1, soma.nt):
            raise BankError(f"needs {soma.nt} steps of {want}, finds {x}")
        _check_stages(soma)
        stages = soma.present1 + soma.present2
        if stages:
            self.weights(self.need((banks.neuron, soma.neuron_bank)), stages, NEURON_FIELDS, soma.cols)
        elif x.format is not Format.S1:
            raise BankError(f"pools spikes without a neuron, finds {x}")
        h1, w1 = self.pooled(queue, 1, soma.pool1, soma.h, soma.w)
        h2, w2 = self.pooled(queue, 2, soma.pool2, h1, w1)
        sizes = [(h1, w1), (h2, w2)] if soma.present1 else [(h2, w2)]
        states = [Content(format=Format.FP16, nt=1, nn=soma.nn, h=h, w=w, nc=soma.cols) for h, w in sizes[:stages]]
        for stage, state in enumerate(states):
            if soma.state_in and self.need((banks.state, stage)) != state:
                raise BankError(f"needs state {state}, finds {self.contents[banks.state, stage]}")
            if soma.state_out:
                self.put((banks.state, stage), state)
        fires = soma.fire2 if soma.present2 else (soma.fire1 or not soma.present1)
        kind = Format.S1 if fires else Format.FP16
        out = Content(format=kind, nt=soma.nt, nn=soma.nn, h=h2, w=w2, nc=soma.cols)
        del self.contents[banks.psum, soma.psum_bank]  # sums are used once; membranes may replace them
        self.put((banks.out, soma.out_bank) if fires else (banks.psum, soma.psum_bank), out)
        if soma.keep:
            self._keep(queue, soma, banks, sizes)

    def _keep(self, queue: Queue, soma: Soma, banks: EngineBuffers, sizes: list[tuple[int, int]]) -> None:
        """What a Soma leaves for the backward pass."""

        def put(buffer: Buffer, bank: int, part: int, form: Format, size: tuple[int, int]) -> None:
            content = Content(format=form, nt=soma.nt, nn=soma.nn, h=size[0], w=size[1], nc=soma.cols)
            self.put(part_of(buffer, bank, part), content)

        fires = (soma.present1 and soma.fire1, soma.present2 and soma.fire2)
        for stage, membrane in enumerate((soma.keep_m1, soma.keep_m2)):
            if fires[stage]:
                put(banks.mask, soma.out_bank, Part.FIRST + stage, Format.S1, sizes[stage])
            if membrane and not fires[stage]:
                raise BankError(f"keeps the membrane potentials of neuron {stage + 1}, which does not fire")
            if membrane:
                put(banks.psum, soma.psum_bank, Part.FIRST + stage, Format.FP16, sizes[stage])
        if soma.keep_s1:
            put(banks.out, soma.out_bank, Part.FIRST, Format.S1, sizes[0])
        if soma.pool1 is PoolKind.MAX:
            self.side_by_side(queue, 1, soma.pool1, soma.h, soma.w)
            put(banks.mask, soma.out_bank, Part.WINNERS, Format.S1, (soma.h, soma.w))

    def pooled(self, queue: Queue, slot: int, kind: PoolKind, h: int, w: int) -> tuple[int, int]:
        """Rows and columns behind the pooling of a slot."""
        if kind is PoolKind.NONE:
            return h, w
        setup = self._pools.get((queue, slot))
        if setup is None:
            raise BankError(f"pools with the windows of slot {slot}, which were not set up")
        starts = (
            setup.top + (setup.out_h - 1) * setup.stride_h,
            setup.left + (setup.out_w - 1) * setup.stride_w,
        )
        ends = (setup.top + setup.kernel_h, setup.left + setup.kernel_w)
        if starts[0] >= min(h, setup.limit_h) or starts[1] >= min(w, setup.limit_w) or min(ends) <= 0:
            raise BankError(f"a pooling window of slot {slot} lies outside the tile of {h} x {w}")
        return setup.out_h, setup.out_w

    def side_by_side(self, queue: Queue, slot: int, kind: PoolKind, h: int, w: int) -> None:
        """Refuse windows that do not give each element to exactly one, for what goes backward through a pooling."""
        if kind is PoolKind.NONE:
            return
        setup = self._pools[queue, slot]
        for extent, kernel, stride, out, start, end in (
            (h, setup.kernel_h, setup.stride_h, setup.out_h, setup.top, setup.limit_h),
            (w, setup.kernel_w, setup.stride_w, setup.out_w, setup.left, setup.limit_w),
        ):
            if kernel != stride or start or end < extent or not (out - 1) * stride < extent <= out * stride:
                raise BankError(f"{out} windows of slot {slot} do not lie side by side over {extent}")


def _check_stages(soma: Soma) -> None:
    """Which stages the unit can chain: only spikes go on to pooling and a second neuron."""
    if not soma.present1 and soma.pool1 is not PoolKind.NONE:
        raise BankError("pools before a first neuron that it does not have")
    if not soma.present1 and soma.pool2 is PoolKind.NONE:
        raise BankError("has neither a first neuron nor pooling")
    if soma.present1 and not soma.fire1 and (soma.present2 or soma.pool2 is not PoolKind.NONE):
        raise BankError("hands a membrane potential to a second stage, which takes spikes")
    if soma.pool2 is PoolKind.AVG and not soma.present2:
        raise BankError("averages spikes for no neuron")


def limit(value: int, most: int, what: str) -> None:
    """Refuse more of something than the engine has."""
    if value > most:
        raise BankError(f"{value} {what}, the engine has {most}")
