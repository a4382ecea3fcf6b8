"""The main text of a web page, by trafilatura: no menus, no scripts, no footers."""

from __future__ import annotations

from llamaseek.errors import UserError


def page_text(page: bytes) -> str:
    """Paragraphs and list items, a line each; empty if the page has no text."""
    try:
        import trafilatura
    except ImportError:
        raise UserError("web pages need trafilatura: pip install 'llamaseek[data]'") from None
    text = trafilatura.extract(page, include_comments=False, include_tables=True)
    return f"{text}\n" if text else ""
