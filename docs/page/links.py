"""Check the links of a built site: `python docs/page/links.py runs/page/html` (a part of `make page`)."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag


class Page(HTMLParser):
    """The ids of a page, and all that it links to or loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name"):
                self.ids.add(value or "")
            elif name in ("href", "src") and value:
                self.links.append(value)


def broken(site: Path) -> list[str]:
    """Each link to a file or an id that is not there, as "page: link"; links to other sites are not followed."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.resolve().rglob("*.html"))}
    found = []
    for path, page in pages.items():
        for link in dict.fromkeys(page.links):
            if re.match(r"[a-z]+:|//", link):
                continue
            name, fragment = urldefrag(link)
            target = (path.parent / unquote(name.partition("?")[0])).resolve() if name else path
            known = pages[target].ids if target in pages else None
            if not target.exists() or (fragment and known is not None and unquote(fragment) not in known):
                found.append(f"{path.relative_to(site.resolve())}: {link}")
    return found


if __name__ == "__main__":
    if bad := broken(Path(sys.argv[1])):
        sys.exit("\n".join(["links that lead nowhere:", *bad]))
