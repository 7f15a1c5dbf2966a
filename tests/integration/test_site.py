"""The site: its links resolve, every number leads to its run, and it works in Chromium.

The metrics are fabricated in a temporary results folder. The pages are gathered and rendered as
usual, but without a kernel.
"""

import csv
import json
import os
import time
from html.parser import HTMLParser

import browser
import nbformat
import pytest
from fabricate import RFS_PCB, SOFTMAX, fabricate, finish_pages, study_in
from own_data import own_dataset, own_scale

from pcb.files import locked, write_text
from pcb.reporting.current import site_is_stale
from pcb.reporting.gather import gather
from pcb.reporting.notebook import render as rendering
from pcb.reporting.results import Results
from pcb.reporting.site import build as build_module
from pcb.reporting.site.build import build, refresh
from pcb.study import load_study
from pcb.study.current import site_lacks_pages


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
            elif name in ("href", "src") and not value.startswith(("data:", "https:")):
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
    assert len(pages) == 3 + 3 + len(study.runs())  # with the documents
    for page, links in pages.items():
        assert len(set(links.ids)) == len(links.ids)
        for link in links.links:
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.is_relative_to(study.paths.site) and target.exists(), (
                f"{page.name} links {link}"
            )
            place = anchor.split("?")[0]  # what follows is an order or a filter
            assert not place or place in pages[target].ids, f"{page.name} links {link}"


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
        and "<code>snakemake --cores all table02</code> renders them again" in text
    )


def test_a_printed_command_selects_the_scale(tmp_path):
    study = load_study("smoke", overrides={"results": str(tmp_path)})
    text = build(study).read_text()
    assert "<code>snakemake --cores all findings --config scale=smoke</code>" in text
    assert "<code>snakemake --cores all gallery --config scale=smoke</code>" in text
    text = study.paths.run_page(study.runs()[0]).read_text()
    assert "<code>snakemake --cores all train_all --config scale=smoke</code>" in text
    assert f"<code>pcb train {study.runs()[0]} --seed 0 --scale smoke</code>" in text


def test_the_first_lines_are_the_verdict(study):
    text = study.paths.index.read_text()
    found = json.loads(study.paths.download("verdict.json").read_text())
    start = text.index('<dl class="answers')
    assert start < text.index('<dl class="state')
    for entry in found["lines"]:
        assert text.index(entry["question"]) > start
    assert [group["id"] for group in found["groups"]] == ["core", "ablation", "calibration"]


def test_during_a_run_the_site_is_written_at_most_once_a_minute(tmp_path):
    study = study_in(tmp_path)
    finish_pages(study)
    study.paths.page_record("table05").unlink()
    assert refresh(study) == f"open {study.paths.index} (15 of 16 pages)"
    written = study.paths.index.stat().st_mtime_ns
    assert refresh(study) is None and study.paths.index.stat().st_mtime_ns == written
    assert not site_lacks_pages(study)
    an_hour_ago = time.time() - 3600
    os.utime(study.paths.page_record("site"), (an_hour_ago, an_hour_ago))
    assert site_lacks_pages(study)
    with locked(study.paths.log("site").with_suffix(".lock"), "the site"):
        assert refresh(study) is None
    assert refresh(study)


def test_an_unfinished_site_leads_nowhere(tmp_path, monkeypatch):
    """The index is written after all that it leads to, so a stopped build leaves none."""
    study = study_in(tmp_path)
    finish_pages(study)

    def stopped(*_):
        raise KeyboardInterrupt

    study.paths.page_record("site").unlink()
    monkeypatch.setattr("pcb.reporting.site.run_pages.write", stopped)
    with pytest.raises(KeyboardInterrupt):
        build(study)
    assert not study.paths.index.exists() and not study.paths.page_record("site").exists()


def test_a_file_that_vanishes_does_not_fail_the_page(tmp_path, monkeypatch, capsys):
    study = study_in(tmp_path)
    finish_pages(study)

    def vanished(*_):
        raise FileNotFoundError("runs/a.html")

    monkeypatch.setattr("pcb.reporting.site.run_pages.write", vanished)
    assert refresh(study) is None
    assert "the site was not written: runs/a.html" in capsys.readouterr().out


