"""The embedded default corpus: a small closed world told in eight languages by hand-written grammars.

Everything comes from one seed: documents, held-out text, dialogs, preferences, guard rows, benchmarks.
"""

from herd.data.meadow.config import MeadowConfig
from herd.data.meadow.detect import final_answer, identify_language, is_refusal
from herd.data.meadow.meadow import CUT_OFF, Meadow
from herd.data.meadow.tools import tool_catalogue

__all__ = [
    "CUT_OFF",
    "Meadow",
    "MeadowConfig",
    "final_answer",
    "identify_language",
    "is_refusal",
    "tool_catalogue",
]
