# ruff: noqa: PYI021  # a native module has no other place where its readers look
"""Types of the native data plane, written in Rust (crates/sidecar-py): bytes in and out, no rule lives here.

Every method releases the GIL while it works and may be called from any thread. None of them waits for the network
or the disk, except ``start`` (reads the usage log) and ``stop`` (joins the data plane's threads).
"""

from typing import final

@final
class DataPlane:
    """One running data plane: listeners, engine, usage log and shipper, on threads of their own."""

    @staticmethod
    def start(config_json: str) -> DataPlane:
        """Start the data plane and return once its listeners are bound.

        ``config_json`` is one JSON object; an unknown key is refused. Keys:

        - ``listen``: ``"host:port"`` of the gRPC listener, or null for none. Port 0 takes a free one.
        - ``socket``: path of the Unix socket, or null for none. Made with mode 0600; a socket that somebody still
          listens on is an error, a stale one is replaced.
        - ``usage_log_dir``: directory of the usage log (required).
        - ``usage_log_bytes``: room for the log, default 1 GiB.
        - ``embedded``: whether a scaled clock is believed, default false.
        - ``waiting_max``: checks that may wait for units at once, default 10,000.
        - ``keys_max``: keys of limits kept in memory, default 1,000,000; idle ones give way, live ones never.
        - ``redis_budget_us``, ``ledger_budget_us``, ``proof_age_us``: budgets of a waiting check in real
          microseconds, default 5,000, 100,000 and 100,000.
        - ``ship_interval_ms``: longest time that a record waits for its batch, default 1,000 (at most 60,000).
        - ``welcome_wait_ms``: a ledger that has not introduced itself for so long after the start counts as away,
          default 5,000 (at most 600,000); one that can't be connected to counts so at once where there is a snapshot.

        Raises ValueError for a bad configuration and OSError where an address can't be bound or the usage log can't
        be opened.
        """

    def fd(self) -> int:
        """Return the eventfd that becomes readable when commands wait; ``take_commands`` makes it unreadable again.

        The descriptor belongs to the data plane: watch it, neither read nor close it.
        """

    def take_commands(self) -> bytes:
        """Take every waiting command as one encoded ``tollkeeper.bridge.v1.CommandBatch``; empty when there is none.

        Exactly one answer with each command's id must come back through ``give_answers``. On a new watch stream the
        first ``watch`` command to send is the one that carries a hello; ``watch`` commands that were taken for an
        earlier stream are answered UNREACHABLE instead of being sent before it.
        """

    def give_answers(self, batch: bytes) -> None:
        """Hand over an encoded ``tollkeeper.bridge.v1.AnswerBatch``: answers to commands, and news (id 0).

        Answers with unknown ids are counted and dropped. Raises ValueError when the bytes can't be decoded (nothing
        is taken then).
        """

    def addresses(self) -> str:
        """Return where it listens, as a JSON object ``{"tcp": "127.0.0.1:8601" | null, "socket": path | null}``."""

    def stats(self) -> str:
        """Return a snapshot of its counters as a JSON object, for the health endpoint.

        Keys: ``ready``, ``draining``, ``watch_up``, ``redis_alive``, ``checks``, ``admitted``, ``denied`` (object by
        reason), ``errors`` (object by reason), ``waiting``, ``keys``, ``keys_resting``, ``keys_refused``,
        ``uncovered_units``, ``limits`` (by name: units asked, ``within``, ``near``, ``over``), ``decisions``
        (of limits: ``told`` to the ledger, ``left_out`` of single ones for want of room, ``lost``),
        ``reservations_open``,
        ``records``, ``log`` (``fill_percent``, ``unshipped_records``,
        ``lag_ms``, ``full_in_ms`` (null while it doesn't grow), ``used_bytes``, ``capacity_bytes``, ``io_errors``),
        ``latency_us`` (``count``, ``p50``, ``p99``, ``buckets`` as log2 counts), ``commands`` (``outstanding``,
        ``late_answers``), ``producer_id``, ``holder`` (hex), ``ledger_time_us``,
        ``shipping`` (``batches``, ``duplicates``, ``conflicts``, ``quarantined``, ``fenced``, ``forked``, ``rewinds``,
        ``lost``, ``answers_lost``, ``skipped``, ``refused_seq``, ``last_error``), ``snapshot`` (``start``: USED,
        NOT_NEEDED, or why there was none to start from; ``written``, ``failures``), ``bad_messages`` and
        ``last_bad_message`` (of the ledger or the control plane).
        """

    def begin_drain(self) -> None:
        """Begin a clean stop: health says NOT_SERVING, leases go back, the usage log is shipped to its end.

        Calls are still answered. Repeating it changes nothing. Go on carrying commands until ``drained``.
        """

    def drained(self) -> bool:
        """Return whether a drain has finished: no units are held, no command is outstanding, no record is unshipped."""

    def stop(self) -> None:
        """Stop listeners and threads at once. Repeating it changes nothing; nothing that was acknowledged is lost."""

def measure_checks(target: str, tenant: str, meter: str, checks: int, rate: int) -> str:
    """Send unary checks of one unit at ``rate`` a second from the calling thread and return their latencies as JSON.

    ``target`` is ``unix:PATH`` or ``host:port``. Keys: ``checks``, ``denied``, ``p50_us``, ``p99_us``, ``max_us``
    (microseconds from when each check was due) and ``late`` (checks sent after the next one was due). Blocks for about
    ``checks / rate`` seconds. Raises OSError when the target can't be reached or a check fails.
    """

def measure_load(plan_json: str) -> str:
    """Load sidecars with checks on streams and with unary calls; return what the callers were told, as a JSON array.

    ``plan_json`` is ``{"flows": [...], "calls": [...], "seconds": 10}``; all run at the same time and end after so
    long, done or not. A flow has ``target`` (``unix:PATH`` or ``host:port``), ``tenant``, ``meter``, and optionally
    ``attributes``, ``units`` (of the checks in turn, default 1 each), ``checks`` (0 = as many as there is time for),
    ``rate`` (checks a second, 0 = as fast as answers come), ``in_flight`` (default 256) and ``insists`` (a check that
    was denied without an authority is sent again). A stream that breaks is opened again; what was in flight on it
    counts as ``unanswered`` and is not repeated.

    Each flow's result, in the plan's order, has ``sent``, ``repeated``, ``unanswered``, ``errors`` and ``decisions``
    (counts by reason), ``admitted_units``, ``admitted_by_window`` (units by the start of the binding limit's window,
    Unix microseconds), ``reopened``, ``unreachable_first_ms``, ``unreachable_last_ms``, ``admitted_last_ms`` (from the
    start, or null), ``p50_us``, ``p99_us`` and ``max_us`` (from sending to answer).

    An item of ``calls`` has ``target``, ``method`` (``/package.Service/Method``), and optionally ``message`` (encoded,
    in base64), ``calls`` (0 = as many as there is time for), ``rate`` (calls a second, begun when they are due whatever
    became of earlier ones; 0 = as answers come) and ``in_flight`` (without a rate, default 32). Its result, after those
    of the flows, has ``errors`` (counts by status code), ``answers`` (counts by length in bytes), ``took_us`` and
    ``latencies_us`` of each answered call: with a rate from when it was due, else from when it was sent.

    Raises ValueError for a plan that can't be read, OSError where a target is no address or nobody answers calls there.
    """
