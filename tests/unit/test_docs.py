"""The documents name what exists: links, layers, rules and paths."""

from __future__ import annotations

import re
import tomllib
from itertools import takewhile

import pytest

from pcb.files import ROOT
from pcb.reporting import verdict
from pcb.study import load_study

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_documents_resolve(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_that_documents_name_exist(page):
    modules = re.findall(r"`(pcb/[\w/]+\.(?:py|smk|yaml|json))`", page.read_text())
    assert not [module for module in modules if not (ROOT / module).exists()]


def test_the_drawing_shows_the_layers_of_the_import_contract():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(c["layers"] for c in config["contracts"] if c["id"] == "layers")
    contract = [name.strip(" ()") for layer in layers for name in layer.split("|")]
    drawing = ARCHITECTURE.split("```")[1].strip().splitlines()
    drawn = [name.strip() for line in drawing for name in re.split(r"\s{2,}", line)[0].split("│")]
    assert drawn == contract


def test_the_table_of_jobs_lists_every_rule():
    rules = set()
    for path in (ROOT / "workflow/rules").glob("*.smk"):
        rules |= set(re.findall(r"^ *rule (\w+):", path.read_text(), re.M))
    jobs = ARCHITECTURE.split("## Jobs")[1].split("## State")[0]
    assert rules <= set(re.findall(r"`(\w+)`", jobs))


def test_the_readme_has_the_verdict_of_the_published_results():
    found = verdict.of_published(load_study("mini"), ROOT / "results/published/mini")
    block = (ROOT / "README.md").read_text().split(verdict.BEGIN)[1].split(verdict.END)[0]
    again = "run `pcb verdict --published results/published/mini --write README.md`"
    assert block.strip() == verdict.markdown(found), again


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_targets_of_a_command_are_no_settings(page):
    """Snakemake reads every word behind `--config`, up to the next option, as key=value."""
    text = page.read_text().replace("\\\n", " ")
    for command in re.findall(r"snakemake [^`\n]*--config [^`\n]*", text):
        behind = command.split(" #")[0].partition("--config ")[2].split()
        settings = [word.strip("'\"") for word in takewhile(lambda w: w[0] != "-", behind)]
        assert all("=" in word for word in settings), command
