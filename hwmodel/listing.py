"""A program as text that a person can read: what it is for, its layers, its tensors, its instructions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hwmodel.assembler import disassemble
from hwmodel.isa import Instruction, Load, Store
from hwmodel.program import Layer, Program, Tensor, Training
from hwmodel.timing import LayerTiming, program_timing

HEAD = 24  # instructions of each queue that a short listing shows


def listing(program: Program, *, full: bool) -> str:
    """The whole listing; unless `full`, the beginning of each queue only."""
    return "\n".join((*_header(program), "", *_layers(program), "", *_tensors(program), *_streams(program, full)))


def _header(program: Program) -> Iterator[str]:
    config = program.config
    yield f"program {program.name} for {config.name}"
    yield f"  {program.timesteps} time steps, {program.batch} samples a sub-batch, encoding {program.host.encoding}"
    yield f"  {program.instructions:,} instructions, {len(program.layers)} layers, readout {program.host.readout}"
    if program.training is not None:
        yield from _training(program.training)


def _training(training: Training) -> Iterator[str]:
    counts = (
        f"{phase} {sum(len(stream) for stream in streams.values()):,}" for phase, streams in training.phases.items()
    )
    yield f"  trains with loss {training.loss}, loss scale {training.loss_scale:g}, {', '.join(counts)} instructions"
    rates = f"learning rate {training.learning_rate:g}, momentum {training.momentum:g}"
    yield f"  {rates}, weight decay {training.weight_decay:g}"
    weights = "f32 weights on the host" if training.master_weights else "FP16 weights"
    yield f"  {training.batch_group} sub-batches a batch, machines {training.machines}, {weights}"


def _layers(program: Program) -> Iterator[str]:
    timing = program_timing(program)
    yield f"{'layers':31} engine kind  {'channels in -> out, kernel, map':36}{'compute':>12} {'memory':>12} (cycles)"
    for number, (layer, time) in enumerate(zip(program.layers, timing.layers, strict=True)):
        yield _layer_line(number, layer, time)
    what = "latency" if program.training is None else "forward pass"
    total = f"{what} {timing.latency_cycles:,} cycles = {timing.latency_us:,.1f} us"
    yield f"  {total}, {timing.cycles_per_sample:,.0f} cycles a sample"


def _layer_line(number: int, layer: Layer, time: LayerTiming) -> str:
    shape = f"{layer.c_in} -> {layer.c_out}"
    if layer.kind == "conv":
        stride = f"s{layer.stride[0]}" if layer.stride != (1, 1) else ""
        shape += f", {layer.kernel[0]}x{layer.kernel[1]}{stride}, {layer.out_h}x{layer.out_w}"
    return (
        f"  {number:3} {layer.name[:25]:25} {layer.engine:6} {layer.kind:5} {shape:36}"
        f"{time.compute_cycles:12,} {time.memory_cycles:12,}"
    )


def _tensors(program: Program) -> Iterator[str]:
    yield "tensors                          memory     address        bytes  format (t, n, y, x, c)"
    for number, tensor in enumerate(program.tensors):
        yield _tensor_line(number, tensor)


def _tensor_line(number: int, tensor: Tensor) -> str:
    memory = "0, 1" if tensor.mirrored else str(tensor.memory)
    return (
        f"  {number:3} {tensor.name[:27]:27} {memory:>5} {tensor.address:#012x} {tensor.size_bytes:12,}"
        f"  {tensor.format:5} {tensor.shape}"
    )


def _comment(program: Program, instruction: Instruction) -> str:
    return f"  ; {program.tensors[instruction.tensor].name}" if isinstance(instruction, Load | Store) else ""


def _streams(program: Program, full: bool) -> Iterator[str]:
    for phase, streams in program.phases.items():
        prefix = "" if program.training is None else f"phase {phase}, "
        for queue, stream in streams.items():
            yield from _stream(program, f"{prefix}queue {queue}", stream, full)


def _stream(program: Program, title: str, stream: Sequence[Instruction], full: bool) -> Iterator[str]:
    yield ""
    yield f"{title}: {len(stream):,} instructions"
    shown = stream if full else stream[:HEAD]
    for position, instruction in enumerate(shown):
        yield f"  {position:6}  {disassemble(instruction)}{_comment(program, instruction)}"
    if len(shown) < len(stream):
        yield f"  ... {len(stream) - len(shown):,} more; all with --full"
