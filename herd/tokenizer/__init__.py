"""Floor 3: text to ids and back, the dialog codec and token shards. Nothing here imports torch."""
