"""`pcb publish`: a copy without local paths, which touches only what an earlier one wrote."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fabricate import RFS_PCB, SOFTMAX, fabricate, study_in

from pcb.errors import UserError
from pcb.files import ROOT, write_text
from pcb.reporting import publish as publishing
from pcb.reporting.gather import gather
from pcb.reporting.notebook.render import render
from pcb.reporting.publish import cleaned, publish
from pcb.study.records import read_record, write_record


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """A results folder with one measured row of Table 6, whose page was rendered by a kernel."""
    study = study_in(tmp_path_factory.mktemp("rendered-here"))
    fabricate(study, RFS_PCB)
    gather(study, "table06")
    render(study, "table06")
    return study


@pytest.fixture
def study(rendered, tmp_path):
    """The same results after they were moved: `rendered`'s folder is not this study's."""
    shutil.copytree(rendered.paths.root, tmp_path / "moved" / rendered.paths.root.name)
    return study_in(tmp_path / "moved")


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_no_file_of_the_site_names_a_local_folder(rendered, study):
    files = content(study.paths.site)
    assert {"notebooks/table06.ipynb", "notebooks/table06.html"} <= files.keys()
    assert b"../../gathered/table06.json" in files["notebooks/table06.ipynb"]
    for folder in (rendered.paths.root.parent, Path.home(), ROOT):
        assert not [name for name, text in files.items() if f"{folder}/".encode() in text]


def test_a_rendered_notebook_runs_where_it_lies_after_a_move(study):
    code = (
        "from pcb.reporting import tables; print(tables.load('../../gathered/table06.json').target)"
    )
    done = subprocess.run(
        [os.sys.executable, "-c", code],
        cwd=study.paths.notebook("table06").parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert done.stdout == "table06\n"


def test_a_copy_has_the_site_a_readme_and_a_list_and_no_path_of_a_machine(
    rendered, study, tmp_path
):
    index = publish(study, tmp_path / "copy")
    copy = content(tmp_path / "copy")
    assert index == tmp_path / "copy/index.html"
    site = set(content(study.paths.site))
    assert set(copy) == site | {"README.md", "published.json"}
    links = re.findall(r"\]\((.+?)\)", copy["README.md"].decode())
    assert set(links) == {"tables/table06.md", "notebooks/table06.ipynb"} and set(links) <= site
    listed = read_record(tmp_path / "copy/published.json")["files"]
    assert set(listed) == site | {"README.md"}
    for folder in (rendered.paths.root.parent, study.paths.root.parent, Path.home(), ROOT):
        assert not [name for name, text in copy.items() if f"{folder}/".encode() in text]


def test_publishing_again_changes_and_deletes_only_files_of_the_copy(study, tmp_path):
    copy = tmp_path / "copy"
    publish(study, copy)
    own = content(copy)
    notes = {
        ".git/HEAD": b"ref",
        ".nojekyll": b"",
        "CNAME": b"example.org",
        "notes/mine.md": b"years of work",
        "tables/mine.csv": b"1,2",
    }
    for name, text in notes.items():
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes(text)
    publish(study, copy)
    assert content(copy) == own | notes
    shutil.rmtree(study.paths.site / "notebooks")
    shutil.rmtree(study.paths.site / "tables")
    publish(study, copy)
    left = content(copy)
    assert notes.items() <= left.items() and not (copy / "notebooks").exists()
    assert {name for name in left if name.startswith("tables/")} == {"tables/mine.csv"}


def test_a_call_that_was_cut_off_can_be_repeated(study, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    publish(study, copy)
    fabricate(study, RFS_PCB, AP=12.0)
    gather(study, "table06")
    write_text(study.paths.html("table06"), "<p>another</p>")
    atomic, count = publishing.atomic, iter(range(100))

    def fail(path, **options):
        if next(count) == 3:
            raise OSError(28, "No space left on device")
        return atomic(path, **options)

    monkeypatch.setattr(publishing, "atomic", fail)
    with pytest.raises(UserError, match="No space left"):
        publish(study, copy)
    monkeypatch.undo()
    publish(study, copy)
    assert content(copy)["notebooks/table06.html"] == b"<p>another</p>"


def test_a_published_file_that_was_edited_is_not_replaced(study, tmp_path):
    copy = tmp_path / "copy"
    publish(study, copy)
    (copy / "README.md").write_text("my own words")
    before = content(copy)
    with pytest.raises(UserError, match=r"README\.md was not written by .* or was edited") as error:
        publish(study, copy)
    assert content(copy) == before and error.value.fix == "move it away, or delete it"
    (copy / "README.md").unlink()
    publish(study, copy)


def test_a_copy_of_the_first_version_is_replaced(study, tmp_path):
    copy = tmp_path / "copy"
    publish(study, copy)
    own = content(copy)
    (copy / "published.json").unlink()
    for folder in ("docs", "runs"):  # it had neither
        shutil.rmtree(copy / folder)
    (copy / "CNAME").write_text("example.org")
    publish(study, copy)
    assert content(copy) == own | {"CNAME": b"example.org"}


def test_other_places_are_refused_before_anything_is_touched(study, tmp_path, monkeypatch):
    repository, thesis, working = (tmp_path / name for name in ("repo", "thesis", "working/inside"))
    for folder in (repository / ".git", thesis, working, tmp_path / "real"):
        folder.mkdir(parents=True)
    (thesis / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    shutil.copytree(study.paths.site, working.parent, dirs_exist_ok=True)
    monkeypatch.chdir(working)
    refused = {
        ".": "working directory",
        "..": "working directory",
        str(working.parent): "working directory",
        "/": "working directory",
        str(Path.home()): "home folder",
        str(ROOT): "the repository",
        str(study.paths.root): "overlaps the results folder",
        str(study.paths.site): "overlaps the results folder",
        str(study.paths.root / "new/copy"): "overlaps the results folder",
        str(study.paths.root.parent): "overlaps the results folder",
        str(tmp_path / "link"): "symbolic link",
        str(tmp_path / "file"): "is not a folder",
        str(tmp_path / "file/copy"): "Not a directory",
        str(repository): "root of a repository",
        str(thesis): "not a published site",
        "/proc/x": "could not be written",
    }
    before = content(tmp_path)
    for place, message in refused.items():
        with pytest.raises(UserError, match=message):
            publish(study, place)
    index = study.paths.index.relative_to(tmp_path).as_posix()
    after = content(tmp_path)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    site = index.removesuffix("index.html")
    # The site, what it was made from, and the lock under which it was made.
    built = (
        site,
        *(site.replace("/site/", name) for name in ("/gathered/pages/", "/logs/site.lock")),
    )
    assert not [name for name in sorted(changed) if not name.startswith(built)]


def test_links_inside_a_copy_are_not_followed(study, tmp_path):
    copy, other = tmp_path / "copy", tmp_path / "other"
    publish(study, copy)
    shutil.move(copy / "tables", other)
    (copy / "tables").symlink_to(other)
    before = content(other)
    with pytest.raises(UserError, match="behind a symbolic link"):
        publish(study, copy)
    assert content(other) == before
    (copy / "tables").unlink()
    names = {"files": {"../other/table06.csv": ["0"]}}
    write_record(copy / "published.json", names)
    with pytest.raises(UserError, match="outside its folder"):
        publish(study, copy)


def test_a_copy_inside_a_git_repository(study, tmp_path):
    repository = tmp_path / "repository"

    def git(*arguments):
        identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        command = ["git", "-C", str(repository), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout

    repository.mkdir()
    git("init", "-q")
    (repository / "README.md").write_text("mine")
    git("add", "-A"), git("commit", "-qm", "mine")
    for _ in range(2):
        publish(study, repository / "docs")
        git("add", "-A"), git("commit", "-qm", "site", "--allow-empty")
    names = set(git("ls-files").split())
    assert {"README.md", "docs/index.html", "docs/published.json"} <= names
    assert (
        git("diff", "--stat", "HEAD~1") == "" and (repository / "README.md").read_text() == "mine"
    )


def test_pages_of_earlier_results_are_not_published(study, tmp_path):
    fabricate(study, RFS_PCB, AP=12.0)
    with pytest.raises(UserError, match="show other results than there are now: table06") as error:
        publish(study, tmp_path / "copy")
    assert "snakemake --cores all table06" in error.value.fix and not (tmp_path / "copy").exists()
    fabricate(study, SOFTMAX, AP=12.0)
    gather(study, "table06")
    publish(study, tmp_path / "copy")


@pytest.mark.parametrize(
    "path", [f"{Path.home()}/secret", "/home/ann/x.pth", "/Users/ann/x", "C:\\Users\\ann", "/tmp/x"]
)
def test_a_file_that_names_a_local_folder_is_not_published(rendered, path):
    with pytest.raises(UserError, match=r"table06\.html would name"):
        cleaned(f"<p>{path}</p>", rendered, Path("table06.html"))
    picture = f"data:image/png;base64,iVBOR{path}/Kgo= https://x.org/home/ann"
    if not path.startswith("C"):
        assert cleaned(picture, rendered, Path("table06.html")) == picture
