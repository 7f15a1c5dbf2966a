"""The site: its links resolve, every number leads to its run, and it works in Chromium.

The metrics are fabricated in a temporary results folder. The pages are gathered and rendered as
usual, but without a kernel.
"""

import csv
import json
from html.parser import HTMLParser

import browser
import nbformat
import pytest
from fabricate import RFS_PCB, SOFTMAX, fabricate, study_in

from pcb.files import write_text
from pcb.reporting.gather import gather
from pcb.reporting.notebook import render as rendering
from pcb.reporting.results import Results
from pcb.reporting.site.build import build


class Links(HTMLParser):
    """The ids of a page, and what it links or loads."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            elif name in ("href", "src") and not value.startswith("data:"):
                self.links.append(value)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of two seeds.

    Table 6 is measured, except for one row at seed 1. Two rows of Table 2 were measured after its
    page had been rendered.
    """
    study = study_in(tmp_path_factory.mktemp("results"), seeds=(0, 1))
    gather(study, "table02")
    write_text(study.paths.html("table02"), "<p>before anything was run</p>")
    for index, row in enumerate(study.tables["table06"].rows):
        fabricate(study, row.run, 0, AP=40.0 + index % 4, APr=20.123456)
        if row.id != "a1":
            fabricate(study, row.run, 1, AP=42.0 + index % 4, APr=22.0)
    fabricate(study, SOFTMAX, 0, PwB=2.5)
    gather(study, "table06")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendering, "execute", lambda source, *_: nbformat.read(source, as_version=4))
        rendering.render(study, "table06")
    build(study)
    return study


def test_every_link_of_every_page_resolves(study):
    pages = {page: Links(page.read_text()) for page in study.paths.site.rglob("*.html")}
    assert len(pages) == 3
    for page, links in pages.items():
        assert len(set(links.ids)) == len(links.ids)
        for link in links.links:
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.is_relative_to(study.paths.site) and target.exists(), (
                f"{page.name} links {link}"
            )
            assert not anchor or anchor in pages[target].ids, f"{page.name} links {link}"


def test_every_table_is_listed_with_what_was_not_run(study):
    text = study.paths.index.read_text()
    assert all(f'<section id="{target}"' in text for target in study.tables)
    assert all(f'<article id="{page}"' in text for page in study.pages) and text.count(
        "not rendered yet"
    ) >= len(study.pages)
    assert "12 <span>of 86</span>" in text and "74 of 86 trainings have no metrics" in text
    assert "seed 1 not run" in text and "seeds 0, 1 not run" in text and "1 of 2</td>" in text


def test_a_page_of_earlier_results_is_marked(study):
    text = study.paths.index.read_text()
    assert (
        text.count("an earlier state of the results") == 1
        and "<code>snakemake table02</code> renders them again" in text
    )


def test_without_any_run_no_number_is_ours(tmp_path):
    study = study_in(tmp_path)
    text = build(study).read_text()
    rows = sum(len(table.rows) for table in study.tables.values())
    assert (
        text.count('<td class="notrun start"') == rows
        and '<td class="ours' not in text
        and "0 <span>of 43</span>" in text
    )
    assert study.paths.download("metrics.csv").read_text() == "run,seed,variant,metric,value\n"


