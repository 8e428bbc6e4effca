"""Compiles the fused kernels of a network for a GPU: CUDA C, fat binary, manifest with the launch table."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compiler.fused.cuda.description import CudaLayer, CudaReport, Resources
from compiler.fused.cuda.layers import cuda_layers, distinct_populations, kernel_specs, layer_launches
from compiler.fused.cuda.manifest import manifest_text
from compiler.fused.cuda.source import cuda_source
from compiler.fused.cuda.toolchain import Nvcc, check_arch
from compiler.fused.plan import Plan
from compiler.fused.stages import plan_stages
from compiler.ir import Graph
from hwmodel.errors import CompileError, Loc

MANIFEST_SUFFIX = ".json"
DEFAULT_BATCH = 32


def compile_cuda(network: Graph | Plan, arch: str, out_dir: Path, *, batch: int = DEFAULT_BATCH) -> CudaReport:
    """The kernels that train the network on a GPU, as files in `out_dir`.

    Without nvcc the source and the launch table are written alike, and nothing is known of registers.
    batch: of the launch table; it also decides where an index needs 64 bits.

    Raises: CompileError; files from before stay as they were.
    """
    check_arch(arch)
    plan = network if isinstance(network, Plan) else plan_stages(network)
    layers = cuda_layers(plan, batch=batch)
    if not layers:
        raise CompileError("the network has no spiking neurons, so there are no kernels", Loc(plan.network))
    return compile_layers(plan.network, layers, arch, out_dir, nvcc=Nvcc.find())


def compile_layers(
    network: str, layers: tuple[CudaLayer, ...], arch: str, out_dir: Path, *, nvcc: Nvcc | None
) -> CudaReport:
    """As `compile_cuda`, of layers that are known already."""
    check_arch(arch)
    if nvcc is not None:
        nvcc.check_arch(arch)
    populations = distinct_populations(layers)
    specs = kernel_specs(layers, populations)
    source = cuda_source(specs, arch)
    symbols = {spec: kernel.symbol for spec, kernel in zip(specs, source.kernels, strict=True)}
    stem = f"{file_stem(network)}.{arch}"
    with _files_beside(out_dir) as folder:
        source_file, binary_file = folder / f"{stem}.cu", folder / f"{stem}.fatbin"
        source_file.write_text(source.text, encoding="utf-8")
        found: dict[str, Resources] = {}
        if nvcc is not None:
            found = nvcc.compile(source_file, binary_file, arch)
        report = CudaReport(
            network=network,
            arch=arch,
            source=source_file.name,
            binary=binary_file.name if nvcc is not None else None,
            compiler=f"nvcc {nvcc.version()}" if nvcc is not None else None,
            populations=populations,
            kernels=source.kernels,
            resources=tuple(found[kernel.symbol] for kernel in source.kernels) if nvcc is not None else (),
            layers=layers,
            launches=tuple(layer_launches(layers, populations, symbols)),
        )
        (folder / f"{stem}{MANIFEST_SUFFIX}").write_text(manifest_text(report), encoding="utf-8")
    return report


def manifest_file(report: CudaReport, out_dir: Path) -> Path:
    """Where `compile_cuda` wrote the report's manifest."""
    return out_dir / f"{file_stem(report.network)}.{report.arch}{MANIFEST_SUFFIX}"


def file_stem(network: str) -> str:
    """A network's name as a file's."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", network).strip("_") or "network"


@contextmanager
def _files_beside(out_dir: Path) -> Iterator[Path]:
    """A folder whose files move to `out_dir` if the block succeeds, the manifest last."""
    loc = Loc(str(out_dir))
    beside = out_dir.parent / f".{uuid.uuid4().hex}.part"
    try:
        beside.mkdir(parents=True)
        yield beside
        out_dir.mkdir(exist_ok=True)
        for file in sorted(beside.iterdir(), key=lambda file: file.suffix == MANIFEST_SUFFIX):
            os.replace(file, out_dir / file.name)
    except OSError as fault:
        raise CompileError(f"cannot write the kernels: {fault.strerror}", loc) from fault
    finally:
        shutil.rmtree(beside, ignore_errors=True)
