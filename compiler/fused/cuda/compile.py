"""Compiles the fused kernels of a network for a GPU: CUDA C, fat binary, manifest with the launch table."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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

SOURCE_SUFFIX, BINARY_SUFFIX, MANIFEST_SUFFIX = ".cu", ".fatbin", ".json"
_SUFFIXES = (SOURCE_SUFFIX, BINARY_SUFFIX, MANIFEST_SUFFIX)  # in the order in which they are replaced
DEFAULT_BATCH = 32
_FEWER_BLOCKS = 2  # of a multiprocessor: up to 128 registers for each of 256 threads


def compile_cuda(network: Graph | Plan, arch: str, out_dir: Path, *, batch: int = DEFAULT_BATCH) -> CudaReport:
    """The kernels that train the network on a GPU, as files in `out_dir`.

    Without nvcc the source and the launch table are written alike, and nothing is known of registers.
    batch: of the launch table; it also decides where an index needs 64 bits.

    Raises: CompileError; files from before stay as they were, or are put back.
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
    with _files_beside(out_dir, stem) as folder:
        source_file, binary_file = folder / f"{stem}{SOURCE_SUFFIX}", folder / f"{stem}{BINARY_SUFFIX}"
        source_file.write_text(source.text, encoding="utf-8")
        found = {} if nvcc is None else _compile_without_spills(nvcc, source_file, binary_file, arch)
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


def _compile_without_spills(nvcc: Nvcc, source: Path, binary: Path, arch: str) -> dict[str, Resources]:
    """ptxas spills a little where that lets one more block run at once; kernels that spill are told of fewer blocks."""
    found = nvcc.compile(source, binary, arch)
    spilling = [symbol for symbol, resources in found.items() if resources.spill_bytes]
    if not spilling:
        return found
    text = source.read_text(encoding="utf-8")
    for symbol in spilling:
        text = re.sub(
            rf"__launch_bounds__\((\d+)\) {symbol}\(", rf"__launch_bounds__(\1, {_FEWER_BLOCKS}) {symbol}(", text
        )
    source.write_text(text, encoding="utf-8")
    return nvcc.compile(source, binary, arch)


@contextmanager
def _files_beside(out_dir: Path, stem: str) -> Iterator[Path]:
    """A folder whose files replace those of the stem in `out_dir` if the block succeeds, the manifest last."""
    loc = Loc(str(out_dir))
    beside = out_dir.parent / f".{uuid.uuid4().hex}.part"
    try:
        beside.mkdir(parents=True)
        yield beside
        out_dir.mkdir(exist_ok=True)
        _replace_set(beside, [out_dir / f"{stem}{suffix}" for suffix in _SUFFIXES])
    except OSError as fault:
        raise CompileError(f"cannot write the kernels: {fault.strerror}", loc) from fault
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _replace_set(beside: Path, targets: list[Path]) -> None:
    """All of the targets or none; one without a new file goes away."""
    for target in targets:
        if target.is_dir():
            raise CompileError("is a folder, must be a file or absent", Loc(str(target)), hint="move it away")
    kept = beside / "before"
    kept.mkdir()
    for target in filter(Path.exists, targets):
        shutil.copy2(target, kept)
    try:
        new = [target for target in targets if (beside / target.name).exists()]
        for target in new:
            os.replace(beside / target.name, target)
        for target in targets:
            if target not in new:
                target.unlink(missing_ok=True)
    except OSError:
        for target in targets:
            _restore(kept / target.name, target)
        raise


def _restore(kept: Path, target: Path) -> None:
    with suppress(OSError):  # the fault that is reported is the first one
        if kept.exists():
            os.replace(kept, target)
        else:
            target.unlink(missing_ok=True)
