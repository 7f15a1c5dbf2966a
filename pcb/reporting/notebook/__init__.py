"""Notebooks: what their cells show, and how they are run and exported."""
