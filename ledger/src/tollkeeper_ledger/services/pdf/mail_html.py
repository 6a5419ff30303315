"""Give a mail's text a page: for programs that show HTML. No image, script or address but the one to pay at."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_FONT = "font-family:-apple-system,'Segoe UI',Helvetica,Arial,sans-serif"
_FACTS = "width:100%;font-size:14px;margin:18px 0"
_PAGE = """<!doctype html>
<html lang="{lang}"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">\
<title>{title}</title></head>
<body style="margin:0;padding:24px 12px;background:#f4f6f8;color:#1b2430;{font}">
<table role="presentation" width="100%" cellpadding="0" cellspacing="0"><tr><td align="center">
<table role="presentation" width="100%" cellpadding="0" cellspacing="0" \
style="max-width:560px;background:#fff;border-top:4px solid #0b5d5e;border-radius:4px;text-align:left">
<tr><td style="padding:28px 32px 8px;font-size:18px;font-weight:600;color:#0b5d5e;word-break:break-word">
{seller}</td></tr>
<tr><td style="padding:8px 32px 28px;font-size:15px;line-height:1.5;word-break:break-word">
{body}
</td></tr></table>
</td></tr></table>
</body></html>
"""
_BUTTON = (
    '<p style="margin:22px 0"><a href="{url}" style="background:#0b5d5e;color:#fff;text-decoration:none;'
    'padding:11px 22px;border-radius:4px;font-weight:600;display:inline-block">{label}</a></p>'
)
_ROW = (
    '<tr><td style="padding:6px 0;color:#5d6979;border-bottom:1px solid #d9dfe6">{name}</td>'
    '<td align="right" style="padding:6px 0 6px 16px;border-bottom:1px solid #d9dfe6">{value}</td></tr>'
)


def mail_html(
    *,
    lang: str,
    title: str,
    seller: str,
    before: Sequence[str],
    facts: Sequence[tuple[str, str]],
    button: tuple[str, str] | None,
    after: Sequence[str],
) -> str:
    """Give the page of a mail; every text is shown as it is. `button`: what it says, and where it leads."""
    rows = "\n".join(_ROW.format(name=escape(name), value=escape(value)) for name, value in facts)
    table = f'<table role="presentation" width="100%" cellpadding="0" cellspacing="0" style="{_FACTS}">'
    parts = [
        *(_paragraph(text) for text in before),
        f"{table}\n{rows}\n</table>" if rows else "",
        "" if button is None else _BUTTON.format(label=escape(button[0]), url=escape(button[1])),
        *(_paragraph(text) for text in after),
    ]
    body = "\n".join(part for part in parts if part)
    return _PAGE.format(lang=lang, title=escape(title), font=_FONT, seller=escape(seller), body=body)


def _paragraph(text: str) -> str:
    return f'<p style="margin:0 0 14px">{escape(text).replace(chr(10), "<br>")}</p>'
