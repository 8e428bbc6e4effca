"""Loads compiled GPU kernels through the CUDA driver and launches them on torch tensors, without TVM or a compiler."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from compiler.fused.cuda.description import CudaReport, Kernel, Parameter
from compiler.fused.cuda.manifest import read_manifest
from compiler.fused.gpu_launch import Extents, GpuKernel, GpuSchedule, Launch, launch, schedule_for
from compiler.fused.population import KernelName, Norm, Population
from hwmodel.errors import CompileError, Loc

LIBRARY = "libcuda.so.1"
_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
_SCALARS: Mapping[str, type[ctypes.c_int32 | ctypes.c_int64 | ctypes.c_double]] = {
    "int32": ctypes.c_int32,
    "int64": ctypes.c_int64,
    "float64": ctypes.c_double,
}


@dataclass(frozen=True, slots=True)
class Driver:
    """The CUDA driver API, as far as launching needs it."""

    library: ctypes.CDLL
    loc: Loc

    @staticmethod
    def load(library: str = LIBRARY) -> Driver:
        """The driver of this machine, initialised.

        Raises: CompileError where there is none, or no GPU.
        """
        loc = Loc(library)
        try:
            loaded = ctypes.CDLL(library)
        except OSError as fault:
            hint = "fused kernels for GPUs need NVIDIA's driver; without one, train on the CPU"
            raise CompileError("there is no CUDA driver on this machine", loc, hint=hint) from fault
        driver = Driver(loaded, loc)
        driver.call("cuInit", ctypes.c_uint(0), hint="is there a GPU, and may this user use it?")
        return driver

    def call(self, name: str, *arguments: object, hint: str = "") -> None:
        """Call one function.

        Raises: CompileError with the driver's own words.
        """
        code = getattr(self.library, name)(*arguments)
        if code != 0:
            text = ctypes.c_char_p()
            self.library.cuGetErrorString(ctypes.c_int(code), ctypes.byref(text))
            reason = text.value.decode() if text.value is not None else f"error {code}"
            raise CompileError(f"{name}: {reason}", self.loc, hint=hint)

    def enter(self, device: int) -> None:
        """Make the device's primary context, which torch uses too, this thread's."""
        handle, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(handle), ctypes.c_int(device))
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
        self.call("cuCtxSetCurrent", context)

    def functions(self, image: bytes, symbols: tuple[str, ...]) -> dict[str, ctypes.c_void_p]:
        """Kernels of a binary image, which stays loaded to the end of the process."""
        module = ctypes.c_void_p()
        hint = "compile the network for this GPU's architecture"
        self.call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(image), hint=hint)
        return {symbol: self._function(module, symbol) for symbol in symbols}

    def _function(self, module: ctypes.c_void_p, symbol: str) -> ctypes.c_void_p:
        function = ctypes.c_void_p()
        self.call("cuModuleGetFunction", ctypes.byref(function), module, ctypes.c_char_p(symbol.encode()))
        return function


@dataclass(frozen=True, slots=True)
class CudaKernels:
    """The kernels of a network on one device."""

    report: CudaReport
    device: torch.device
    driver: Driver
    functions: Mapping[str, ctypes.c_void_p]
    kernels: Mapping[tuple[Population, GpuKernel, GpuSchedule], Kernel]

    def launch(
        self,
        population: Population,
        name: GpuKernel,
        extents: Extents,
        arrays: Mapping[str, Tensor],
        numbers: Mapping[str, float] | None = None,
        *,
        stream: int = 0,
    ) -> None:
        """Launch one kernel on a stream; it has not finished when this returns.

        arrays: x, y, grad_y, grad_x, table, sums, ... as `GpuKernel` lists them; numbers: eps or count.
        Raises: CompileError for a kernel that was not compiled, or a tensor of another size, type or device.
        """
        kernel = self._kernel(population, name, extents)
        loc = Loc(f"{self.report.network}.{kernel.symbol}")
        grid = launch(population, name, extents)
        given = _scalars(population, name, extents, grid) | dict(numbers or {})
        for array in (parameter for parameter in kernel.parameters if parameter.array):
            self._check(array, arrays, elements(population, name, extents)[array.name], loc)
        values = [_value(parameter, arrays, given, loc) for parameter in kernel.parameters]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        columns, rows = grid.grid
        sizes = (ctypes.c_uint(size) for size in (columns, rows, 1, grid.threads, 1, 1, 0))
        function = self.functions[kernel.symbol]
        self.driver.call("cuLaunchKernel", function, *sizes, ctypes.c_void_p(stream), pointers, None)

    def _kernel(self, population: Population, name: GpuKernel, extents: Extents) -> Kernel:
        schedule = schedule_for(population, extents)
        kernel = self.kernels.get((population, name, schedule))
        if kernel is None:
            message = f"no {name} kernel with {schedule.index} indices and {schedule.tile} channels a block"
            hint = "compile the network with the batch size that it runs with"
            raise CompileError(message, Loc(self.report.network), hint=hint)
        return kernel

    def _check(self, parameter: Parameter, arrays: Mapping[str, Tensor], expected: int, loc: Loc) -> None:
        tensor = arrays.get(parameter.name)
        if tensor is None:
            raise CompileError(f"array {parameter.name} is missing", loc)
        found = (tensor.dtype, tensor.device, tensor.numel(), tensor.is_contiguous())
        if found != (_DTYPES[parameter.dtype], self.device, expected, True):
            raise CompileError(
                f"{parameter.name} is {tensor.numel()} values of {tensor.dtype} on {tensor.device}",
                loc,
                hint=f"it must be {expected} contiguous values of {parameter.dtype} on {self.device}",
            )


def load_cuda(manifest: Path, *, device: torch.device | None = None, library: str = LIBRARY) -> CudaKernels:
    """The kernels that `compile_cuda` wrote, on a device.

    device: cuda:0 unless given.
    Raises: CompileError without a binary, a driver or a GPU, or if the binary does not suit the GPU.
    """
    report = read_manifest(manifest)
    if report.binary is None:
        raise CompileError(
            "the kernels were compiled without nvcc: there is a source, no binary",
            Loc(str(manifest)),
            hint=f"compile the network again where nvcc is installed, or run nvcc on {report.source}",
        )
    try:
        image = (manifest.parent / report.binary).read_bytes()
    except OSError as fault:
        raise CompileError(f"cannot read the kernels: {fault.strerror}", Loc(str(fault.filename))) from fault
    device = device or torch.device("cuda", 0)
    driver = Driver.load(library)
    driver.enter(device.index or 0)
    functions = driver.functions(image, tuple(kernel.symbol for kernel in report.kernels))
    kernels = {(report.populations[each.population], each.name, each.schedule): each for each in report.kernels}
    return CudaKernels(report, device, driver, functions, kernels)


def sum_groups(population: Population, name: GpuKernel, extents: Extents) -> int:
    """Groups of partial sums that a kernel writes, or `finish` reads."""
    if name is GpuKernel.FINISH:
        name = GpuKernel.GRADIENT_SUMS if population.norm is Norm.BATCH else GpuKernel.GRADIENT
    elif name is GpuKernel.FORWARD:
        name = GpuKernel.STATISTICS
    return launch(population, name, extents).grid[1]


def elements(population: Population, name: GpuKernel, extents: Extents) -> dict[str, int]:
    """Elements of each array that a kernel may take."""
    channels, steps = extents.channels, population.timesteps
    pixels = extents.n * extents.height * extents.width * channels
    x = pixels * (1 if population.repeated else steps)
    y = extents.n * extents.out_height * extents.out_width * channels * steps
    sizes = {"x": x, "grad_x": x, "y": y, "grad_y": y, "table": len(population.rows) * channels}
    sizes |= {"sums": sum_groups(population, name, extents) * 2 * channels, "moments": 2 * channels}
    names = ("weight", "bias", "scale", "leak", "reciprocal", "grad_weight", "grad_bias")
    return sizes | dict.fromkeys(names, channels)


def _scalars(population: Population, name: GpuKernel, extents: Extents, grid: Launch) -> dict[str, float]:
    flat = population.window is None or name.cpu_name is KernelName.STATISTICS
    groups = sum_groups(population, name, extents)
    return {
        "n": extents.n * math.prod((extents.height, extents.width)) if flat else extents.n,
        "height": extents.height,
        "width": extents.width,
        "out_height": extents.out_height,
        "out_width": extents.out_width,
        "channels": extents.channels,
        "groups": groups if name is GpuKernel.FINISH else grid.grid[1],
        "sum_groups": groups,
    }


def _value(
    parameter: Parameter, arrays: Mapping[str, Tensor], numbers: Mapping[str, float], loc: Loc
) -> ctypes.c_void_p | ctypes.c_int32 | ctypes.c_int64 | ctypes.c_double:
    if parameter.array:
        return ctypes.c_void_p(arrays[parameter.name].data_ptr())
    if parameter.name not in numbers:
        raise CompileError(f"number {parameter.name} is missing", loc)
    value, kind = numbers[parameter.name], _SCALARS[parameter.dtype]
    return ctypes.c_double(value) if kind is ctypes.c_double else kind(int(value))
