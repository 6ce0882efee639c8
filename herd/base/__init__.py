"""Floor 0: what every other package may lean on. Nothing here imports torch."""
