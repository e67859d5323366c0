"""The report of a run in its forms: on the terminal, as Markdown and as a page."""
