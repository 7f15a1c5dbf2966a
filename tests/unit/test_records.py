"""Records of jobs: absent, of another configuration, changed and broken ones."""

import json
import os
import subprocess

import pytest

from pcb.errors import UserError
from pcb.study import records
from pcb.study.records import current_record, read_record, require_record, write_record

CONTENT = {"fingerprint": "abc", "seed": 0, "values": {"ü": [1e-17, None, float("inf")]}}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run.json"
    write_record(path, CONTENT)
    return path


def test_an_absent_record_is_none(tmp_path):
    assert read_record(tmp_path / "run.json") is None
    assert current_record(tmp_path / "run.json", "abc") is None


def test_a_record_of_another_configuration_does_not_count(path):
    assert read_record(path) == current_record(path, "abc") == CONTENT
    assert current_record(path, "other") is None


def test_a_record_may_have_numbers_as_keys(tmp_path):
    write_record(tmp_path / "run.json", {"classes": {10: 1.5, 9: 2.5}})
    assert read_record(tmp_path / "run.json") == {"classes": {"10": 1.5, "9": 2.5}}


@pytest.mark.parametrize(
    "content", ['{"finger', '["abc"]', "\x00", "", "null", "3", "[" * 100_000, b"\xff{}"]
)
def test_a_broken_record_is_an_error_that_names_the_file(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for read in (read_record, lambda path: current_record(path, "abc")):
        with pytest.raises(UserError, match=r"run\.json cannot be read") as error:
            read(path)
        assert "delete it" in error.value.fix


def test_a_record_that_was_changed_is_an_error(path):
    written = path.read_text(encoding="utf-8")
    path.write_text(written.replace('"seed": 0', '"seed": 1'), encoding="utf-8")
    with pytest.raises(UserError, match="changed after it was written"):
        read_record(path)
    with pytest.raises(UserError) as error:
        require_record(path, "abc", "pcb train RUN")
    assert error.value.fix == "run `pcb train RUN` again"  # which writes the file anew
    path.write_text(json.dumps(json.loads(written), indent=4))  # another layout, equal values
    assert read_record(path) == CONTENT


@pytest.mark.parametrize("content", ["{}", '{"fingerprint": "abc"}'])
def test_a_record_that_no_job_wrote_does_not_count(path, content):
    path.write_text(content)
    assert read_record(path) is current_record(path, "abc") is None
    with pytest.raises(UserError, match="of another configuration: fingerprint None"):
        require_record(path, "abc", "pcb train RUN")


def test_a_required_record_names_the_command_that_writes_it(path):
    assert require_record(path, "abc", "pcb train RUN")["seed"] == 0
    with pytest.raises(
        UserError, match="of another configuration: fingerprint abc, not x"
    ) as error:
        require_record(path, "x", "pcb train RUN")
    assert error.value.fix == "run `pcb train RUN` again"
    path.unlink()
    with pytest.raises(UserError, match=r"run\.json does not exist") as error:
        require_record(path, "abc", "pcb train RUN")
    assert error.value.fix == "run `pcb train RUN` first"


def test_the_commit_is_that_of_this_repository_alone(tmp_path, monkeypatch):
    """A copy without `.git` inside another repository has none, and its index stays as it is."""

    def git(*arguments):
        identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True)

    git("init", "-q")
    code = tmp_path / "copy/code.py"
    code.parent.mkdir()
    code.write_text("1")
    git("add", "-A"), git("commit", "-qm", "first")
    index = (tmp_path / ".git/index").read_bytes()
    os.utime(code, (0, 0))  # so that `git status` would refresh the index
    monkeypatch.setattr(records, "ROOT", tmp_path)
    assert records.git()["changed"] is False
    assert (tmp_path / ".git/index").read_bytes() == index
    code.write_text("2")
    assert records.git()["changed"] is True
    monkeypatch.setattr(records, "ROOT", code.parent)
    assert records.git() is None
