"""The outputs of a notebook, one function for each cell; they return what Jupyter displays."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import escape

from pcb import formatting
from pcb.frequency import GROUP_NAMES
from pcb.reporting import captions, oracle, plots, protocols, style, tables
from pcb.reporting.claims import grouped
from pcb.reporting.findings import changes
from pcb.reporting.images import gallery_view, raster
from pcb.reporting.notebook import FOR_PAGE
from pcb.reporting.tables import ResultTable
from pcb.study.claims import GROUPS


@dataclass(frozen=True)
class Html:
    """A piece of a page. `text` is what it shows where HTML cannot be displayed."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Picture:
    """A picture that a page shows as HTML, and a notebook as an image.

    Attributes:
        html: What the page shows.
        jpeg: What a notebook shows.
        alt: What it shows, in words.
    """

    html: str
    jpeg: bytes
    alt: str

    def _repr_mimebundle_(self, include=None, exclude=None):
        image = base64.b64encode(self.jpeg).decode()
        data = {"image/jpeg": image, FOR_PAGE: self.html, "text/plain": self.alt}
        return data, {"image/jpeg": {"alt": self.alt}}


def intro(shown: ResultTable | dict) -> Html:
    """The head of a page.

    It has the name, the title, what the paper concludes (or what a page of images shows), and a
    warning where our numbers cannot be compared with the paper's in size.
    """
    about = shown.about if isinstance(shown, ResultTable) else shown
    claim = shown.claim if isinstance(shown, ResultTable) else None
    shows, warning = about.get("shows"), captions.warning(about)
    return piece(
        "intro",
        f"{captions.heading(about)}\n{claim or shows}\n{warning}".strip(),
        name=formatting.number(about["target"]),
        title=about["title"],
        claim=claim,
        shows=shows,
        warning=warning,
    )


def table(shown: ResultTable) -> Html:
    """The table: ours, paper, Δ."""
    return Html(tables.html(shown), tables.markdown(shown))


def plots_of(shown: ResultTable) -> Iterator[Html | plots.Plot]:
    """The plots of a table, each after its heading and how to read it."""
    for section in plots.draw(shown):
        text = f"{section.title}\n{section.text}"
        yield piece("section", text, title=section.title, text=section.text)
        yield section.plot


def confusion(shown: ResultTable) -> plots.Plot | Html:
    """The heat maps of a measured confusion matrix."""
    return plots.confusion(shown) if shown.confusion else not_run([shown.rows[0].run])


def pairs(shown: ResultTable) -> Html:
    """The most one-sided pairs of classes of a measured confusion matrix."""
    if not shown.confusion:
        return not_run([shown.rows[0].run])
    rows = shown.confusion["pairs"]
    text = "\n".join(f"{r['i']} → {r['j']}: {r['i_for_j']:.3f}, {r['j_for_i']:.3f}" for r in rows)
    return piece("pairs", text, rows=rows)


def claims(shown: ResultTable) -> Html:
    """The paper's claims about a table, judged by its own numbers and by ours."""
    text = "\n".join(
        f"{c['statement']} Paper: {c['paper']['verdict']}. Ours: {c['ours']['verdict']}"
        f"{f' ({tally})' if (tally := style.tally_text(c['ours']['counts'])) else ''}."
        for c in shown.claims
    )
    if shown.about["scale"]["own"]:
        text = text or "The paper's claims are about LVIS; they are not judged on these data."
    text = text or "The paper makes no claim on this table alone."
    return piece("claims", text, claims=shown.claims, own=shown.about["scale"]["own"])


def findings(page: dict) -> Html:
    """The findings: how many claims hold, then each claim with what came out."""
    text = "\n".join(
        f"{c['statement']} Paper: {c['paper']['verdict']}. Ours: {c['ours']['verdict']}"
        f"{f' ({tally})' if (tally := style.tally_text(c['ours']['counts'])) else ''}."
        for c in page["claims"]
    )
    values = {
        "claims": page["claims"],
        "groups": grouped(page["claims"]),
        "counts": page["counts"],
        "changes": changes,
        "protocol_names": style.PROTOCOLS,
    }
    return piece("findings", text, **values)


def caption(shown: ResultTable | dict) -> Html:
    """Where the numbers come from: data, detector, seeds, departures, runs, code."""
    about = shown.about if isinstance(shown, ResultTable) else shown
    entries = captions.caption(about)
    return piece("caption", "\n".join(f"{term}: {text}" for term, text in entries), entries=entries)


