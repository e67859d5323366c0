"""The algebra of linear layers: one written as several, and several as one."""
