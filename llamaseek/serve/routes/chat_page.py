"""The chat page: a few static files at `/`, and headers that restrict it to this server."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, HTTPException, Response

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}
PAGE = files("llamaseek.serve") / "page"
FILES = {entry.name: entry for entry in PAGE.iterdir() if entry.is_file()}
FILES |= {f"vendor/{entry.name}": entry for entry in (PAGE / "vendor").iterdir()}
PATHS = frozenset({"/", *(f"/page/{name}" for name in FILES)})
"""Open without a key: the page asks for it."""
router = APIRouter(include_in_schema=False)


@router.get("/")
async def page() -> Response:
    """The page itself."""
    return await part("index.html")


@router.get("/page/{name:path}")
async def part(name: str) -> Response:
    """One of its files; they are those of the package, whatever the name spells."""
    kind = KINDS.get(name.rpartition(".")[2])
    if name not in FILES or kind is None:
        raise HTTPException(404, f"{name[:64]!r}: the page has no such file")
    return Response(FILES[name].read_bytes(), media_type=kind, headers=HEADERS)