def gallery(page: dict) -> Iterator[Html | Picture]:
    """Images before and after PCB with their ground truth, for every comparison of the page."""
    compare, least = page["compare"], page["settings"]["score"]
    sections = [
        section
        for k, entry in enumerate(compare)
        if not entry["missing"]
        for section in gallery_view.sections(entry, f"image-{k}", least)
    ]
    if sections:
        yield piece("gallery_head", "r: rare, c: common, f: frequent", groups=GROUP_NAMES)
    for section in sections:
        yield piece("gallery_section", f"{section['title']}: {section['count']}", section=section)
        for shot in section["shots"]:
            yield Html(f"<p>{escape(shot['caption'])}</p>", shot["caption"])
            panels = "; ".join(panel["alt"] for panel in shot["panels"])
            drawn = piece("gallery_shot", "", shot=shot, groups=GROUP_NAMES)
            yield Picture(drawn.html, raster.strip(shot), f"{shot['caption']} {panels}")
    if note := missing(page):
        yield note


def explorer(page: dict) -> Html:
    """The most one-sided pairs of classes before and after PCB, for every comparison."""
    lists = [
        pairs
        for entry in page["compare"]
        if not entry["missing"]
        for pairs in gallery_view.pair_lists(entry)
    ]
    text = f"{sum(len(pairs['pairs']) for pairs in lists)} pairs of classes"
    values = {"groups": GROUP_NAMES, "score_text": gallery_view.score_text, "lists": lists}
    return joined(piece("explorer", text, **values) if lists else None, missing(page))


def oracle_table(entries: list[dict]) -> Html:
    """Calibration with statistics of scored and of other images, and what follows from it."""
    if not entries:
        return Html('<p class="pcb-note"><em>not run</em></p>', "not run")
    rows, sentences = oracle.grid(entries), oracle.conclusions(entries)
    lines = [
        f"{row['run']}, {row['label']}: {' '.join(mean for mean, _ in row['cells'])}"
        for row in rows
    ]
    metrics = [style.name(metric, "html") for metric in oracle.METRICS]
    text = "\n".join([*lines, *sentences])
    return piece("oracle", text, rows=rows, conclusions=sentences, metrics=metrics)


def protocols_table(page: dict) -> Html:
    """AP of the rows of the page of protocols, under each protocol."""
    rows = protocols.grid(page)
    lines = [
        f"{row['sampler']}, {row['method']}: {' '.join(mean for mean, *_ in row['cells'])}"
        for row in rows
    ]
    metrics = [style.name(metric, "html") for metric in protocols.METRICS]
    titles = [style.PROTOCOLS[protocol] for protocol in page["protocols"]]
    values = {"rows": rows, "metrics": metrics, "titles": titles, "limits": page["limits"]}
    gammas = [(row["sampler"], row["gamma"]) for row in page["rows"] if row["gamma"][0] is not None]
    if not any(mean != "–" for row in rows for mean, *_ in row["cells"]):
        return not_run(list(dict.fromkeys(row["run"] for row in page["rows"])))
    return piece("protocols", "\n".join(lines), **values, gammas=gammas)


def protocol_claims(page: dict) -> Html:
    """Each claim's verdict under each protocol, changes marked."""
    claims, titles = protocols.claim_grid(page), [style.PROTOCOLS[p] for p in page["protocols"]]
    text = "\n".join(
        f"{claim['statement']} {'; '.join(verdict for verdict, _ in claim['cells'])}"
        for claim in claims
    )
    return piece("protocol_claims", text, groups=grouped_rows(claims), titles=titles)


def grouped_rows(claims: list[dict]) -> list[tuple[str, list[dict]]]:
    """Claims by the title of their group, in the order of groups."""
    of = {title: [c for c in claims if c["group"] == key] for key, title in GROUPS.items()}
    return [(title, members) for title, members in of.items() if members]


def sentences(found: list[str]) -> Html:
    """Sentences that follow from the numbers of a page."""
    return piece("sentences", "\n".join(found), sentences=found)


def missing(page: dict) -> Html | None:
    """The runs that a page of images lacks."""
    runs = [run for entry in page["compare"] for run in entry["missing"]]
    return not_run(runs) if runs else None


def not_run(runs: list[str]) -> Html:
    """A note in place of a result that was not measured."""
    text = f"not run: no results of {', '.join(dict.fromkeys(runs))} at this scale yet"
    return Html(f'<p class="pcb-note"><em>{text}</em></p>', text)


def joined(*pieces: Html | None) -> Html:
    """Several pieces as one, without those that are None."""
    existing = [p for p in pieces if p]
    return Html("\n".join(p.html for p in existing), "\n".join(p.text for p in existing))


def piece(template: str, text: str, /, **values: object) -> Html:
    """A piece of a page from one of the templates in pcb/reporting/style."""
    return Html(style.templates().get_template(f"{template}.html.j2").render(**values), text)
