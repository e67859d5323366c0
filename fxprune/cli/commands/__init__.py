"""The commands as a shell sees them: their arguments and options, and what is called with these."""
