"""The PDF engines, and the two steps that child processes run with them."""

from services.parser.engines.options import ParserOptions
from services.parser.engines.steps import Extraction, Plan, begin, extract, plan

__all__ = ["Extraction", "ParserOptions", "Plan", "begin", "extract", "plan"]
