"""Verbs about pages: tables, figures, the site, its copies, verdicts, comparisons."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from pcb.cli.arguments import Verbs, add_json, distance
from pcb.cli.selection import check_targets, load


def gather(arguments: Namespace) -> None:
    """Gather the numbers or pictures of a page.

    Reads its runs' metrics and detections, writes results/SCALE/gathered/TARGET.json.
    """
    from pcb.reporting.gather import gather as run

    study = load(arguments)
    check_targets(study, [arguments.target])
    run(study, arguments.target)


def render(arguments: Namespace) -> None:
    """Render a table, figure or page.

    Reads the gathered file and runs the page's notebook; writes the notebook, HTML and, for a table
    or figure, CSV, Markdown, LaTeX and PNG. Then the index page is written again, at most once a
    minute.
    """
    from pcb.reporting.notebook.render import render as run
    from pcb.reporting.site.build import refresh

    study = load(arguments)
    check_targets(study, [arguments.target])
    run(study, arguments.target)
    if line := refresh(study):
        print(line)


def site(arguments: Namespace) -> None:
    """Write the index page from the results that exist.

    Reads metrics and rendered pages, writes results/SCALE/site/index.html.
    """
    from pcb.reporting.site.build import build

    print(build(load(arguments)))


def verdict(arguments: Namespace) -> None:
    """Print whether PCB reproduces, where the gain comes from, and on which data.

    The lines follow from the results by a rule. `--write README.md` sets them between the marks of
    that file, which a test compares with the published results.
    """
    from pcb.reporting import findings
    from pcb.reporting import verdict as lines
    from pcb.reporting.results import Results

    study = load(arguments)
    if arguments.published:
        found = lines.of_published(study, arguments.published)
    else:
        results = Results(study)
        found = lines.of_results(results, findings.collect(results)["claims"])
    if arguments.write:
        lines.write_into(arguments.write, found)
    else:
        print(lines.plain(found))


def publish(arguments: Namespace) -> None:
    """Copy the site to a folder that can be committed or sent.

    Removes this machine's paths; writes DEST/index.html, and DEST/published.json, which lists the
    files of the copy. An earlier copy is replaced; everything else in DEST stays as it is.
    """
    from pcb import formatting
    from pcb.reporting.publish import publish as run
    from pcb.reporting.publish import size

    index = run(load(arguments), arguments.destination)
    print(f"{index}, {formatting.size(size(index.parent))} in all")


def compare(arguments: Namespace) -> None:
    """Compare two folders of results, by table cell and by claim.

    Takes results folders, published copies or sites. Values are compared on the seeds that both
    have; differences are B − A, with 95 % intervals where there are several seeds or bootstraps.
    Exit status 0 if all is equal within the tolerance, 1 if anything differs, 2 after a mistake.
    """
    import json

    from pcb.reporting import compare as comparing

    found = comparing.compare(arguments.a, arguments.b, arguments.tolerance, arguments.common)
    if arguments.json:
        print(json.dumps(comparing.as_data(found), indent=1))
    else:
        print(comparing.report(found, arguments.all))
    if not found.equal:
        raise SystemExit(1)


VERBS = (gather, render, site, verdict, publish, compare)


def add_to(verbs: Verbs) -> None:
    """Add the verbs and their arguments."""
    for do in (gather, render):
        verbs.add(do).add_argument("target", help="a table, figure or page, such as table05")
    verbs.add(site)
    command = verbs.add(verdict)
    command.add_argument(
        "--published",
        type=Path,
        metavar="DIR",
        help="of a copy that `pcb publish` wrote, such as results/published/mini",
    )
    command.add_argument(
        "--write", type=Path, metavar="FILE", help="a Markdown file with the marks of a verdict"
    )
    verbs.add(publish).add_argument(
        "destination", metavar="DEST", help="a folder that does not exist yet, or an earlier copy"
    )
    command = verbs.add(compare, scale=False, study=False)
    command.add_argument("a", metavar="A", help="a results folder, such as results/mini, or a site")
    command.add_argument("b", metavar="B", help="another, such as results/published/mini")
    command.add_argument(
        "--tolerance",
        type=distance,
        default=0.05,
        metavar="POINTS",
        help="values up to this far apart are equal (default: 0.05, half of the last digit)",
    )
    command.add_argument(
        "--common",
        action="store_true",
        help="leave out what only one side has; with different seeds the claims too",
    )
    command.add_argument("--all", action="store_true", help="list all differences")
    add_json(command)
