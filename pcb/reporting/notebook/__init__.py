"""Notebooks: what their cells show, and how they are run and exported."""

FOR_PAGE = "application/vnd.pcb.page"  # HTML that a page shows in place of a notebook's image
