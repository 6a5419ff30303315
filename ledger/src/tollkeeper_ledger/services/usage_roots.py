"""Sign the heads of the chain, and keep what was signed outside of Postgres as well."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tollkeeper_ledger.domain.periods import to_us
from tollkeeper_ledger.domain.usage_proof import SignedRoot, read_statement, root_statement
from tollkeeper_ledger.store import usage_roots as store
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tollkeeper_ledger.domain.usage_proof import Head
    from tollkeeper_ledger.store.pool import Pool

KEY_FILE = "signing-key.pem"
PUBLIC_FILE = "signing-key.pub"
ROOTS_FILE = "roots.jsonl"
_KEY_BYTES = 32


class RootSigner:
    """Sign roots with a key in a directory of this ledger's own; one process a directory."""

    def __init__(self, pool: Pool, directory: Path, *, installation_id: bytes) -> None:
        self._pool = pool
        self._directory = directory
        self._installation_id = installation_id
        self._key: Ed25519PrivateKey | None = None

    async def tick(self) -> bool:
        """Sign the heads where they have moved since the newest root; say whether they had.

        The line outside is on disk before the row in Postgres is committed, so Postgres never knows a root alone.
        """
        if self._key is None:
            self._key = await asyncio.to_thread(open_key, self._directory)
        async with transaction(self._pool) as conn:
            heads = await store.read_heads(conn)
            newest = await store.last_root(conn)
            if not heads or (newest is not None and _says(newest, heads)):
                return False
            now = await ledger_now(conn)
            statement = root_statement(installation_id=self._installation_id, signed_us=to_us(now), heads=heads)
            root = SignedRoot(statement, self._key.sign(statement), raw_public_key(self._key))
            await asyncio.to_thread(_append, self._directory / ROOTS_FILE, root)
            await store.add_root(conn, root, at=now)
        return True


def _says(root: SignedRoot, heads: Sequence[Head]) -> bool:
    """Say whether a root is about these heads; one that was changed is about none, and another is signed."""
    try:
        return read_statement(root.statement)[1] == list(heads)
    except ValueError:
        return False


def open_key(directory: Path) -> Ed25519PrivateKey:
    """Give the directory's signing key, made on the first call and readable by its owner only.

    Raises TypeError where the file holds another kind of key.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / KEY_FILE
    if not file.exists():
        key = Ed25519PrivateKey.generate()
        encoded = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            os.write(handle, encoded)
            os.fsync(handle)
        finally:
            os.close(handle)
        (directory / PUBLIC_FILE).write_text(raw_public_key(key).hex() + "\n")
        return key
    found = serialization.load_pem_private_key(file.read_bytes(), password=None)
    if not isinstance(found, Ed25519PrivateKey):
        raise TypeError(f"{file} holds no Ed25519 key")
    return found


def raw_public_key(key: Ed25519PrivateKey) -> bytes:
    """Give the public key's 32 bytes."""
    return key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def is_signed(root: SignedRoot) -> bool:
    """Say whether the root's key signed its statement."""
    try:
        Ed25519PublicKey.from_public_bytes(root.public_key).verify(root.signature, root.statement)
    except (InvalidSignature, ValueError):
        return False
    return True


def read_roots_file(directory: Path) -> list[SignedRoot]:
    """Give the roots that are kept outside of Postgres. Lines that a crash has torn are left out: nobody saw those."""
    file = directory / ROOTS_FILE
    if not file.exists():
        return []
    found = (_read_line(line) for line in file.read_bytes().split(b"\n"))
    return [root for root in found if root is not None]


def _read_line(line: bytes) -> SignedRoot | None:
    try:
        told = json.loads(line)
        return SignedRoot(
            statement=told["statement"].encode(),
            signature=bytes.fromhex(told["signature"]),
            public_key=bytes.fromhex(told["public_key"]),
        )
    except (ValueError, KeyError, TypeError):
        return None


def _append(file: Path, root: SignedRoot) -> None:
    line = {
        "public_key": root.public_key.hex(),
        "signature": root.signature.hex(),
        "statement": root.statement.decode(),
    }
    with file.open("ab+") as stream:
        # A line that a crash has torn is ended first.
        if stream.seek(0, os.SEEK_END) and _last_byte(file) != b"\n":
            stream.write(b"\n")
        stream.write(json.dumps(line, sort_keys=True).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def _last_byte(file: Path) -> bytes:
    with file.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1)
