"""What a browser would make of a page, and names that try to be more than text in one."""

from __future__ import annotations

import re
from html.parser import HTMLParser

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "attribute": '" onmouseover="alert(1)',
    "closing": "</title></svg></style><img src=x onerror=alert(1)>",
    "entity": "&lt;script&gt;",
    "direction": "\u202egnp.exe",
    "control": "a\x00b\x1b[31m",
}


class Reader(HTMLParser):
    """Collects what a browser would make of a page: elements, attributes, text, tables."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._caption: str | None = None
        self._cell: list[str] | None = None
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += attrs
        if tag in {"caption", "th", "td"}:
            self._cell = []
        elif tag == "tr" and self._caption is not None:
            self.tables[self._caption].append([])

    def handle_endtag(self, tag: str) -> None:
        if tag not in {"caption", "th", "td"} or self._cell is None:
            return
        text, self._cell = " ".join(self._cell), None
        if tag == "caption":
            self._caption = text
            self.tables[text] = []
        elif self._caption is not None:
            self.tables[self._caption][-1].append(text)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._cell is not None:
            self._cell.append(data)

    def under(self, heading: str) -> list[str]:
        """Give the texts from a heading on."""
        return self.texts[self.texts.index(heading) :]


def shown(name: str) -> str:
    """Give a name as a page shows it."""
    return re.sub("[\x00-\x1f\u202e]", "\ufffd", name)
