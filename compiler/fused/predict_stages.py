"""The dataflow of fused stages: two kernels each way around each layer, and only the layers' results kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from compiler.fused.arena import SUM_GROUPS, arrange, scratch_requests
from compiler.fused.gpu_launch import GpuKernel, gpu_kernels
from compiler.fused.plan import Plan, Stage, Step
from compiler.fused.population import Norm, Population
from compiler.fused.predict_facts import F32_BYTES, STAGE, Direction, Family, Launch, Unit, Work, elements
from compiler.fused.predict_torch import TorchRules, layer_launches
from compiler.ir.ops import Conv2d

F64_BYTES = 8
BACKWARD = (GpuKernel.GRADIENT_SUMS, GpuKernel.FINISH, GpuKernel.GRADIENT_INPUT, GpuKernel.GRADIENT)


def fused_work(plan: Plan, batch: int) -> Work:
    """One training step of the plan.

    Raises: CompileError for an op that has no rule in torch.
    """
    rules = _StageRules(plan, batch)
    units = tuple(unit for step in plan.steps for unit in rules.units(step))
    return Work(
        network=plan.network,
        dataflow="fused stages",
        timesteps=plan.timesteps,
        batch=batch,
        units=units,
        block_bytes=arrange(scratch_requests(plan, batch)).total_bytes,
    )


def evaluated(plan: Plan) -> Plan:
    """The plan as it runs in evaluation mode: batch norms with running statistics, one kernel each way."""

    def step(given: Step) -> Step:
        if not isinstance(given, Stage):
            return given
        parts = tuple(
            replace(part, norm=Norm.RUNNING) if isinstance(part, Population) and part.norm is Norm.BATCH else part
            for part in given.parts
        )
        return replace(given, parts=parts)

    return replace(plan, steps=tuple(step(given) for given in plan.steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class PartExtents:
    """Values that a population takes and gives over all samples and steps, a repeated input's once; channels."""

    taken: int
    given: int
    channels: int


def population_launches(population: Population, extents: PartExtents, *, again: bool = False) -> Iterator[Launch]:
    """The kernels of one population by the arrays that are their arguments.

    again: its result is computed once more in the backward pass, since it is not the stage's last part.
    """
    for kernel in gpu_kernels(population):
        read, written = _arrays(kernel, population, extents)
        direction = Direction.BACKWARD if kernel in BACKWARD else Direction.FORWARD
        launch = Launch(kernel=str(kernel), direction=direction, read_bytes=read, written_bytes=written)
        yield launch
        if again and kernel is GpuKernel.FORWARD:
            yield replace(launch, direction=Direction.BACKWARD)


def _arrays(kernel: GpuKernel, population: Population, extents: PartExtents) -> tuple[int, int]:
    """Bytes of the arguments read and written."""
    x, y = extents.taken * F32_BYTES, extents.given * F32_BYTES
    table = len(population.rows) * extents.channels * F32_BYTES
    sums = SUM_GROUPS * 2 * extents.channels * F64_BYTES if population.norm is not Norm.NONE else 0
    match kernel:
        case GpuKernel.STATISTICS:
            return x, sums
        case GpuKernel.FORWARD:
            return x + table + (sums if population.norm is Norm.BATCH else 0), y + table
        case GpuKernel.GRADIENT_SUMS:
            return x + table + y, sums + y
        case GpuKernel.FINISH:
            return sums + table, table
        case GpuKernel.GRADIENT_INPUT:
            return x + table + y, x
        case GpuKernel.GRADIENT:
            return x + table + y, x + y + sums


