"""Builds a program's tensor table: what stands in which memory, in which format, for how long."""

from __future__ import annotations

from dataclasses import replace

from compiler.h2learn.allocate_memory import Request, allocate_memory
from compiler.h2learn.quantise import F16
from compiler.ir import DType, TensorType
from hwmodel.config import H2LearnConfig
from hwmodel.errors import Loc
from hwmodel.program import Format, Role, Tensor

Life = tuple[int, int]  # first and last stage of the program that needs a tensor
GRADIENT_MEMORY = 2


class TableBuilder:
    """Collects tensors; addresses are given at the end."""

    def __init__(self, config: H2LearnConfig, batch: int) -> None:
        self._config = config
        self._batch = batch
        self._tensors: list[Tensor] = []
        self._lives: list[Life] = []
        self.constants: dict[str, F16] = {}

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What was collected so far."""
        return tuple(self._tensors)

    def maps(
        self,
        name: str,
        kind: TensorType,
        role: Role,
        layer: int,
        life: Life,
        steps: int,
        *,
        form: Format | None = None,
        used: tuple[int, int] | None = None,
        memory: int = 0,
    ) -> int:
        """Feature maps of the sub-batch; `used` restricts their rows and columns."""
        height, width = (kind.size("H"), kind.size("W")) if kind.has("H") else (1, 1)
        tensor = Tensor(
            name=name,
            memory=memory,
            mirrored=False,
            address=0,
            shape=(steps, self._batch, *(used or (height, width)), kind.size("C")),
            format=form or (Format.S1 if kind.dtype is DType.SPIKE else Format.FP16),
            role=role,
            layer=layer,
        )
        return self._add(tensor, life)

    def constant(self, name: str, values: F16, role: Role, layer: int) -> int:
        """Weights or neuron parameters, (y, x, c), in both memories of the samples."""
        self.constants[name] = values
        tensor = Tensor(
            name=name,
            memory=0,
            mirrored=True,
            address=0,
            shape=(1, 1, *values.shape),
            format=Format.FP16,
            role=role,
            layer=layer,
        )
        return self._add(tensor, (-1, -1))

    def accumulator(self, name: str, shape: tuple[int, int, int], role: Role, layer: int) -> int:
        """A tensor of Mem 2 that lives from batch to batch."""
        tensor = Tensor(
            name=name,
            memory=GRADIENT_MEMORY,
            mirrored=False,
            address=0,
            shape=(1, 1, *shape),
            format=Format.FP16,
            role=role,
            layer=layer,
        )
        return self._add(tensor, (-1, -1))

    def view(
        self, index: int, suffix: str, *, memory: int | None = None, maps: tuple[int, int, int] | None = None
    ) -> int:
        """The same bytes under another name: in the other memory, or as (y, x, c) of another shape."""
        base = self._tensors[index]
        tensor = replace(
            base,
            name=f"{base.name}.{suffix}",
            memory=base.memory if memory is None else memory,
            shape=base.shape if maps is None else (*base.shape[:2], *maps),
            view_of=base.name,
        )
        return self._add(tensor, self._lives[index])

    def placed(self, loc: Loc) -> tuple[Tensor, ...]:
        """The tensors with their addresses.

        Raises: CompileError if a memory is too small.
        """
        capacity = self._config.memory.capacity_bytes
        owners = [(tensor, life) for tensor, life in zip(self._tensors, self._lives, strict=True) if not tensor.view_of]
        requests = {
            tensor.name: Request(name=tensor.name, size_bytes=tensor.size_bytes, first=life[0], last=life[1])
            for tensor, life in owners
        }
        constants = [requests[tensor.name] for tensor, _ in owners if tensor.mirrored]
        far = [requests[tensor.name] for tensor, _ in owners if tensor.memory == GRADIENT_MEMORY]
        samples = [
            requests[tensor.name] for tensor, _ in owners if not tensor.mirrored and tensor.memory != GRADIENT_MEMORY
        ]
        addresses = allocate_memory(constants, samples, capacity, loc) | allocate_memory(far, [], capacity, loc)
        return tuple(replace(tensor, address=addresses[tensor.view_of or tensor.name]) for tensor in self._tensors)

    def _add(self, tensor: Tensor, life: Life) -> int:
        self._tensors.append(tensor)
        self._lives.append(life)
        return len(self._tensors) - 1
