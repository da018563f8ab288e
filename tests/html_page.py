"""Looking into a page: its tags and words, and what every page of this project must be."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Tags with their attributes; fails where a tag is closed that was not opened last."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def words(html: str) -> str:
    """The text of the body, blanks and no-break blanks made single."""
    body = re.sub(r"<(style|svg)\b.*?</\1>", " ", html, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)).replace("\u202f", " ")


def check_stands_alone(html: str) -> None:
    """Nothing is fetched, nothing runs, every tag is closed, and a phone may load it."""
    page = Page(html)
    sources = [a["src"] for a in page.all("img")] + [a["href"] for a in page.all("link")]
    assert sources
    assert all(source is not None and source.startswith("data:") for source in sources)
    assert not page.all("script")
    assert not re.search(r"@import|@font-face|url\((?!data:)", html)
    # In words an address may stand; in a tag it could be followed.
    assert not any("://" in str(value) for _, attributes in page.tags for value in attributes.values())
    assert len(html.encode()) < 5_000_000


def check_readable(html: str) -> None:
    """Pictures and figures have words, tables have heads, links have ends."""
    page = Page(html)
    assert all(a.get("alt") for a in page.all("img"))
    drawings = [a for a in page.all("svg") if a.get("aria-hidden") != "true"]
    assert drawings
    assert all(a.get("role") == "img" and a.get("aria-label") for a in drawings)
    assert all(a.get("scope") for a in page.all("th"))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = [a["href"] for a in page.all("a")]
    assert targets
    assert {str(t)[1:] for t in targets} <= set(ids)
