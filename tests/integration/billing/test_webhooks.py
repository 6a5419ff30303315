# ruff: noqa: SIM300 - expected first, then actual
"""Alerts go to receivers signed, under one id however often, until they are taken; only to addresses that may be."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import uuid
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from alert_support import LOG, opened
from pydantic import SecretStr
from rpc_support import client_of, refused
from tollkeeper.ledger.v1 import admin_pb2
from tollkeeper_ledger.config import ConfigurationError, Settings
from tollkeeper_ledger.domain.webhooks import WAITS_S, is_public, secret_text, signatures, url_fault
from tollkeeper_ledger.payments.webhook_http import WebhookHttp
from tollkeeper_ledger.services.sealing import KEY_BYTES, SealedError, Sealer, webhook_sealer
from tollkeeper_ledger.services.webhooks import WebhookSender
from tollkeeper_ledger.store import webhooks as store
from tollkeeper_ledger.store.pool import transaction
from usage_bench import superuser
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg
    from billing_bench import BillingBench

pytestmark = pytest.mark.asyncio
PLAIN = Sealer()
KEYS = [base64.b64encode(bytes([at]) * 32).decode() for at in (1, 2)]


class Receiver:
    """An HTTP server that keeps what it is sent and answers what is next; 204 where nothing is said."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int | str] = []
        self.url = ""
        self.hold = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take one request."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            rows = [line.partition(": ") for line in head.split("\r\n")[1:] if line]
            headers = {name.lower(): value for name, _, value in rows}
            self.got.append((headers, await reader.readexactly(int(headers["content-length"]))))
            answer = self.answers.pop(0) if self.answers else 204
            if answer == "hang":
                await self.hold.wait()
            elif answer != "close":
                where = "Location: http://127.0.0.1:1/\r\n" if answer == 302 else ""
                writer.write(f"HTTP/1.1 {answer} Said\r\n{where}Content-Length: 5\r\n\r\nsaid\n".encode())
                await writer.drain()
        finally:
            writer.close()


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """Run a receiver."""
    receiver = Receiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?x=1"
    try:
        yield receiver
    finally:
        receiver.hold.set()
        server.close()


class Post:
    """Receivers of a bench's alerts, and a worker with a clock that tests move."""

    def __init__(self, bench: BillingBench, sealer: Sealer = PLAIN) -> None:
        self.bench = bench
        self.sealer = sealer
        self.now = datetime.now(UTC) + timedelta(days=1)

    def sender(self, *, private: bool = True, timeout_s: float = 60.0) -> WebhookSender:
        """Give a worker."""
        http = WebhookHttp.connect(private=private, timeout_s=timeout_s)
        return WebhookSender(self.bench.billing, http, lambda: self.now, LOG, self.sealer)

    async def add(self, url: str, *, only: uuid.UUID | None = None) -> tuple[uuid.UUID, str]:
        """Add a receiver and give its id and secret."""
        webhook_id, secret = uuid.uuid4(), secret_text(secrets.token_bytes(32))
        async with transaction(self.bench.billing) as conn:
            sealed = self.sealer.seal(secret, about=webhook_id)
            await store.add_webhook(conn, webhook_id, url=url, only=only, secret=sealed)
        return webhook_id, secret

    async def states(self) -> list[tuple[str, int, int]]:
        """Give state, tries and last status of each message."""
        rows = await self.bench.rows("SELECT state, tries, status FROM webhook_message ORDER BY state, tries, status")
        return [tuple(row) for row in rows]


def is_signed(headers: dict[str, str], body: bytes, secret: str) -> bool:
    """Verify a message as Standard Webhooks tells receivers to, in words of our own."""
    key = base64.b64decode(secret.split("_", 1)[1])
    signed = b".".join([headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body])
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return f"v1,{expected}" in headers["webhook-signature"].split(" ")


async def test_the_signature_is_the_standards() -> None:
    """The standard's published example: id, time, body, secret and signature."""
    signed = signatures(
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
        message_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        at_s=1_614_265_330,
        body=b'{"test": 2432232314}',
    )
    assert "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=" == signed


