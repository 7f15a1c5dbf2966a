"""Durations, sizes, device hours, commits and names of targets, as text."""

import pytest

from pcb.formatting import commit, counted, device_hours, duration, number, short, signed, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (0.4, "0 s"),
        (89, "89 s"),
        (100, "2 min"),
        (3600 * 3 + 1200, "3 h 20 min"),
        (72 * 3600, "3 days"),
        (102 * 3600, "4 days 6 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_one_of_a_thing_is_no_plural():
    assert [counted(n, "image") for n in (0, 1, 1200)] == ["0 images", "1 image", "1,200 images"]
    missing = ("file is missing", "files are missing")
    assert [counted(n, *missing) for n in (1, 2)] == ["1 file is missing", "2 files are missing"]


@pytest.mark.parametrize(
    ("value", "text"), [(None, "?"), (0.04, "0.04"), (3.21, "3.2"), (1234.4, "1,234")]
)
def test_device_hours(value, text):
    assert device_hours(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "?"),
        (0, "0"),
        (1_500, "1.5 kB"),
        (812e6, "812 MB"),
        (999.6e6, "1.0 GB"),
        (3e12, "3.0 TB"),
    ],
)
def test_sizes(count, text):
    assert size(count) == text


@pytest.mark.parametrize(
    ("target", "name", "shortest"),
    [
        ("table06", "Table 6", "6"),
        ("table10", "Table 10", "10"),
        ("figure1", "Figure 1", "F1"),
        ("gallery", "Gallery", "gallery"),
    ],
)
def test_names_of_targets(target, name, shortest):
    assert number(target) == name and short(target) == shortest


def test_a_commit_with_changed_files_has_a_plus():
    git = {"commit": "0123456789abcdef"}
    assert commit(git) == "0123456" and commit({**git, "changed": ["a.py"]}) == "0123456+"


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0.34, 1, "+0.3"), (-1.25, 2, "−1.25"), (-0.04, 1, "0.0"), (0.0, 2, "0.00")],
)
def test_differences(value, digits, text):
    assert signed(value, digits) == text
