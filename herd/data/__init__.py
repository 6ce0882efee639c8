"""Floor 2: text only. Sources, curation, mixture, dialogs, the meadow generator. Nothing imports torch."""
