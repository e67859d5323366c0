"""``search``: what it is given, how it runs, and what it reports."""