def test_the_data_files_hold_what_was_measured(study):
    with study.paths.download("metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    results = Results(study)
    for line in lines:
        values = results.values(line["run"], int(line["seed"]), line["variant"])
        assert float(line["value"]) == values[line["metric"]]
    assert {(line["run"], line["seed"]) for line in lines} == {
        (run, str(seed))
        for run in study.runs()
        for seed in study.seeds
        if study.paths.metrics(run, seed).exists()
    }
    runs = json.loads(study.paths.download("runs.json").read_text())
    assert {run["state"] for run in runs} == {"measured", "not run"} and len(runs) == 43 * 2
    assert all(run["record"]["git"]["commit"] for run in runs if run["state"] == "measured")
    assert len(json.loads(study.paths.download("claims.json").read_text())) == len(study.claims)


# In a browser


@pytest.fixture(scope="module")
def chromium():
    if not browser.find():
        pytest.skip("no Chromium on this machine")
    with browser.Browser() as page:
        yield page


@pytest.fixture
def page(chromium, study):
    chromium.complaints.clear()
    chromium.resize(1280, 900)
    chromium.open(study.paths.index)
    yield chromium
    assert chromium.complaints == []


def column(metric, block="ours"):
    """The index of a metric's column in Table 6."""
    return ("AP", "APr", "APc", "APf", "APb").index(metric) + {"ours": 0, "paper": 5, "Δ": 10}[
        block
    ]


def cell(row, metric, block="ours"):
    return f'#table06 tr[data-row="{row}"] td[data-c="{column(metric, block)}"] button'


def dialog(page):
    return page.run('document.querySelector("dialog[open]")?.innerText')


def test_a_click_on_a_number_shows_its_run(page, study):
    page.click(cell("a0.4", "APr"))
    shown = dialog(page)
    assert all(study.fingerprint(RFS_PCB, seed) in shown for seed in (0, 1)) and RFS_PCB in shown
    assert "20.123456" in shown and "21.1 ± 1.3" in shown and "as printed: 21.8" in shown
    assert (
        "0123456789abcdef" in shown
        and f"logs/train/{RFS_PCB}/seed0.log" in shown
        and "40 s" in shown
    )
    page.press("Escape")
    assert dialog(page) is None
    assert page.run("document.activeElement.textContent").startswith("21.1")


def test_a_row_that_was_not_run_is_marked_at_every_seed(page):
    page.click('#table02 tr[data-row="v05-rfs"] td.notrun button')
    assert dialog(page).count("not run") == 3  # the number and two seeds


def test_arrow_keys_move_between_numbers_and_enter_opens(page):
    page.run(f"document.querySelector('{cell('a0', 'AP')}').focus()")
    page.press("ArrowRight")
    page.press("ArrowDown")
    page.press("Enter")
    assert "APr 0.2" in dialog(page).replace("\n", " ")


def test_a_column_sorts_best_first_then_worst_first_then_as_in_the_paper(page, study):
    head = f'#table06 th[data-c="{column("AP")}"] button'
    order = "[...document.querySelectorAll('#table06 tbody tr')].map(r => r.dataset.row)"
    cells = f"[...document.querySelectorAll('#table06 td[data-c=\"{column('AP')}\"]')]"
    values = f"{cells}.map(c => Number(c.dataset.v))"
    sign = "document.querySelector('#table06 th[aria-sort]')?.ariaSort"
    paper = [row.id for row in study.tables["table06"].rows]
    assert page.run(order) == paper and page.run(sign) is None
    page.click(head)
    assert (
        page.run(values) == sorted(page.run(values), reverse=True)
        and page.run(sign) == "descending"
        and page.run(order) != paper
    )
    page.click(head)
    assert page.run(values) == sorted(page.run(values)) and page.run(sign) == "ascending"
    page.click(head)
    assert page.run(order) == paper and page.run(sign) is None


def test_claims_are_filtered_by_verdict(page, study):
    rows = "[...document.querySelectorAll('#claims tr[data-ours]')]"
    shown = f"{rows}.filter(r => r.offsetHeight).map(r => r.dataset.ours)"
    assert len(page.run(shown)) == len(study.claims)
    page.click('#filter label:has([value="not run"])')
    assert set(page.run(shown)) == {"not run"}
    page.click('#filter [name="differ"]')
    assert (
        len(page.run(shown))
        == int(page.run("document.querySelector('#filter output').textContent").split()[0])
        < len(study.claims)
    )


def test_a_run_opens_with_all_its_metrics(page, study):
    page.click(f'tr[data-run="{RFS_PCB}"] button[data-seed="1"]')
    shown = dialog(page)
    assert study.fingerprint(RFS_PCB, 1) in shown and all(
        variant in shown for variant in study.variants(RFS_PCB)
    )


def test_nothing_is_wider_than_a_phone(page, study):
    for path in (study.paths.index, study.paths.html("table06")):
        page.resize(390, 844)
        page.open(path)
        assert page.run("document.documentElement.scrollWidth") <= 390


def test_colours_follow_the_system_setting(page):
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.run(ground)
    page.dark()
    assert (light, page.run(ground)) == ("rgb(255, 255, 255)", "rgb(20, 23, 27)")
    page.dark(False)
