"""Resources of a compiled kernel, and what is wrong with them."""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.compiler.compiler import CompiledKernel

from kernels.gpu.aot.target import shared_limit

__all__ = ["Report", "examine"]

_MATRIX = re.compile(r"\b(?:[HIQO]MMA|[HIQ]GMMA|UTC[HQIO]MMA)\b[\w.]*")
_AMD_MATRIX = re.compile(r"\bv_(?:s?mfma|wmma)_\w+")
_COPIES = re.compile(r"\b(LDGSTS|UTMALDG|UTMASTG)\b")

_INSTRUCTIONS = {
    "bf16": {"80": "HMMA", "89": "HMMA", "90": "HGMMA", "100": "UTCHMMA", "120": "HMMA"},
    "int8": {"80": "IMMA", "89": "IMMA", "90": "IGMMA", "100": "UTCIMMA", "120": "IMMA"},
    "fp8": {"89": "QMMA", "90": "QGMMA", "100": "UTCQMMA", "120": "QMMA"},
}
"""Matrix instruction that a kernel with operands of a type must use on each target."""


@dataclass(frozen=True, kw_only=True)
class Report:
    kernel: str
    target: str
    registers: int
    spilled: int
    """Bytes."""
    shared: int
    """Bytes of shared memory."""
    warps: int
    scratch: int
    """Bytes of global memory that the launcher would have to allocate."""
    matrix: Counter[str]
    """Matrix instructions."""
    copies: Counter[str]
    """Asynchronous copies from and to global memory."""

    def problems(self, operands: str | None) -> list[str]:
        """Returns the faults found; `operands` is the type whose matrix instruction the kernel must use, None: any or none."""
        found = []
        if self.spilled:
            found.append(f"spills {self.spilled} bytes")
        if self.shared > shared_limit(self.target):
            found.append(
                f"needs {self.shared} bytes of shared memory, of {shared_limit(self.target)}"
            )
        if self.scratch:
            found.append(
                f"needs {self.scratch} bytes of scratch memory, which no launcher allocates"
            )
        if operands is not None and not self._uses_matrix(operands):
            found.append(f"has no matrix instruction for {operands}, but {sorted(self.matrix)}")
        return found

    def _uses_matrix(self, operands: str) -> bool:
        wanted = _INSTRUCTIONS[operands].get(self.target)
        if wanted is None:
            return bool(self.matrix) or not self.target.startswith("gfx")
        return any(name.split(".")[0] == wanted for name in self.matrix)

    def __str__(self) -> str:
        matrix = ",".join(f"{name}x{n}" for name, n in self.matrix.most_common(2)) or "-"
        copies = ",".join(f"{name}x{n}" for name, n in sorted(self.copies.items()))
        return (
            f"{self.kernel:38s} {self.target:>6s} warps {self.warps} registers {self.registers:3d} "
            f"spilled {self.spilled:3d} shared {self.shared:6d} {matrix} {copies}"
        )


def examine(name: str, target: str, compiled: CompiledKernel, log: str) -> Report:
    """Reads the machine code and the log of ptxas."""
    metadata = compiled.metadata
    is_nvidia = "cubin" in compiled.asm
    code = _disassemble(compiled.asm["cubin"]) if is_nvidia else str(compiled.asm["amdgcn"])
    if is_nvidia:
        registers = _number(r"Used (\d+) registers", log)
        spilled = max(
            _number(r"(\d+) bytes spill stores", log), _number(r"(\d+) bytes spill loads", log)
        )
    else:
        registers = _number(r"\.vgpr_count:\s+(\d+)", code)
        spilled = 4 * _number(r"\.vgpr_spill_count:\s+(\d+)", code)
    return Report(
        kernel=name,
        target=target,
        registers=registers,
        spilled=spilled,
        shared=metadata.shared or 0,
        warps=metadata.num_warps,
        scratch=getattr(metadata, "global_scratch_size", 0) or 0,
        matrix=Counter((_MATRIX if is_nvidia else _AMD_MATRIX).findall(code)),
        copies=Counter(_COPIES.findall(code)),
    )


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"no `{pattern}` in the compiler's output: {text[-500:]!r}")
    return int(found.group(1))


def _disassemble(cubin: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True)
    return done.stdout
