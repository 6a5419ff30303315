"""Starts a sidecar: `python -m tollkeeper_sidecar`, or the command `tollkeeper-sidecar`.

The data plane serves as soon as settings are read. Everything else, asyncio, gRPC and Redis, is imported beside it by
`process`; what may be loaded before is listed in `test_start.py`.
"""

from __future__ import annotations

import sys

from tollkeeper_sidecar import config, native

EXIT_OK, EXIT_PROBLEM, EXIT_USAGE = 0, 1, 2


def main() -> None:
    """Run a sidecar until SIGTERM or SIGINT; exit 0 after a clean stop, 1 after another end, 2 for a wrong setting."""
    sys.exit(_main())


def _main() -> int:
    try:
        settings = config.load()
        plane = native.start(settings.native_json())
    except (config.ConfigurationError, ValueError, OSError) as error:
        _say(f"can't start:\n{str(error) or type(error).__name__}")
        return EXIT_USAGE if isinstance(error, config.ConfigurationError | ValueError) else EXIT_PROBLEM
    try:
        from tollkeeper_sidecar import process  # noqa: PLC0415 - calls are answered already; its imports take long

        problem = process.run(plane, settings)
    finally:
        plane.stop()
    if problem:
        _say(problem)
    return EXIT_PROBLEM if problem else EXIT_OK


def _say(text: str) -> None:
    """Write to stderr; where that can't be written, a full volume say, the exit code has to do."""
    try:
        sys.stderr.write(f"tollkeeper-sidecar {text}\n")
        sys.stderr.flush()
    except OSError:
        pass
