"""The report of restkv-eval: one HTML page that needs nothing else, and a Markdown table."""

from .page import html_page
from .tables import markdown

__all__ = ["html_page", "markdown"]
