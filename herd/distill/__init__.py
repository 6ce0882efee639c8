"""Floor 8: teaching smaller siblings from the flagship's own distribution."""
