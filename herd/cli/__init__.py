"""The command line: one small file a verb. Nothing here imports torch before a verb needs it."""
