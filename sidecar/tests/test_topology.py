"""Redis URLs, and who holds which keys in them."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from tollkeeper_sidecar.redis_topology import Cluster, Layout, OneServer, Sentinels, Server, _parse_nodes, locator_of


@pytest.mark.parametrize(
    ("url", "name", "kind"),
    [
        ("redis://h:1/0", "h:1", Connection),
        ("unix:///run/x.sock", "/run/x.sock", UnixDomainSocketConnection),
        ("rediss://u:p@h:1", "h:1", SSLConnection),
    ],
)
async def test_one_server(url: str, name: str, kind: type[Any]) -> None:
    """TCP, TLS and Unix sockets are told apart by the URL; connections never retry."""
    (server,) = (await locator_of(url, socket_timeout=None).locate()).primaries
    connection = server.connection()
    assert (name, kind, 0, None) == (
        server.name,
        type(connection),
        connection.retry._retries,
        connection.socket_timeout,
    )


def test_sentinels() -> None:
    """Sentinels come with a master's name; its credentials are not theirs."""
    found = locator_of("rediss+sentinel://u:p@a:1,b/main?db=3&sentinel_password=s", protocol=2)
    assert isinstance(found, Sentinels)
    assert [server.name for server in found._sentinels] == ["a:1", "b:26379"]
    assert [server.options.get("username") for server in found._sentinels] == [None, None]
    assert {server.options["password"] for server in found._sentinels} == {"s"}
    master = found.server_at("m", 7)
    assert (master.kind, master.name) == (SSLConnection, "m:7")
    assert {"username": "u", "password": "p", "db": 3, "protocol": 2}.items() <= master.options.items()


def test_cluster() -> None:
    """Every node of a cluster is reached with the credentials of the URL."""
    found = locator_of("redis+cluster://u:p@a:1,b:2")
    assert isinstance(found, Cluster)
    assert [(server.name, server.options["password"]) for server in found._seeds] == [("a:1", "p"), ("b:2", "p")]
    assert found.server_at("c", 3).options["password"] == "p"  # noqa: S105 - the test's own


@pytest.mark.parametrize(
    "url", ["http://h", "h:1", "redis+sentinel://h:1", "redis+cluster://h:1/m", "redis+cluster://", "unix+cluster:///s"]
)
def test_bad_urls_name_the_forms(url: str) -> None:
    """What can't be understood is refused with what can."""
    with pytest.raises(ValueError, match=r"redis\+sentinel://"):
        locator_of(url)


def test_nodes_are_read_as_the_server_writes_them() -> None:
    """Replicas hold nothing, slots under way belong to their source, and nodes without an address are left out."""
    asked = OneServer(Connection, {}).server_at("seed", 1)
    text = (
        "a1 :7000@17000 myself,master - 0 0 4 connected 0-5460 9000 [93->-b2]\n"
        "b2 10.0.0.2:7001@17001,name master,fail - 0 0 7 disconnected 5461-8999\n"
        "c3 [::1]:7002@17002 slave a1 0 0 4 connected\n"
        "d4 :0@0 master,noaddr - 0 0 0 disconnected 9001\n"
    )
    nodes = _parse_nodes(asked, text)
    assert [(node.host, node.port) for node in nodes] == [("seed", 7000), ("10.0.0.2", 7001), ("::1", 7002)]
    assert [node.spans for node in nodes] == [((0, 5460), (9000, 9000)), ((5461, 8999),), ()]
    assert [node.epoch for node in nodes] == [4, 7, 4]


def test_a_slot_without_an_owner_has_none() -> None:
    """Keys of a slot that nobody holds are nobody's, at every edge of a span."""
    server = Server("s:1", Connection, {})
    layout = Layout((server,), ((1, 12181, server), (12183, 16383, server)))
    assert layout.owner_of("foo") is None, "slot 12182"
    assert layout.owner_of("{foo}x") is None
    assert layout.owner_of("bar") == server, "slot 5061"
