"""``optimize``: its steps, and what it writes."""
