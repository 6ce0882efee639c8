"""Floor 2: text only. Sources, curation, the meadow generator. Nothing imports torch."""
