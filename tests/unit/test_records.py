"""Records of jobs: absent, of another configuration, and broken ones."""

import json

import pytest

from pcb.errors import UserError
from pcb.study.records import current_record, read_record, require_record


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"fingerprint": "abc", "seed": 0}))
    return path


def test_an_absent_record_is_none(tmp_path):
    assert read_record(tmp_path / "run.json") is None
    assert current_record(tmp_path / "run.json", "abc") is None


def test_a_record_of_another_configuration_does_not_count(path):
    assert read_record(path) == current_record(path, "abc") == {"fingerprint": "abc", "seed": 0}
    assert current_record(path, "other") is None


@pytest.mark.parametrize("content", ['{"finger', '["abc"]', "\x00"])
def test_a_broken_record_is_an_error_that_names_the_file(path, content):
    path.write_text(content)
    for read in (read_record, lambda path: current_record(path, "abc")):
        with pytest.raises(UserError, match=r"run\.json cannot be read") as error:
            read(path)
        assert "delete it" in error.value.fix


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