@dataclass(slots=True)
class _StageRules:
    plan: Plan
    batch: int
    torch: TorchRules = field(init=False)

    def __post_init__(self) -> None:
        self.torch = TorchRules(self.plan.graph, self.batch)

    def units(self, step: Step) -> Iterator[Unit]:
        if isinstance(step, Stage):
            yield self._stage(step)
        else:
            yield from self.torch.units(step.node)

    def _stage(self, stage: Stage) -> Unit:
        source = {stage.source: self._bytes(stage.source)}
        trained = self.torch.facts[stage.source]
        population = stage.parts[-1] if stage.parts else None
        in_place = isinstance(population, Population) and population.in_place
        spikes = stage.results[-1] if stage.results else stage.source
        nodes = [stage.linears, (stage.batch_norm,)]
        return Unit(
            name=stage.name,
            kind=STAGE,
            reads=source,
            writes={name: self._bytes(name) for name in stage.outputs},
            launches=tuple(self._launches(stage)),
            kept={stage.source + ".bits": -(-self._bytes(stage.source) // 32)} if stage.packed else source,
            backward_bytes=0 if in_place or stage.packed else self._bytes(spikes),  # torch's gradient of the spikes
            parameter_bytes=sum(
                self.torch.facts[node.name].parameter_bytes for group in nodes for node in group if node is not None
            ),
            input_gradient=trained.input_gradient or trained.parameter_bytes > 0,
            keeps_gradient=in_place or stage.packed,  # otherwise it lies in the block
        )

    def _launches(self, stage: Stage) -> Iterator[Launch]:
        if stage.packed:
            size = self._bytes(stage.source)
            yield Launch(kernel="pack", direction=Direction.FORWARD, read_bytes=size, written_bytes=size // 32)
            yield Launch(kernel="unpack", direction=Direction.BACKWARD, read_bytes=size // 32, written_bytes=size)
        taken = stage.source
        for part, result in zip(stage.parts, stage.results, strict=True):
            extents = PartExtents(
                taken=self._values(taken), given=self._values(result), channels=self.torch.facts[taken].channels
            )
            if isinstance(part, Population):
                yield from population_launches(part, extents, again=result != stage.results[-1])
            else:
                yield from self._pool(extents, again=result != stage.results[-1])
            taken = result
        if stage.flatten is not None and self._copies(stage):
            yield from self._flatten(self._bytes(stage.results[-1]))
        for layer in stage.linears:
            family = Family.CONVOLUTION if isinstance(layer.op, Conv2d) else Family.MATRIX_MULTIPLY
            facts = replace(self.torch.facts[layer.name], input_gradient=True)
            yield from layer_launches(facts, facts.kind, family)
        yield from self._sums(stage)

    def _pool(self, extents: PartExtents, *, again: bool) -> Iterator[Launch]:
        taken, given = extents.taken * F32_BYTES, extents.given * F32_BYTES
        forward = Launch(kernel="pool", direction=Direction.FORWARD, read_bytes=taken, written_bytes=given)
        yield forward
        yield replace(forward, direction=Direction.BACKWARD)  # its result is wanted again, last part or not
        yield Launch(kernel="pool", direction=Direction.BACKWARD, read_bytes=given, written_bytes=taken)

    def _flatten(self, size: int) -> Iterator[Launch]:
        """With the channels last, flattening moves values: the result, the result again, its gradient."""
        for direction in (Direction.FORWARD, Direction.BACKWARD, Direction.BACKWARD):
            yield Launch(kernel="copy_", direction=direction, read_bytes=size, written_bytes=size)

    def _sums(self, stage: Stage) -> Iterator[Launch]:
        """Gradients of several layers added up, and those of an output that several steps read."""
        if stage.spikes is None:
            size = self._bytes(stage.results[-1] if stage.results else stage.source)
            for _ in stage.linears[1:]:
                yield Launch(kernel="add_", direction=Direction.BACKWARD, read_bytes=2 * size, written_bytes=size)
        for output in stage.outputs:
            yield from self.torch.accumulations(output)

    def _copies(self, stage: Stage) -> bool:
        maps = self.plan.graph.types[stage.results[-1]]
        return (maps.size("H"), maps.size("W")) != (1, 1)

    def _values(self, value: str) -> int:
        return elements(self.plan.graph, value, self.batch)

    def _bytes(self, value: str) -> int:
        return self._values(value) * F32_BYTES
