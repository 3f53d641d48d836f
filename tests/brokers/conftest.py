"""The brokers that are started once for all tests of this folder."""

from tests.brokers.rabbitmq import rabbitmq, rabbitmq_process

__all__ = ["rabbitmq", "rabbitmq_process"]
