"""The one expression language: Jinja2's syntax, sandboxed, compiled at load, evaluated for each message.

Jinja2 parses; what it parses becomes plain functions here (closures.py): nothing is generated or evaluated as Python,
a simple condition costs a fraction of a microsecond, and each part that may be used is on a list: names (paths.py),
methods (sandbox.py), filters (filters.py, texts.py), tests (conditions.py), statements (statements.py).
"""

from gateway.expressions.closures import PLACE
from gateway.expressions.expression import Expression
from gateway.expressions.places import PathTemplate, TopicTemplate, UrlTemplate
from gateway.expressions.templates import Template
from gateway.expressions.vocabulary import plug_filters

__all__ = ["PLACE", "Expression", "PathTemplate", "Template", "TopicTemplate", "UrlTemplate", "plug_filters"]