async def test_an_alert_is_posted_signed_with_each_secret(bench: BillingBench) -> None:
    """Its figures in the body, signed for that body alone; after a rotation old and new secret both verify."""
    async with opened(bench) as look, receiving() as receiver:
        post = Post(bench)
        webhook_id, old = await post.add(receiver.url)
        await look.use(500)
        await look.alerter.run_all()
        assert 1 == await post.sender().run_all()
        ((headers, body),) = receiver.got
        told = json.loads(body)
        assert ("alert.reached", "code", "tokens", "50%", "500") == (
            told["type"], *(told["data"][name] for name in ("tenant", "subject", "threshold", "value")),
        )  # fmt: skip
        assert is_signed(headers, body, old)
        assert not is_signed(headers, body + b" ", old)
        assert str(int(post.now.timestamp())) == headers["webhook-timestamp"]
        new = secret_text(secrets.token_bytes(32))
        async with transaction(bench.billing) as conn:
            assert await store.rotate_secret(conn, webhook_id, secret=new)
        await look.use(500)
        await look.alerter.run_all()
        assert 2 == await post.sender().run_all()
        assert all(is_signed(headers, body, secret) for headers, body in receiver.got[1:] for secret in (old, new))
        assert 3 == len({headers["webhook-id"] for headers, _ in receiver.got})


async def test_stored_secrets_are_sealed_and_sign_what_is_sent(bench: BillingBench) -> None:
    """Postgres has no secret in the clear where there is a key; only a worker that has the key sends, and signs."""
    async with opened(bench) as look, receiving() as receiver:
        old, new = (webhook_sealer(settings_with(bench, keys)) for keys in (KEYS[0], f"{KEYS[1]}, {KEYS[0]}"))
        post = Post(bench, old)
        webhook_id, secret = await post.add(receiver.url)
        await look.use(500)
        await look.alerter.run_all()
        (stored,) = (await bench.rows("SELECT secrets FROM webhook"))[0]["secrets"]
        assert secret[6:] not in stored
        for stranger in (PLAIN, webhook_sealer(settings_with(bench, KEYS[1]))):
            with pytest.raises(SealedError):
                stranger.open(stored, about=webhook_id)
        with pytest.raises(SealedError):
            old.open(stored, about=uuid.uuid4())
        post.sealer = PLAIN
        assert 1 == await post.sender().run_all()
        assert ([], [("queued", 1, 0)]) == (receiver.got, await post.states())
        post.sealer, post.now = new, post.now + timedelta(hours=1)
        assert 1 == await post.sender().run_all()
        ((headers, body),) = receiver.got
        assert is_signed(headers, body, secret)
        assert old.seal(secret, about=webhook_id) != stored
        assert secret == new.open(secret, about=webhook_id)
        # The old key is lost: a rotation under another one is enough to send again.
        post.sealer, rotated = webhook_sealer(settings_with(bench, KEYS[1])), secret_text(secrets.token_bytes(32))
        async with transaction(bench.billing) as conn:
            sealed = post.sealer.seal(rotated, about=webhook_id)
            assert await store.rotate_secret(conn, webhook_id, secret=sealed)
            assert 1 == await store.replay(conn, now=post.now, message_id=message_of(headers), webhook_id=None)
        assert 1 == await post.sender().run_all()
        (_, (headers, body)) = receiver.got
        assert (True, False) == (is_signed(headers, body, rotated), is_signed(headers, body, secret))


def message_of(headers: dict[str, str]) -> uuid.UUID:
    """Give the id of a message that was sent."""
    return uuid.UUID(headers["webhook-id"].removeprefix("msg_"))


def settings_with(bench: BillingBench, keys: str) -> Settings:
    """Give a ledger's settings with keys for webhooks' secrets."""
    return Settings(database_url=bench.url, redis_url="redis://unused.invalid", webhook_key=SecretStr(keys))


@pytest.mark.parametrize(
    "keys", ["", "x", KEYS[0][:-4], f"{KEYS[0]},", base64.b64encode(bytes(KEY_BYTES + 1)).decode()]
)
async def test_a_key_that_is_none_is_refused_without_a_word_of_it(bench: BillingBench, keys: str) -> None:
    """No ledger starts with a key that it can't use, and none of its bytes are told."""
    with pytest.raises(ConfigurationError) as told:
        webhook_sealer(settings_with(bench, keys))
    assert "TOLLKEEPER_WEBHOOK_KEY" in str(told.value)
    assert len(keys) < 2 or keys not in str(told.value)


