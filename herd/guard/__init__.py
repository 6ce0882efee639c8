"""Floor 7: the guard model, and the shield around an engine."""
