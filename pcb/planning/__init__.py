"""The work of a study: what it costs, and how much of it is done."""
