"""What a process costs: its CPU time and its memory, read from outside through /proc, so on Linux alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICK: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Meter:
    """The CPU time and memory of one process.

    Args:
        pid: the process; its threads are counted, its children are not.
    """

    pid: int

    def cpu(self) -> float:
        """CPU seconds so far, user and system, in steps of the kernel's tick (10 ms)."""
        # The name, in parentheses, may hold blanks; utime and stime are the 14th and 15th fields.
        fields = self._read("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK

    def resident(self) -> int:
        """Bytes of memory that the process holds now."""
        return int(self._read("statm").split()[1]) * _PAGE

    def peak(self) -> int:
        """The most bytes of memory held since the start, or since ``reset_peak``."""
        return next(int(line.split()[1]) * 1024 for line in self._read("status").splitlines() if "VmHWM" in line)

    def reset_peak(self) -> None:
        """Have ``peak`` begin again from what is held now."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5", encoding="ascii")

    def _read(self, name: str) -> str:
        return Path(f"/proc/{self.pid}/{name}").read_text(encoding="utf-8")
