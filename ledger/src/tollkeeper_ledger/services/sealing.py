"""Encrypt secrets that Postgres keeps, under a key that it does not have."""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tollkeeper_ledger.config import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from tollkeeper_ledger.config import Settings

KEY_BYTES = 32
_SEALED = "aes256gcm:"
_NONCE_BYTES = 12


class SealedError(Exception):
    """Say that a secret is encrypted under a key that this process does not have."""


class Sealer:
    """Encrypts with the first of its keys and decrypts with any; without keys secrets are kept as they are."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        self._ciphers = [AESGCM(key) for key in keys]

    def seal(self, secret: str, *, about: UUID) -> str:
        """Give a secret as it is stored for whatever has this id, and for nothing else."""
        if not self._ciphers:
            return secret
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._ciphers[0].encrypt(nonce, secret.encode(), about.bytes)
        return _SEALED + base64.b64encode(nonce + sealed).decode()

    def open(self, stored: str, *, about: UUID) -> str:
        """Give the secret of what is stored; what was stored without a key is it. Raises SealedError."""
        if not stored.startswith(_SEALED):
            return stored
        sealed = base64.b64decode(stored.removeprefix(_SEALED))
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], about.bytes).decode()
            except InvalidTag:
                continue
        raise SealedError(f"no key opens the secret of {about}: give TOLLKEEPER_WEBHOOK_KEY, older keys behind it")

    def open_some(self, stored: Sequence[str], *, about: UUID) -> list[str]:
        """Give those of the secrets that a key opens, in order. Raises SealedError where none of them does."""
        opened = []
        problem: SealedError | None = None
        for one in stored:
            try:
                opened.append(self.open(one, about=about))
            except SealedError as error:
                problem = error
        if problem is not None and not opened:
            raise problem
        return opened


def webhook_sealer(settings: Settings) -> Sealer:
    """Give what encrypts webhooks' secrets. Raises ConfigurationError."""
    if settings.webhook_key is None:
        return Sealer()
    return Sealer([_key(part.strip()) for part in settings.webhook_key.get_secret_value().split(",")])


def _key(text: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        # Nothing of the value, nor of what is wrong with it: it is a secret.
        raise ConfigurationError("TOLLKEEPER_WEBHOOK_KEY: each key is base64 of 32 bytes, as `openssl rand -base64 32`")
    return key
