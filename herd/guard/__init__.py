"""Floor 7: the hazard taxonomy, the guard model around it, and the shield around an engine."""
