"""Floor 6: batches, feeds, objectives and the one training loop."""
