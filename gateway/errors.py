"""The three errors of the gateway, each named for who must act.

    GatewayError
    ├── ConfigError     the operator: nothing starts
    ├── MessageError    the sender, or an operator with the dead letter: trying again changes nothing
    └── PeerError       nobody yet: the other side is away, busy or broken, and is tried again

Anything else that is raised is a bug of ours: logged once with its traceback, and the message is refused.
"""

from __future__ import annotations

from typing import Literal

Refusal = Literal[
    "refused",  # the content is wrong: HTTP 422, MLLP AE
    "malformed",  # the bytes are not what their content type says: HTTP 400, MLLP AE
    "too_large",  # over a limit: HTTP 413
    "unsupported",  # a content type that the source does not take: HTTP 415
    "unauthenticated",  # HTTP 401
    "forbidden",  # HTTP 403
    "internal",  # a bug of ours: HTTP 500, MLLP AR
]

INTERNAL = "the gateway failed on this message; its log says why"
"""All that anybody outside hears of a bug."""


class GatewayError(Exception):
    """What the gateway raises on purpose. Its text says subject, what was found, what was expected, what to do."""


class ConfigError(GatewayError):
    """The operator must act: `routes.yaml`, a file that it names, or the machine is not as it must be."""


class MessageError(GatewayError):
    """The message can't pass, now or later: the sender is told where it can be, else it is a dead letter.

    code: what kind of refusal it is, so that an adapter can choose its protocol's word for it.
    reply: the Message that a peer refused it with, if it answered with one.
    told: what the sender hears in place of the text, where that is about what is inside (addresses, files). The engine
        fills it in for what a target raises, so that no sink has to think of it.
    place: the step or target that raised it, such as `steps.2.map`; the engine fills it in.
    """

    def __init__(
        self, text: str, *, code: Refusal = "refused", reply: object | None = None, told: str | None = None
    ) -> None:
        super().__init__(text)
        self.code = code
        self.reply = reply
        self.told = told
        self.place: str | None = None

    @property
    def for_sender(self) -> str:
        """What the sender hears. The text itself is for log, history and dead letter."""
        return str(self) if self.told is None else self.told


class PeerError(GatewayError):
    """The other side could not take it now. It is tried again where the route retries, else the sender does.

    reconnect: the link is broken: the engine closes it and opens it again, once for all sends that used it.
    wait_s: how long the peer itself asked to be left alone (HTTP `Retry-After`), in seconds; None: it did not say.
    too_late: there was no answer within the time allowed, and the peer may have acted (HTTP 504 rather than 502).
    reply: the Message that the peer answered with all the same (HTTP 500 and its body).
    answered: the peer ended the link after it had answered on it, as it may do each time: a new one is made at once.
    told: what the sender hears in place of the text, which names the peer; the engine fills it in for a target's.
    """

    def __init__(
        self,
        text: str,
        *,
        reconnect: bool = False,
        wait_s: float | None = None,
        too_late: bool = False,
        reply: object | None = None,
        answered: bool = False,
        told: str | None = None,
    ) -> None:
        super().__init__(text)
        self.reconnect = reconnect
        self.wait_s = wait_s
        self.too_late = too_late
        self.reply = reply
        self.answered = answered
        self.told = told

    @property
    def for_sender(self) -> str:
        """What the sender hears: never the text."""
        return "it was not taken" if self.told is None else self.told
