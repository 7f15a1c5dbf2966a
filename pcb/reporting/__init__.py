"""From metrics to pages: gather a table's rows, render its notebook, link all of it from one index. Never imports torch."""
