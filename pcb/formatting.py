"""How lengths of time, sizes and tables are worded for a person."""

from __future__ import annotations

UNITS = {"s": 1 / 3600, "min": 1 / 60, "m": 1 / 60, "h": 1, "d": 24}


def duration(seconds: float) -> str:
    """`43 s`, `12 min`, `3 h 20 min`, `4 days 6 h`."""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 72:
        return f"{hours} h {minutes} min" if hours else f"{minutes} min"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} days {hours} h" if hours else f"{days} days"


def hours(value: float | None) -> str:
    """`0.04`, `3.2`, `1,234`; `?` where it is not known."""
    if value is None:
        return "?"
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}" if value < 1 else f"{value:.1f}"


def size(count: float | None) -> str:
    """Bytes as `812 MB`, `2.4 GB`; `?` where they are not known."""
    if count is None:
        return "?"
    if not count:
        return "0"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.5:
            return f"{count:.1f} {unit}" if count < 9.95 else f"{count:.0f} {unit}"
    return f"{count / 1000:.1f} TB"


def short(target: str) -> str:
    """`table05` -> `5`, `figure1` -> `F1`."""
    return (
        target.removeprefix("table").lstrip("0")
        if target.startswith("table")
        else target.replace("figure", "F")
    )
