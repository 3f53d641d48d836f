"""Placeholder until the real module lands."""

from __future__ import annotations


class Expression: ...


class Template: ...


class PathTemplate(Template): ...


class TopicTemplate(Template): ...


class UrlTemplate(Template): ...