async def test_no_message_waits_for_a_receiver_that_is_removed(bench: BillingBench) -> None:
    """Whichever of both is first: what is queued beside the removal is given up, what comes after is not queued."""
    async with opened(bench) as look, receiving() as receiver:
        post = Post(bench)
        (first, _), (second, _) = [await post.add(receiver.url) for _ in range(2)]
        await look.use(500)
        await look.alerter.run_all()
        rows = await bench.rows("DELETE FROM webhook_message RETURNING tenant_id, webhook_id, alert_id, body")
        messages = {row["webhook_id"]: store.NewMessage(**row) for row in rows}
        async with transaction(bench.billing) as conn:
            await store.queue_messages(conn, [messages[first]], now=post.now)
            removal = asyncio.create_task(removed(bench, first))
            await wait_until(lambda: is_waiting(bench))
        assert await removal
        async with transaction(bench.billing) as conn:
            assert await store.remove_webhook(conn, second)
            queueing = asyncio.create_task(queued(bench, messages[second], post.now))
            await wait_until(lambda: is_waiting(bench))
        await queueing
        assert [("dead", 0, 0)] == await post.states()
        async with transaction(bench.billing) as conn:
            for message_id, webhook_id in ((None, first), ((await bench.rows(ONE_MESSAGE))[0]["message_id"], None)):
                assert 0 == await store.replay(conn, now=post.now, message_id=message_id, webhook_id=webhook_id)
        assert 0 == await post.sender().run_all()
        assert [] == receiver.got


ONE_MESSAGE = "SELECT message_id FROM webhook_message"
WAITS = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


async def removed(bench: BillingBench, webhook_id: uuid.UUID) -> bool:
    """Remove a receiver."""
    async with transaction(bench.billing) as conn:
        return await store.remove_webhook(conn, webhook_id)


async def queued(bench: BillingBench, message: store.NewMessage, now: datetime) -> None:
    """Queue a message."""
    async with transaction(bench.billing) as conn:
        await store.queue_messages(conn, [message], now=now)


async def is_waiting(bench: BillingBench) -> bool:
    """Tell whether somebody waits for a lock."""
    return bool(await bench.rows(WAITS))


async def test_what_is_not_taken_is_sent_again_under_the_same_id(bench: BillingBench) -> None:
    """500, a redirect, a closed line, no answer in time: the same id and bytes after each wait, until it is taken."""
    async with opened(bench) as look, receiving() as receiver:
        post = Post(bench)
        await post.add(receiver.url)
        await look.use(500)
        await look.alerter.run_all()
        receiver.answers = [500, 302, "close"]
        sender = post.sender()
        for tries, (status, wait) in enumerate(zip((500, 302, 0), WAITS_S, strict=False), start=1):
            assert 1 == await sender.run_all()
            assert [("queued", tries, status)] == await post.states()
            post.now += timedelta(seconds=wait - 1)
            assert 0 == await sender.run_all()
            post.now += timedelta(seconds=1)
        receiver.answers = ["hang"]
        assert 1 == await post.sender(timeout_s=0.3).run_all()
        assert [("queued", 4, 0)] == await post.states()
        receiver.answers.clear()
        post.now += timedelta(seconds=WAITS_S[3])
        assert 1 == await sender.run_all()
        assert [("sent", 5, 204)] == await post.states()
        assert 1 == len({(headers["webhook-id"], body) for headers, body in receiver.got})
        assert 0 == await sender.run_all()


async def test_what_a_worker_died_with_is_sent_again(bench: BillingBench) -> None:
    """Claimed and never ended: after two minutes it is another's, under the same id."""
    async with opened(bench) as look, receiving() as receiver:
        post = Post(bench)
        await post.add(receiver.url)
        await look.use(500)
        await look.alerter.run_all()
        async with transaction(bench.billing) as conn:
            claimed = await store.claim_message(conn, now=post.now, but=[])
        assert claimed is not None
        assert 0 == await post.sender().run_all()
        post.now += timedelta(minutes=2)
        assert 1 == await post.sender().run_all()
        assert f"msg_{claimed.message_id}" == receiver.got[0][0]["webhook-id"]
        assert [("sent", 2, 204)] == await post.states()


async def test_after_three_days_it_is_given_up_and_can_be_sent_again(bench: BillingBench) -> None:
    """Ten tries over more than three days, then dead; replayed by hand it goes out under the id it had."""
    assert timedelta(days=3) <= timedelta(seconds=sum(WAITS_S)) < timedelta(days=4)
    async with opened(bench) as look, receiving() as receiver:
        post = Post(bench)
        webhook_id, _ = await post.add(receiver.url)
        await look.use(500)
        await look.alerter.run_all()
        receiver.answers = [503] * (len(WAITS_S) + 1)
        sender = post.sender()
        for _ in range(len(WAITS_S) + 1):
            assert 1 == await sender.run_all()
            post.now += timedelta(days=1)
        assert 0 == await sender.run_all()
        assert [("dead", len(WAITS_S) + 1, 503)] == await post.states()
        async with transaction(bench.billing) as conn:
            assert 1 == await store.replay(conn, now=post.now, message_id=None, webhook_id=webhook_id)
        assert 1 == await sender.run_all()
        assert [("sent", 1, 204)] == await post.states()
        assert 1 == len({headers["webhook-id"] for headers, _ in receiver.got})


