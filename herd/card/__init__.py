"""Floor 10: the model card as a pure function of the ledger. Records in, Markdown and HTML out; no torch."""

from herd.card.build import build
from herd.card.document import Card
from herd.card.figures import Figure
from herd.card.html import to_html
from herd.card.markdown import to_markdown
from herd.card.summary import safety_summary, summary
from herd.card.verify import verify

__all__ = ["Card", "Figure", "build", "safety_summary", "summary", "to_html", "to_markdown", "verify"]
