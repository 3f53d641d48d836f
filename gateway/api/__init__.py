"""The REST control plane: what operators and programs ask of a running gateway. Never on the way of data."""

from gateway.api.application import application
from gateway.api.control import Control
from gateway.api.server import Serving, serving

__all__ = ["Control", "Serving", "application", "serving"]