def test_a_result_that_comes_while_the_site_is_written_makes_it_stale(tmp_path, monkeypatch):
    study = study_in(tmp_path)
    fabricate(study, SOFTMAX, 0)

    def write(*arguments):
        fabricate(study, RFS_PCB, 0)
        run_pages_write(*arguments)

    run_pages_write = build_module.run_pages.write
    monkeypatch.setattr(build_module.run_pages, "write", write)
    build(study)
    assert RFS_PCB in site_is_stale(study_in(tmp_path))


def test_without_any_run_no_number_is_ours(tmp_path):
    study = study_in(tmp_path)
    text = build(study).read_text()
    rows = sum(len(table.rows) for table in study.tables.values())
    assert (
        text.count('class="notrun start"') == rows
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
    blocks = ("ours", "paper", "Δ ours", "Δ paper")
    return ("AP", "APr", "APc", "APf", "APb").index(metric) + 5 * blocks.index(block)


def cell(row, metric, block="ours"):
    return f'#table06 tr[data-row="{row}"] td[data-c="{column(metric, block)}"] button'


def test_a_site_of_own_data_works_without_claims_and_published_numbers(chromium, tmp_path):
    study = load_study(own_scale(tmp_path / "own.yaml", own_dataset(tmp_path)))
    for row in study.tables["table02"].rows:
        fabricate(study, row.run, AP=20.0)
    chromium.complaints.clear()
    chromium.open(build(study))
    chromium.click('#table02 td[data-c="0"] button')
    assert "My data" in chromium.run("document.body.innerText")
    assert dialog(chromium) and chromium.complaints == []
    assert chromium.run("document.querySelector('.paper, .paper-gain')") is None


def dialog(page):
    return page.run('document.querySelector("dialog[open]")?.innerText')


def test_a_click_on_a_number_shows_its_run(page, study):
    page.click(cell("a0.4", "APr"))
    shown = dialog(page)
    assert all(study.fingerprint(RFS_PCB, seed) in shown for seed in (0, 1)) and RFS_PCB in shown
    assert "20.12" in shown and "21.1 ± 1.3" in shown and "as printed: 21.8" in shown
    assert "0123456789abcdef" in shown and "40 s" in shown
    link = page.run("document.querySelector('dialog a[href^=\"runs/\"]').getAttribute('href')")
    assert (study.paths.site / link) == study.paths.run_page(RFS_PCB)
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
    page.press("ArrowRight")
    assert "APc 0.2" in dialog(page).replace("\n", " ")


def visit(page, study, address):
    """Load the index at an address, as from a link elsewhere."""
    page.open("about://blank")
    page.open(study.paths.index.as_uri() + address)


def settle(page):
    """Wait until events of the last action were handled."""
    page.run("new Promise(r => setTimeout(r, 100))")


def test_every_number_has_an_address(page, study):
    visit(page, study, "#table06/a0.4/APr/gain")
    assert "APr 0.4" in dialog(page).replace("\n", " ") and "Base row: 0.0" in dialog(page)
    page.press("Escape")
    settle(page)
    assert dialog(page) is None and page.run("location.hash") == "#table06"
    for row in study.tables["table02"].rows:  # measured and not
        for metric in study.tables["table02"].columns:
            address = f"table02/{row.id}/{metric}"
            assert page.run(f"document.getElementById('{address}').closest('td') !== null")


def test_back_closes_the_dialog_and_stays_on_the_page(page, study):
    page.click(cell("a0.4", "AP"))
    assert page.run("location.hash") == "#table06/a0.4/AP" and dialog(page)
    page.run("new Promise(r => { addEventListener('popstate', r, {once: true}); history.back(); })")
    assert dialog(page) is None and page.run("location.hash") == ""
    page.run(
        "new Promise(r => { addEventListener('popstate', r, {once: true}); history.forward(); })"
    )
    assert "AP 0.4" in dialog(page).replace("\n", " ")


def test_order_and_filter_are_in_the_address(page, study):
    page.click(f'#table06 th[data-c="{column("AP")}"] button')
    shown = page.run("location.hash")
    order = "[...document.querySelectorAll('#table06 tbody tr')].map(r => r.dataset.row)"
    rows = page.run(order)
    assert "sort=AP" in shown
    visit(page, study, shown)
    assert page.run(order) == rows != [row.id for row in study.tables["table06"].rows]
    visit(page, study, "#claims?verdict=not+run&group=core")
    shown = "[...document.querySelectorAll('#claims tr[data-ours]')].filter(r => r.offsetHeight)"
    assert page.run(f"[...new Set({shown}.map(r => r.dataset.ours + r.dataset.group))]") == [
        "not runcore"
    ]
    page.run("document.querySelector('#filter [value=\"\"]').click()")
    assert page.run("location.hash") == "#claims?group=core"


def test_a_table_is_copied_as_it_is_shown(page):
    page.click(f'#table06 th[data-c="{column("APr", "paper")}"] button')
    page.run("navigator.clipboard.writeText = async text => { window.copied = text; }")
    for form in ("csv", "md", "tex"):
        page.click(f'[data-copy="table06"] [data-form="{form}"]')
        lines = page.run("new Promise(r => setTimeout(() => r(window.copied), 50))").splitlines()
        first = {"csv": 1, "md": 2, "tex": 5}[form]
        assert lines[first].startswith({"csv": "0.4,", "md": "| 0.4 |", "tex": "0.4 & "}[form])
        assert len(lines) == {"csv": 7, "md": 8, "tex": 13}[form]
    assert "Δ ours" not in page.run("window.copied")  # LaTeX has it as a command


def test_terms_are_explained_by_the_glossary(page):
    page.run("document.querySelector('#table06 th[data-term=\"AP_r\"] button').focus()")
    tip = page.run("document.getElementById('tip').innerText")
    assert tip == "AP_r: AP over the rare, common and frequent classes"
    page.press("Escape")
    assert page.run("document.getElementById('tip').hidden")


def test_values_of_a_claim_lead_to_their_cells(page):
    page.run("document.querySelector('#claims a[href=\"#table06/a0.4/AP\"]').click()")
    settle(page)
    assert "AP 0.4" in dialog(page).replace("\n", " ")


def test_print_unfolds_and_cuts_nothing(page):
    page.send("Emulation.setEmulatedMedia", media="print")
    page.resize(1047, 900)  # A4 landscape less its margins
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert page.run("document.querySelectorAll('details:not([open])').length") == 0
    widths = (
        "[...document.querySelectorAll('.pcb-table')].map(t => t.getBoundingClientRect().right)"
    )
    assert max(page.run(widths)) <= 1047
    page.send("Emulation.setEmulatedMedia", media="")


def test_the_head_of_a_table_that_fits_stays_in_sight(page):
    page.resize(1600, 500)
    page.run(
        "document.querySelector('#table06 tbody tr:nth-child(3)')"
        ".scrollIntoView({behavior: 'instant'})"
    )
    settle(page)
    top = page.run("document.querySelector('#table06 thead').getBoundingClientRect().top")
    assert 0 < top < 80 and page.run("document.querySelector('[aria-current]').hash") == "#tables"


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


def test_classes_of_a_run_can_be_searched_and_sorted(page, study):
    address = study.paths.run_page(RFS_PCB).as_uri()
    page.open(address)
    shown = (
        "[...document.querySelectorAll('.classes tbody tr:not([hidden]) th')].map(c => c.innerText)"
    )
    assert len(page.run(shown)) == 12
    page.click('[name="group"][value="f"]')
    assert len(page.run(shown)) == 8
    page.run(
        "const box = document.querySelector('[name=text]'); box.value = 'CLASS 1'; "
        "box.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    assert page.run(shown) == ["class 1"]
    page.open(f"{address}?groups=rc&sort=-ap")  # as the address was left, sorted
    assert page.run(shown)[:2] == ["class 7", "class 6"]
    page.click('th[data-key="name"] button')
    page.click('th[data-key="name"] button')
    assert page.run(shown)[0] == "class 0" and "sort=name" in page.run("location.search")


def test_nothing_is_wider_than_a_phone(page, study):
    for path in (study.paths.index, study.paths.html("table06"), study.paths.run_page(RFS_PCB)):
        page.resize(390, 844)
        page.open(path)
        assert page.run("document.documentElement.scrollWidth") <= 390


def test_colours_follow_the_system_setting(page):
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.run(ground)
    page.dark()
    assert (light, page.run(ground)) == ("rgb(255, 255, 255)", "rgb(20, 23, 27)")
    page.dark(False)