async def test_each_receiver_gets_each_alert_once_and_only_its_tenants(bench: BillingBench) -> None:
    """Many workers at once, several receivers: one request per receiver and alert; one tenant's gets no other's."""
    async with opened(bench) as look, receiving() as every, receiving() as one:
        post = Post(bench)
        tenants = {
            row["wire_id"]: row["tenant_id"] for row in await bench.rows("SELECT wire_id, tenant_id FROM tenant")
        }
        await post.add(every.url)
        await post.add(one.url, only=tenants["own"])
        await look.use(1000)
        await look.use(1000, tenant="own")
        await look.alerter.run_all()
        await asyncio.gather(*(post.sender().run_all() for _ in range(6)))
        assert ["code", "code", "code", "own", "own"] == sorted(
            json.loads(body)["data"]["tenant"] for _, body in every.got
        )
        assert ["own", "own"] == [json.loads(body)["data"]["tenant"] for _, body in one.got]


async def test_a_receiver_that_hangs_holds_up_no_other(bench: BillingBench) -> None:
    """While one is waited for, the others get theirs."""
    async with opened(bench) as look, receiving() as slow, receiving() as quick:
        post = Post(bench)
        slow.answers = ["hang"] * 10
        await post.add(slow.url)
        await post.add(quick.url)
        await look.use(1000)
        await look.alerter.run_all()
        loop = asyncio.create_task(post.sender(timeout_s=600).run())
        try:

            async def is_told() -> bool:
                return len(quick.got) == 3 and len(slow.got) == 1

            await wait_until(is_told)
        finally:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_nothing_is_sent_to_ones_own_network(bench: BillingBench, host: str) -> None:
    """By address or by a name that leads there: refused before a byte is sent, and told."""
    async with opened(bench) as look, receiving() as receiver:
        post = Post(bench)
        await post.add(receiver.url.replace("127.0.0.1", host))
        await look.use(500)
        await look.alerter.run_all()
        assert 1 == await post.sender(private=False).run_all()
        assert [] == receiver.got
        rows = await bench.rows("SELECT reply FROM webhook_message")
        assert [f"{host} leads to an address that is not public"] == [row["reply"] for row in rows]


async def test_which_addresses_are_public() -> None:
    """Private, link-local (metadata services), own, shared, multicast, and those that wrap an IPv4 address are not."""
    refused_ones = (
        "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.1", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "::ffff:10.0.0.1",
        "::ffff:127.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "2001:0:a00:1::", "ff02::1", "198.18.0.1", "192.0.2.1",
    )  # fmt: skip
    assert [] == [address for address in refused_ones if is_public(address)]
    assert [] == [address for address in ("1.1.1.1", "8.8.8.8", "2606:4700:4700::1111") if not is_public(address)]


@pytest.mark.parametrize(
    "url",
    [
        "", "http://example.com/", "ftp://example.com/", "https://", "https://u:p@example.com/", "https://a b/",
        "https://example.com:99999/", "https://[::1/", "https://127.0.0.1/", "https://[::1]/x", "https://10.1.2.3:8443/",
        "https://169.254.169.254/latest", "https://example.com/#f", "https://" + "a" * 2000,
    ],
)  # fmt: skip
async def test_a_url_that_no_webhook_may_have_is_refused(url: str) -> None:
    """Not https, somebody's password, no URL, or an address of one's own network."""
    assert url_fault(url, private=False)


async def test_a_lost_key_is_rotated_out(ledger_settings: Settings, own_database_url: str) -> None:
    """A ledger with another key tells no secret of the lost one, and gives the receiver one of its own key."""
    lost, found = (
        ledger_settings.model_copy(update={"database_url": own_database_url, "webhook_key": SecretStr(key)})
        for key in KEYS
    )
    create = admin_pb2.CreateWebhookRequest(request_id="a", url="https://example.com/hook")
    async with client_of(lost) as client:
        made: Any = await client.admin.CreateWebhook(create)
        assert made == await client.admin.CreateWebhook(create)
    async with superuser(own_database_url) as conn:
        assert made.secret[6:] not in await everything(conn)
    rotation = admin_pb2.RotateWebhookSecretRequest(request_id="b", webhook_id=made.webhook_id)
    async with client_of(found) as client:
        assert "" == (await client.admin.CreateWebhook(create)).secret
        rotated: Any = await client.admin.RotateWebhookSecret(rotation)
        assert rotated == await client.admin.RotateWebhookSecret(rotation)
    assert rotated.secret.startswith("whsec_")


