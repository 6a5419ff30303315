"""Read YAML into a located tree: scalars stay text, so that no number ever becomes a float.

Refuses what a catalogue never needs and an attacker does: anchors and aliases, tags, several documents, deep nesting,
more than 512 KiB.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import yaml

from tollkeeper_ledger.domain.catalogue.tree import Entry, Listing, Node, Scalar, Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tollkeeper_ledger.domain.catalogue.faults import Faults

SOURCE_BYTES_MAX = 512 * 1024
DEPTH_MAX = 20
NODES_MAX = 200_000

_PLAIN_TAGS = {None, "tag:yaml.org,2002:str", "!"}
_EMPTY = Table(entries=(), line=1)


@dataclass(slots=True)
class _Open:
    """A list or table that is being read."""

    line: int
    is_table: bool
    items: list[Node] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    key: Scalar | None = None


class _UnreadableError(Exception):
    """Stop reading: nothing after this can be understood."""


def read_source(text: str, faults: Faults) -> Node:
    """Read YAML text. Where `faults` is not empty afterwards, the tree may be incomplete."""
    size = len(text.encode("utf-8", errors="surrogatepass"))
    if size > SOURCE_BYTES_MAX:
        faults.add(1, "yaml", "is too long", value=f"{size} bytes", bound=f"up to {SOURCE_BYTES_MAX} bytes")
        return _EMPTY
    builder = _Builder(faults)
    try:
        for event in _events(text):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # The end of a file without a last newline counts as a line of its own.
        line = min(mark.line, text.count("\n")) + 1 if mark is not None else 1
        faults.add(line, "yaml", f"is not YAML: {error.problem or error.context or 'unreadable'}")
    except yaml.YAMLError as error:
        faults.add(1, "yaml", f"is not YAML: {str(error).splitlines()[0][:120]}", remedy="write it as UTF-8 text")
    except _UnreadableError:
        pass
    if builder.root is None and not faults.found:
        faults.add(1, "yaml", "is empty", remedy="begin with `version: 1`")
    return builder.root if builder.root is not None else _EMPTY


def _events(text: str) -> Iterator[yaml.Event]:
    loader = yaml.CSafeLoader(text) if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader(text)
    try:
        while loader.check_event():
            event = loader.get_event()
            if event is not None:
                yield event
    finally:
        loader.dispose()


class _Builder:
    """Build the tree from parser events without recursion, so that depth costs no stack."""

    def __init__(self, faults: Faults) -> None:
        self.root: Node | None = None
        self._faults = faults
        self._open: list[_Open] = []
        self._nodes = 0

    def take(self, event: yaml.Event) -> None:
        """Take one event in."""
        line = event.start_mark.line + 1 if event.start_mark is not None else 1
        if isinstance(event, yaml.NodeEvent):
            self._count(line)
            if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
                self._stop(line, "uses anchors or aliases", remedy="write the values out")
            if getattr(event, "tag", None) not in _PLAIN_TAGS:
                self._stop(line, "uses tags", remedy="remove the tag")
        match event:
            case yaml.ScalarEvent():
                self._put(Scalar(text=event.value, line=line, plain=not event.style))
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                if len(self._open) >= DEPTH_MAX:
                    self._stop(line, "is nested too deep", bound=f"up to {DEPTH_MAX} levels")
                self._open.append(_Open(line=line, is_table=isinstance(event, yaml.MappingStartEvent)))
            case yaml.SequenceEndEvent():
                opened = self._open.pop()
                self._put(Listing(items=tuple(opened.items), line=opened.line))
            case yaml.MappingEndEvent():
                opened = self._open.pop()
                self._put(Table(entries=tuple(opened.entries), line=opened.line))
            case yaml.DocumentStartEvent() if self.root is not None:
                self._stop(line, "has several documents", remedy="keep one")
            case _:
                pass

    def _put(self, node: Node) -> None:
        if not self._open:
            self.root = node
            return
        parent = self._open[-1]
        if not parent.is_table:
            parent.items.append(node)
        elif parent.key is None:
            if not isinstance(node, Scalar):
                self._stop(node.line, "has a field name that is not a single value")
            else:
                parent.key = node
        else:
            parent.entries.append(Entry(name=parent.key.text, line=parent.key.line, value=node))
            parent.key = None

    def _count(self, line: int) -> None:
        self._nodes += 1
        if self._nodes > NODES_MAX:
            self._stop(line, "has too many values", bound=f"up to {NODES_MAX}")

    def _stop(self, line: int, problem: str, *, bound: str = "", remedy: str = "") -> None:
        self._faults.add(line, "yaml", problem, bound=bound, remedy=remedy)
        raise _UnreadableError
