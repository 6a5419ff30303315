"""Write files that are whole or not there."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tollkeeper_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """Give a file to write to, which takes the name when the block has ended well and is gone when it has not.

    What is no ordinary file, such as a pipe, is written to as it is. Raises UsageError where that can't be done.
    """
    part = file if file.exists() and not file.is_file() else file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        yield part
        if part != file:
            part.replace(file)
    except OSError as error:
        raise UsageError(f"{file}: {error}") from error
    finally:
        if part != file:
            with suppress(OSError):
                part.unlink(missing_ok=True)
