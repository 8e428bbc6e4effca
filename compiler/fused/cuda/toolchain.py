"""nvcc: which architectures it knows, fat binaries without a GPU, and what ptxas says of each kernel."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from compiler.fused.cuda.description import Resources
from hwmodel.errors import CompileError, Loc

GENERATIONS = (70, 72, 75, 80, 86, 87, 88, 89, 90, 100, 101, 103, 110, 120, 121)  # of GPUs, from Volta on
_OPTION = Loc("--arch")
_ARCH = re.compile(r"sm_(\d{2,3})[a-f]?")
# FMA contraction stays on, as it is on CPUs; no fast math. 1046: a literal that f32 rounds, as it should.
OPTIONS = ("-fmad=true", "--diag-suppress=1046", "-Xptxas", "-v")
_TIMEOUT_S = 600
_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def check_arch(arch: str) -> None:
    """Refuse what is no GPU architecture that the kernels are written for.

    Raises: CompileError.
    """
    match = _ARCH.fullmatch(arch)
    if match is None or int(match.group(1)) not in GENERATIONS:
        known = ", ".join(f"sm_{number}" for number in GENERATIONS)
        message = f"is {arch!r}, which is no GPU architecture that kernels are written for"
        raise CompileError(message, _OPTION, hint=f"{known}; sm_80 is A100, sm_90 H100")


@dataclass(frozen=True, slots=True)
class Nvcc:
    """NVIDIA's compiler on this machine."""

    path: str

    @staticmethod
    def find() -> Nvcc | None:
        """The one on the path; None: there is none."""
        path = shutil.which("nvcc")
        return None if path is None else Nvcc(path)

    def version(self) -> str:
        """As 13.0."""
        match = re.search(r"release ([\d.]+)", self._run("--version").stdout)
        return match.group(1) if match else "unknown"

    def check_arch(self, arch: str) -> None:
        """Refuse what this release makes no code for.

        Raises: CompileError.
        """
        known = self._run("--list-gpu-code").stdout.split()
        base = re.sub(r"[a-f]$", "", arch)
        if base not in known and arch not in known:
            raise CompileError(
                f"nvcc {self.version()} makes no code for {arch}",
                _OPTION,
                hint=f"it knows {', '.join(known)}; sm_70 and sm_72 need CUDA 12 or older",
            )

    def compile(self, source: Path, binary: Path, arch: str) -> dict[str, Resources]:
        """A fat binary with code for `arch` and PTX for newer ones; what each kernel takes.

        Raises: CompileError with nvcc's last lines.
        """
        virtual = arch.replace("sm_", "compute_")
        codes = [f"-gencode=arch={virtual},code={code}" for code in (arch, virtual)]
        done = self._run("-fatbin", *codes, *OPTIONS, str(source), "-o", str(binary))
        if done.returncode != 0:
            lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            raise CompileError(
                f"nvcc failed on {source.name}",
                Loc(self.path),
                hint="\n  ".join(lines[-5:]) or f"exit code {done.returncode}",
            )
        return parse_ptxas(done.stderr + done.stdout)

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [self.path, *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as fault:
            raise CompileError(f"nvcc does not run: {fault}", Loc(self.path)) from fault


def parse_ptxas(text: str) -> dict[str, Resources]:
    """What `ptxas -v` says, by kernel.

    Raises: CompileError if it says less than expected of one.
    """
    starts = list(_ENTRY.finditer(text))
    ends = [match.start() for match in starts[1:]] + [len(text)]
    return {
        match.group(1): _resources(match.group(1), text[match.end() : end])
        for match, end in zip(starts, ends, strict=True)
    }


def _resources(symbol: str, text: str) -> Resources:
    stack, registers, shared = (pattern.search(text) for pattern in (_STACK, _REGISTERS, _SHARED))
    if stack is None or registers is None:
        raise CompileError(f"ptxas says nothing of the registers of {symbol}", Loc("nvcc"))
    return Resources(
        registers=int(registers.group(1)),
        spill_bytes=int(stack.group(2)) + int(stack.group(3)),
        stack_bytes=int(stack.group(1)),
        shared_bytes=int(shared.group(1)) if shared is not None else 0,
    )
