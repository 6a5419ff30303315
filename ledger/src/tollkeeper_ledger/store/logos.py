"""Sellers' logos, kept under their digests, so that an invoice can be printed again as it was."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING

from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from tollkeeper_ledger.store.pool import Connection


def logo_digest(svg: str) -> bytes:
    """Give the name of a logo: SHA-256 over its text in UTF-8."""
    return sha256(svg.encode()).digest()


async def keep_logo(conn: Connection, svg: str) -> None:
    """Keep a logo for as long as invoices may name it."""
    await conn.execute(sql("catalogue.keep_logo"), logo_digest(svg), svg)


async def logo_of(conn: Connection, document: bytes) -> str:
    """Give the logo that an invoice or credit note names, as SVG; empty where it names none."""
    digest = json.loads(document)["seller"].get("logo", "")
    if not digest:
        return ""
    svg: str = await conn.fetchval(sql("catalogue.logo"), bytes.fromhex(digest))
    return svg
