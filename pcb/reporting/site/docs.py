"""The documents of a site, from docs/*.md: methods, glossary, experiments; and single definitions.

docs/ is the one source: the pages are rendered from it, and so are the definitions that the index
shows for a term.
"""

from __future__ import annotations

import re
from functools import lru_cache
from html import unescape
from pathlib import Path

from pcb.files import ROOT, write_text
from pcb.reporting import style
from pcb.reporting.current import DOCUMENTS
from pcb.study import Study

SUBSCRIPT = re.compile(r"<sub>(.+?)</sub>")


def write(study: Study) -> list[dict]:
    """Render the documents into site/docs/.

    Returns:
        `name`, `title` and `href` of each, as seen from the index.
    """
    for name, title in DOCUMENTS.items():
        text = (ROOT / f"docs/{name}.md").read_text(encoding="utf-8")
        page = style.templates().get_template("document.html.j2")
        write_text(study.paths.document(name), page.render(title=title, body=html(text)))
    return [
        {"name": name, "title": title, "href": f"docs/{name}.html"}
        for name, title in DOCUMENTS.items()
    ]


def html(text: str) -> str:
    """Markdown as HTML with ids of headings; links to files outside the site become plain text."""
    import mistune  # imported here: it comes with nbconvert, which tables do not need

    body = str(mistune.create_markdown(escape=False, plugins=["table"])(text))
    body = re.sub(r"<h([1-4])>(.*?)</h\1>", heading, body)
    body = re.sub(r'<a href="([^"]*)">(.*?)</a>', link, body, flags=re.DOTALL)
    return body.replace("<table>", '<div class="pcb-scroll" tabindex="0"><table>').replace(
        "</table>", "</table></div>"
    )


def heading(match: re.Match[str]) -> str:
    """A heading with the id that code hosts give it."""
    level, content = match[1], match[2]
    words = unescape(re.sub(r"<.*?>", "", content)).lower()
    slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
    return f'<h{level} id="{slug}">{content}</h{level}>'


def link(match: re.Match[str]) -> str:
    """A link that leads somewhere from the site, or its text alone."""
    target, content = match[1], match[2]
    page, _, anchor = target.partition("#")
    if "://" in target or not page:
        return match[0]
    name = Path(page).stem
    if page == f"{name}.md" and name in DOCUMENTS:
        return f'<a href="{name}.html{"#" + anchor if anchor else ""}">{content}</a>'
    return content


@lru_cache
def glossary() -> dict[str, str]:
    """Definitions as plain text by term: `AP_r`, `RFS`, `interval`.

    A line of the glossary with several terms defines each of them.
    """
    text, out = (ROOT / "docs/glossary.md").read_text(encoding="utf-8"), {}
    for terms, meaning in re.findall(r"^\| (.+?) \| (.+?) \|$", text, re.M):
        if terms == "term":
            continue
        for term in re.sub(r"\(.*?\)", "", terms).split(","):
            out[plain(term).strip(' "')] = plain(meaning)
    return out


def plain(text: str) -> str:
    """Markdown of one line as plain text, indices as `AP_r`."""
    text = SUBSCRIPT.sub(r"_\1", text).replace("<sup>", "^").replace("</sup>", "")
    text = re.sub(r"\[(.+?)\]\(.*?\)", r"\1", text)
    return re.sub(r"[`*]", "", text).strip()
