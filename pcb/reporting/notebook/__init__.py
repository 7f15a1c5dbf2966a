"""Notebooks: what their cells show, and how they are run and exported."""

from __future__ import annotations

import re
from pathlib import Path

from pcb.files import ROOT

FOR_PAGE = "application/vnd.pcb.page"  # HTML that a page shows in place of a notebook's image


def template(target: str) -> Path:
    """The notebook that renders a target, as a path in the repository.

    A target has the notebook of its own name, if there is one; other tables and figures share
    notebooks/table.ipynb.
    """
    own = Path("notebooks") / f"{target}.ipynb"
    shared = re.match("table|figure", target) and not (ROOT / own).exists()
    return own.with_name("table.ipynb") if shared else own
