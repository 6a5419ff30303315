"""Render an invoice document to PDF with typst: embedded and shipped fonts only, no network, no system state."""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Any

import typst

from tollkeeper_ledger.domain.periods import to_us
from tollkeeper_ledger.services.pdf.texts import invoice_texts

if TYPE_CHECKING:
    from pathlib import Path

PAPERS = {"a4": "a4", "letter": "us-letter"}
"""Names of papers as callers and typst have them."""


def render_pdf(
    document: bytes, *, digest: bytes, paper: str = "", logo: str = "", is_void: bool = False, fonts: str = ""
) -> bytes:
    """Give the PDF of an invoice's canonical bytes: the same bytes every time. Takes time: run in a thread.

    `paper`: one of PAPERS; empty: the payer's. `logo`: the SVG that the document names. `is_void`: the page says that
    the invoice counts no more. `fonts`: a folder with fonts for letters that the shipped ones lack.

    Raises KeyError for a paper that is not in PAPERS.
    """
    texts = _texts(document, digest=digest, paper=paper, is_void=is_void)
    pdf: bytes = _compile(document, texts, logo=logo, fonts=fonts, extra={})
    return pdf


def render_png(document: bytes, *, digest: bytes, paper: str = "", logo: str = "", ppi: int = 110) -> list[bytes]:
    """Give the pages as PNG, for previews and for looking at."""
    extra = {"format": "png", "ppi": ppi}
    texts = _texts(document, digest=digest, paper=paper, is_void=False)
    pages = _compile(document, texts, logo=logo, fonts="", extra=extra)
    return [pages] if isinstance(pages, bytes) else list(pages)


def _texts(document: bytes, *, digest: bytes, paper: str, is_void: bool) -> str:
    read = json.loads(document)
    paper = PAPERS[paper or read["billing"]["paper"]]
    return json.dumps(invoice_texts(read, digest=digest.hex(), paper=paper, is_void=is_void))


def _compile(document: bytes, texts: str, *, logo: str, fonts: str, extra: dict[str, Any]) -> Any:
    read = json.loads(document)
    finalised_at = datetime.fromisoformat(read["finalised_at"] or read["period"]["start"])
    with as_file(files("tollkeeper_ledger.services.pdf")) as folder:
        return typst.compile(
            str(_template(folder)),
            root=str(folder),
            font_paths=_fonts(str(folder / "fonts"), *([fonts] if fonts else [])),
            sys_inputs={"invoice": texts, "logo": logo},
            timestamp=to_us(finalised_at) // 1_000_000,
            **extra,
        )


@lru_cache(maxsize=4)
def _fonts(*folders: str) -> typst.Fonts:
    """Read fonts once for a process: to find them anew took a quarter of a short invoice's time."""
    return typst.Fonts(include_system_fonts=False, font_paths=list(folders))


def _template(folder: Path) -> Path:
    return folder / "invoice.typ"
