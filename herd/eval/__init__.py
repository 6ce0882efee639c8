"""Floor 9: tasks, scorers and the runner. Knows engines, not trainers."""
