"""The site: docs and executed notebooks as pages.

`python -m notebooks.site build/course/solved build/site`

Offline. A warning is an error, a link inside the site that leads nowhere among them.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"\]\(((?:\.\./)+(?!docs/)[^)]+)\)")
"""A link from a page to a file of the project that is not in docs/."""


def gather(notebooks: Path, source: Path) -> None:
    """The site's source folder: docs/, and the executed notebooks as course/."""
    shutil.copytree(ROOT / "docs", source)
    for page in source.rglob("*.md"):
        text = page.read_text(encoding="utf-8").replace("](course.md)", "](course/index.md)")
        page.write_text(OUTSIDE.sub(r"]", text), encoding="utf-8")
    (source / "course").mkdir()
    names = []
    for notebook in sorted(notebooks.glob("*.ipynb")):
        text = notebook.read_text(encoding="utf-8").replace("](../docs/", "](../")
        (source / "course" / notebook.name).write_text(text, encoding="utf-8")
        names.append(notebook.stem)
    about = (source / "course.md").read_text(encoding="utf-8").replace("](", "](../")
    listed = "\n".join(names)
    (source / "course" / "index.md").write_text(
        f"{about}\n## The notebooks\n\n```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```\n",
        encoding="utf-8",
    )
    (source / "course.md").unlink()
    list_documents(source)


def list_documents(source: Path) -> None:
    """In the first page's contents put in place of `*` what no other line of it names."""
    landing = source / "landing.md"
    text = landing.read_text(encoding="utf-8")
    others = {path.stem for path in source.glob("*.md")} - {"landing", *text.splitlines()}
    text = text.replace("\n*\n", "\n" + "\n".join(sorted(others)) + "\n")
    landing.write_text(text, encoding="utf-8")


def build(notebooks: Path, target: Path) -> int:
    """Run Sphinx over both, then follow every link inside the site; 0 if all is well."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        gather(notebooks, source)
        command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
        code = subprocess.run([*command, str(source), str(target)]).returncode
    broken = broken_links(target)
    for line in broken:
        print(line, file=sys.stderr)
    return code or int(bool(broken))


class Page(HTMLParser):
    """What a page links to, and the places in it that a link may name."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep targets and ids."""
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.places.add(value)


def broken_links(site: Path) -> list[str]:
    """The links inside a built site whose file or place in it does not exist, a line each."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            found = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = unquote(parts.fragment)
            named = found not in pages or not place or place in pages[found].places
            if not found.exists() or not named:
                broken.append(f"{path.relative_to(site.resolve())}: the link {link} leads nowhere")
    return broken


def main() -> None:
    """Build the site."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", type=Path, help="the folder of the solved notebooks")
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    sys.exit(build(arguments.notebooks, arguments.target))


if __name__ == "__main__":
    main()
