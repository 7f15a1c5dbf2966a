"""Durations, sizes, device hours, examples, names of targets, as text for a person."""

from __future__ import annotations

import re
from collections.abc import Collection

MAX_EXAMPLES = 5  # in a message; the rest is only counted


def examples(values: Collection) -> str:
    """The first few values and the number of all: `3, 7, 9 (3 in all)`."""
    first = ", ".join(map(str, list(values)[:MAX_EXAMPLES]))
    return f"{first}{', …' if len(values) > MAX_EXAMPLES else ''} ({len(values)} in all)"


def counted(number: int, one: str, many: str = "") -> str:
    """A number of things: `1 image`, `1,200 images`.

    Args:
        number: How many there are.
        one: What one of them is called, such as `image` or `image is missing`.
        many: What several are called; "": `one` with an s.
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """A length of time: `43 s`, `12 min`, `3 h 20 min`, `4 days 6 h`."""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 72:
        return f"{hours} h {minutes} min" if hours else f"{minutes} min"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} days {hours} h" if hours else f"{days} days"


def device_hours(value: float | None) -> str:
    """Hours of a device: `0.04`, `3.2`, `1,234`; `?` where they are not known."""
    if value is None:
        return "?"
    if value >= 10:
        return f"{value:,.0f}"
    return f"{value:.2g}" if value < 1 else f"{value:.1f}"


def size(count: float | None) -> str:
    """Bytes, in decimal units: `812 MB`, `2.4 GB`; `?` where they are not known."""
    if count is None:
        return "?"
    if not count:
        return "0"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.5:
            return f"{count:.1f} {unit}" if count < 9.95 else f"{count:.0f} {unit}"
    return f"{count / 1000:.1f} TB"


def commit(git: dict) -> str:
    """The first seven digits of a record's commit, with a `+` where files had been changed."""
    return git["commit"][:7] + ("+" if git.get("changed") else "")


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign, `+0.3` or `−1.2`; one that rounds to zero has none."""
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text if round(value, digits) else text[1:]


def number(target: str) -> str:
    """The name of a table, figure or page: `Table 6`, `Figure 1`, `Gallery`."""
    name, digits = _split(target)
    return f"{name.capitalize()} {digits}".strip()


def short(target: str) -> str:
    """The shortest name of a table, figure or page: `6`, `F1`, `gallery`."""
    name, digits = _split(target)
    return {"table": digits, "figure": f"F{digits}"}.get(name, target)


def _split(target: str) -> tuple[str, str]:
    """`table06` -> (`table`, `6`)."""
    match = re.fullmatch(r"(.*?)0*(\d*)", target)
    assert match
    return match[1], match[2]
