"""What a notebook shows, one call a cell: `intro`, `table`, `claims`, `caption`. Each returns something that Jupyter displays."""

from __future__ import annotations

from dataclasses import dataclass

from pcb.reporting import style, tables, words
from pcb.reporting.pairs import Confusion
from pcb.reporting.tables import Gathered


@dataclass(frozen=True)
class Html:
    """A piece of a page; Jupyter displays it, and `text` is what it shows where there is no HTML."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def intro(table: Gathered) -> Html:
    """The title, the paper's claim in our words, and at a scale of its own the warning that sizes are not comparable."""
    about = table.about
    return piece("intro", f"{words.heading(about)}\n{about['claim']}\n{words.warning(about)}".strip(),
                 title=about["title"], claim=about["claim"], warning=words.warning(about))


def table(table: Gathered) -> Html:
    """The table: ours | paper | Δ."""
    return Html(tables.html(table), tables.markdown(table))


def claims(table: Gathered) -> Html:
    """What the paper's text says of this table, judged by its own numbers and by ours."""
    entries = table.about["claims"]
    text = "\n".join(f"{c['says']} Paper: {c['paper']['verdict']}. Ours: {c['ours']['verdict']}." for c in entries)
    return piece("claims", text or "The paper's text makes no claim of this table alone.", claims=entries)


def caption(table: Gathered) -> Html:
    """Data set, scale, seeds, departures, dates and code of the runs."""
    entries = words.caption(table.about)
    return piece("caption", "\n".join(f"{term}: {text}" for term, text in entries), entries=entries)


def pairs(found: Confusion) -> Html:
    """The pairs of classes with the most one-sided confusion."""
    frame = found.pairs()
    return piece("pairs", frame.to_string(index=False), rows=frame.to_dict("records"))


def not_run(table: Gathered) -> Html:
    """What stands in the place of a result that has not been measured."""
    text = f"not run: no results of {table.rows['run'].iloc[0]} at this scale yet"
    return Html(f'<p class="pcb-note"><em>{text}</em></p>', text)


def piece(template: str, text: str, **values) -> Html:
    return Html(style.templates().get_template(f"{template}.html.j2").render(**values), text)
