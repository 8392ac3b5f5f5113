"""What READMEs and DATA.md say in words, for the page: their Markdown is read here and written nowhere else."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from functools import cache

from markdown_it import MarkdownIt
from markdown_it.token import Token

__all__ = ["data_sets", "numbered", "rendered", "section_of", "title_of"]


@cache
def _reader() -> MarkdownIt:
    # Markup in the text stays text, and a picture from elsewhere is not loaded.
    return MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")


def title_of(text: str) -> str:
    """Return the first heading of a Markdown text; nothing if there is none."""
    found = re.search(r"^# (.+)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def numbered(text: str) -> tuple[str, list[str]]:
    """Return the first numbered list of a Markdown text: the heading above it, and the Markdown of each item."""
    tokens, lines, heading = _reader().parse(text), text.splitlines(), ""
    for place, token in enumerate(tokens):
        if token.type == "heading_open":
            heading = tokens[place + 1].content
        elif token.type == "ordered_list_open" and token.level == 0:
            last = next(i for i in range(place, len(tokens)) if tokens[i].type == "ordered_list_close")
            inner = [each for each in tokens[place:last] if each.type == "list_item_open" and each.level == 1]
            return heading, [_item(lines, each) for each in inner]
    return "", []


def _item(lines: Sequence[str], token: Token) -> str:
    first, last = token.map or (0, 0)
    return re.sub(r"^\s*\d+[.)]\s+", "", "\n".join(line.strip() for line in lines[first:last]).strip())


def section_of(text: str, heading: str) -> str:
    """Return the Markdown below a heading of level 2, without generated tables and pictures; nothing if none."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    body = found[1] if found else ""
    # A sentence that ends with a colon announces the table below it, and goes with it.
    body = re.sub(r"(^[^\n]*:\n\n)?<!-- (\w+):begin -->.*?<!-- \2:end -->", "", body, flags=re.DOTALL | re.MULTILINE)
    body = re.sub(r"^!\[.*?\]\(.*?\)$", "", body, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", body).strip()


def data_sets(text: str, names: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of DATA.md's first table for these data sets, as Markdown by column."""
    rows: list[list[str]] = []
    for token in _reader().parse(text):
        if token.type == "table_close":
            break
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows and token.level > 1:  # a cell; paragraphs and headings are less deep
            rows[-1].append(token.content)
    heads = rows[0] if rows else []
    found = (dict(zip(heads, row, strict=False)) for row in rows[1:])
    return [row for row in found if row.get("name", "").strip("`") in names]


def rendered(text: str, folder: str) -> str:
    """Return Markdown as HTML. Its links are relative to `folder`, a path as seen from the page."""
    tokens = _reader().parse(text)
    for token in tokens:
        for part in token.children or ():
            if part.type == "link_open":
                part.attrs["href"] = _from_page(str(part.attrs["href"]), folder)
        if token.type in ("heading_open", "heading_close"):  # below the page's own headings
            token.tag = "h4"
    return str(_reader().renderer.render(tokens, _reader().options, {}))


def _from_page(href: str, folder: str) -> str:
    if href.startswith("#") or re.match(r"[a-z][a-z0-9+.-]*:", href, re.IGNORECASE):
        return href
    path, mark, fragment = href.partition("#")
    return posixpath.normpath(posixpath.join(folder, path)) + mark + fragment
