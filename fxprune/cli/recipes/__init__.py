"""What ``optimize`` is asked for: options, recipes that are read and written, and the script that does the same."""
