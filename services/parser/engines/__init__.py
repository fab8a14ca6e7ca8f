"""The PDF engines, and the two steps that child processes run with them."""

from services.parser.engines.options import ParserOptions
from services.parser.engines.steps import Extraction, Plan, extract, plan

__all__ = ["Extraction", "ParserOptions", "Plan", "extract", "plan"]
