"""Errors that are the user's to fix. The command line prints them as one line and exits with status 2."""


class HerdError(ValueError):
    """A mistake in the input: the message says what, where, and the remedy."""


class ConfigError(HerdError):
    """A recipe or an override that can't be used."""


class DataError(HerdError):
    """A corpus, dialog or benchmark file that can't be used."""


class RunError(HerdError):
    """A run folder that can't be used as asked: locked, made by another recipe, or incomplete."""
