"""From metrics to pages: gather tables, render notebooks, build the site. Never imports torch."""