TABLES = "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND NOT starts_with(relname, 'pg_')"


async def everything(conn: asyncpg.Connection) -> str:
    """Give every row of every table."""
    tables = [table for (table,) in await conn.fetch(TABLES)]
    queries = [f"SELECT one::text FROM {table} AS one" for table in tables]  # noqa: S608 - tables' names
    return "\n".join([row[0] for query in queries for row in await conn.fetch(query)])


async def test_a_secret_is_kept_nowhere_but_where_it_signs(ledger_settings: Settings, own_database_url: str) -> None:
    """No answer that is kept has it: a repeat hears it while it signs, and once rotated out or removed nobody does."""
    settings = ledger_settings.model_copy(update={"database_url": own_database_url})
    async with client_of(settings) as client, superuser(own_database_url) as conn:
        create = admin_pb2.CreateWebhookRequest(request_id="a", url="https://example.com/hook")
        made: Any = await client.admin.CreateWebhook(create)
        assert made == await client.admin.CreateWebhook(create)
        rotations = [
            admin_pb2.RotateWebhookSecretRequest(request_id=name, webhook_id=made.webhook_id) for name in ("b", "c")
        ]
        told = [made.secret]
        for rotation in rotations:
            told.append((await client.admin.RotateWebhookSecret(rotation)).secret)
            assert told[-1] == (await client.admin.RotateWebhookSecret(rotation)).secret
        assert 3 == len({secret for secret in told if secret.startswith("whsec_")})
        rotated_out: Any = await client.admin.CreateWebhook(create)
        assert (made.webhook_id, "") == (rotated_out.webhook_id, rotated_out.secret)
        assert told[1] == (await client.admin.RotateWebhookSecret(rotations[0])).secret
        forms = [form for secret in told for form in (secret[6:], secret.encode().hex())]
        assert [told[1][6:], told[2][6:]] == [form for form in forms if form in await everything(conn)]
        await client.admin.RemoveWebhook(admin_pb2.RemoveWebhookRequest(request_id="d", webhook_id=made.webhook_id))
        assert ["", ""] == [(await client.admin.RotateWebhookSecret(one)).secret for one in rotations]
        assert [] == [form for form in forms if form in await everything(conn)]


async def test_receivers_are_managed_over_the_contract(ledger_settings: Settings, own_database_url: str) -> None:
    """Created once per request, listed without secret, rotated, removed; unknown ones and bad URLs are refused."""
    settings = ledger_settings.model_copy(update={"database_url": own_database_url})
    async with client_of(settings) as client:
        request = admin_pb2.CreateWebhookRequest(request_id="a", url="https://example.com/hook")
        made: Any = await client.admin.CreateWebhook(request)
        assert made == await client.admin.CreateWebhook(request)
        assert made.secret.startswith("whsec_")
        rotated = await client.admin.RotateWebhookSecret(
            admin_pb2.RotateWebhookSecretRequest(request_id="b", webhook_id=made.webhook_id)
        )
        assert rotated.secret != made.secret
        (shown,) = (await client.admin.ListWebhooks(admin_pb2.ListWebhooksRequest())).webhooks
        assert ("https://example.com/hook", "", 2, 0) == (shown.url, shown.tenant, shown.secrets, shown.dead)
        again = admin_pb2.ReplayWebhookMessagesRequest(request_id="c", webhook_id=made.webhook_id)
        assert 0 == (await client.admin.ReplayWebhookMessages(again)).messages
        assert [] == list((await client.admin.ListWebhookMessages(admin_pb2.ListWebhookMessagesRequest())).messages)
        removal = admin_pb2.RemoveWebhookRequest(request_id="d", webhook_id=made.webhook_id)
        await client.admin.RemoveWebhook(removal)
        assert [] == list((await client.admin.ListWebhooks(admin_pb2.ListWebhooksRequest())).webhooks)
        for bad in (
            client.admin.RemoveWebhook(admin_pb2.RemoveWebhookRequest(request_id="e", webhook_id=made.webhook_id)),
            client.admin.RemoveWebhook(admin_pb2.RemoveWebhookRequest(request_id="f", webhook_id="x")),
            client.admin.CreateWebhook(admin_pb2.CreateWebhookRequest(request_id="g", url="https://10.0.0.1/")),
            client.admin.ListWebhookMessages(admin_pb2.ListWebhookMessagesRequest(state="lost")),
        ):
            _, info = await refused(bad)
            assert "FIELD_INVALID" == info.reason
