"""Builds a driver library whose kernels are a network's CUDA C, run by this CPU."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import torch

from compiler.fused.cuda.compile import compile_layers, manifest_file
from compiler.fused.cuda.description import CudaLayer
from compiler.fused.cuda.manifest import manifest_text
from runtime.fused.cuda_loader import CudaKernels, load_cuda

HERE = Path(__file__).parent
# contracted to FMA as LLVM and nvcc do, so that membrane potentials are the same bits
OPTIONS = ("-O1", "-std=c++17", "-shared", "-fPIC", "-march=native", "-ffp-contract=fast", "-w")
_KERNEL = re.compile(r'^extern "C" __global__ void __launch_bounds__\(\d+\) (\w+)\([^;{]*\) \{', re.MULTILINE)


def load_on_cpu(layers: tuple[CudaLayer, ...], folder: Path) -> CudaKernels:
    """The layers' kernels, compiled by g++ and launched through `runtime.fused.cuda_loader` on CPU tensors."""
    report = compile_layers("cases", layers, "sm_80", folder, nvcc=None)
    manifest = manifest_file(report, folder)
    library = _library((folder / report.source).read_text(), folder)
    binary = folder / "cases.fatbin"
    binary.write_bytes(b"the library has the kernels")
    manifest.write_text(manifest_text(replace(report, binary=binary.name)))
    return load_cuda(manifest, device=torch.device("cpu"), library=str(library))


def _library(source: str, folder: Path) -> Path:
    """g++ of the source without TVM's preamble, which is for nvcc."""
    text = source[source.index('extern "C" __global__') :].replace("__shared__ alignas(64)", "alignas(64) __shared__")
    starts = list(_KERNEL.finditer(text))
    ends = [start.start() for start in starts[1:]] + [len(text)]
    bodies = [text[start.end() : end] for start, end in zip(starts, ends, strict=True)]
    entries = [
        f'{{"{name}", [](void** p) {{ shim::invoke({name}, p); }}, {str("__syncthreads" in body).lower()}}},'
        for name, body in zip((start.group(1) for start in starts), bodies, strict=True)
    ]
    table = "static const shim::Entry shim_entries[] = {\n" + "\n".join(entries) + "\n};\n"
    unit, library = folder / "shim.cpp", folder / "libshim.so"
    unit.write_text(f'#include "{HERE}/shim.h"\n{text}\n{table}#include "{HERE}/driver.h"\n')
    subprocess.run(["g++", *OPTIONS, str(unit), "-o", str(library)], check=True)
    return library
