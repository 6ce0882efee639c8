"""Floor 8: post-training from dialogs and preferences."""
