"""Words that users bring along, read as ours. Not shown in help; docs/glossary.md lists them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OPTIONS = {
    "--customer": "--tenant",
    "--enforcement-mode": "--enforcement",
    "--reset-period": "--window",
    "--service": "--meter",
    "--usage-type": "--meter",
}
GROUPS = {"customer": "tenant", "limit": "quota", "tier": "plan"}
_WITH_VALUE = {"--ledger", "--sidecar", "--actor"}


def with_our_words(arguments: Sequence[str]) -> list[str]:
    """Return a command line with options and the group's name as we call them. Values stay as they are."""
    return list(_translated(arguments))


def _translated(arguments: Sequence[str]) -> Iterator[str]:
    is_group_named = is_value = is_over = False
    for word in arguments:
        is_over = is_over or word == "--"
        name, equals, value = word.partition("=")
        if is_over or is_value:
            is_value = False
            yield word
        elif word.startswith("--"):
            is_value = name in _WITH_VALUE and not equals
            yield f"{OPTIONS.get(name, name)}{equals}{value}"
        elif not is_group_named and not word.startswith("-"):
            is_group_named = True
            yield GROUPS.get(word, word)
        else:
            yield word
