"""Starts a sidecar: `python -m tollkeeper_sidecar`, or the command `tollkeeper-sidecar`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from typing import TYPE_CHECKING

from tollkeeper_sidecar import config, native
from tollkeeper_sidecar.config import ConfigurationError

if TYPE_CHECKING:
    from tollkeeper_sidecar.config import Settings
    from tollkeeper_sidecar.plane import DataPlane

EXIT_OK, EXIT_PROBLEM, EXIT_USAGE = 0, 1, 2


def main() -> None:
    """Run a sidecar until SIGTERM or SIGINT; exit 0 after a clean stop, 1 after another end, 2 for a wrong setting."""
    sys.exit(_main())


def _main() -> int:
    try:
        settings = config.load()
        plane = native.start(settings.native_json())
    except (ConfigurationError, ValueError, OSError) as error:
        _say(f"can't start:\n{str(error) or type(error).__name__}")
        return EXIT_USAGE if isinstance(error, ConfigurationError | ValueError) else EXIT_PROBLEM
    try:
        if asyncio.run(_control(plane, settings)):
            return EXIT_OK
        _say(f"stopped before everything was given back and shipped: that took longer than {settings.drain_s} s")
    except asyncio.CancelledError:
        _say("stopped at once: it was told a second time while it gave back what it held")
    except OSError as error:
        _say(f"can't go on:\n{str(error) or type(error).__name__}")
    finally:
        plane.stop()
    return EXIT_PROBLEM


def _say(text: str) -> None:
    """Write to stderr; where that can't be written, a full volume say, the exit code has to do."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"tollkeeper-sidecar {text}\n")
        sys.stderr.flush()


async def _control(plane: DataPlane, settings: Settings) -> bool:
    # The data plane answers already: grpc and redis are imported beside it, not before it.
    from tollkeeper_sidecar import control, logs  # noqa: PLC0415

    logs.configure(settings.log_level)
    logs.logger(__name__).info("data plane serves", addresses=plane.addresses())
    if settings.sidecar_nice:
        # Linux keeps niceness per thread: this lowers the control plane alone, since the data plane's threads exist
        # already and keep theirs. Where cores are shared, a busy control plane then can't delay a check.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), settings.sidecar_nice)
    stopping = asyncio.Event()
    control.stop_on_signals(stopping)
    return await control.run(plane, settings, stopping=stopping)
