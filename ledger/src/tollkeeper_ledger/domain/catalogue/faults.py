"""What is wrong with a catalogue, so that it can be put right without guessing."""

from __future__ import annotations

from dataclasses import dataclass, field

FAULTS_MAX = 100
"""More than these are counted, not kept."""


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One fault of a catalogue file."""

    line: int
    field: str
    problem: str
    value: str = ""
    bound: str = ""
    remedy: str = ""

    def text(self) -> str:
        """Give the fault in one line for people."""
        parts = [f"line {self.line}: {self.field}: {self.problem}"]
        if self.value:
            parts.append(f" (is {self.value[:80]!r})")
        if self.bound:
            parts.append(f"; allowed: {self.bound}")
        if self.remedy:
            parts.append(f"; {self.remedy}")
        return "".join(parts)


@dataclass(slots=True)
class Faults:
    """Collect faults while reading goes on, so that all of them are named at once."""

    found: list[Fault] = field(default_factory=list)
    more: int = 0

    def add(self, line: int, path: str, problem: str, *, value: str = "", bound: str = "", remedy: str = "") -> None:
        """Add a fault, once; beyond FAULTS_MAX it only counts."""
        fault = Fault(line=line, field=path, problem=problem, value=value, bound=bound, remedy=remedy)
        if fault in self.found:
            return
        if len(self.found) >= FAULTS_MAX:
            self.more += 1
            return
        self.found.append(fault)

    def in_order(self) -> tuple[Fault, ...]:
        """Give the faults in line order."""
        return tuple(sorted(self.found))
