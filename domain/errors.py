"""The error family. Each member is one way in which a request can end badly.

    RouteurError
    ├── InvalidRequest          the caller sent something that cannot be meant
    │   ├── Malformed           ... or a place in a stream that is none
    │   ├── TooLarge            ... or too much of it
    │   └── UnsupportedMedia    ... or in a form we do not read
    ├── Unauthenticated         we do not know who calls
    ├── Forbidden               we know, and they may not
    ├── NotFound                it does not exist, or it is somebody else's
    │   ├── ModelNotFound
    │   └── AgentNotFound
    ├── Conflict                it cannot be done now, in this state
    ├── RateLimited             too much, too fast: `retry_after` says when
    ├── QuotaExceeded           the budget is spent
    ├── UpstreamFailure         a provider answered wrongly or not at all
    ├── UpstreamTimeout         a provider, or the agent, took too long
    ├── Unavailable             a part of us is not there (not configured, shutting down)
    └── InternalError           a fault of ours; its text never leaves the house

`ErrorKind` is what the outer floors translate: `api/errors.py` gives each kind its status, its OpenAI type and its
WebSocket close code, once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class ErrorKind(StrEnum):
    """What went wrong, in one word that every face of a failure carries."""

    INVALID = "invalid"
    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    UNSUPPORTED_MEDIA = "unsupported_media"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    RATE_LIMITED = "rate_limited"
    QUOTA = "quota"
    UPSTREAM_FAILURE = "upstream_failure"
    UPSTREAM_TIMEOUT = "timeout"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class FieldError:
    """One field that was wrong: `field` is a dotted path, `message` is for a human."""

    field: str
    message: str
    code: str = "invalid"


class RouteurError(Exception):
    """The root of the family; `message` is written for the caller and holds no secret, path or upstream text.

    Args:
        message: one sentence that says what is wrong and, where it can, what would be right.
        code: a stable word for programs (`model_not_found`); defaults to the kind.
        param: the request field that is at fault, if one is.
        retry_after: seconds after which trying again makes sense.
    """

    kind: ErrorKind = ErrorKind.INTERNAL

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        errors: Sequence[FieldError] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.kind.value
        self.param = param
        self.retry_after = retry_after
        self.errors = tuple(errors)


class InvalidRequest(RouteurError):
    """The request is wrong in a way the caller can mend."""

    kind = ErrorKind.INVALID


class Malformed(InvalidRequest):
    """A cursor that no stream of ours has given."""

    kind = ErrorKind.MALFORMED


class TooLarge(InvalidRequest):
    """The request is larger than the house takes."""

    kind = ErrorKind.TOO_LARGE


class UnsupportedMedia(InvalidRequest):
    """The body is not in a form this route reads."""

    kind = ErrorKind.UNSUPPORTED_MEDIA


class Unauthenticated(RouteurError):
    """No credential, or one that is not good (any more). Never says which part was wrong."""

    kind = ErrorKind.UNAUTHENTICATED


class Forbidden(RouteurError):
    """The caller is known and lacks the scope, the model or the agent."""

    kind = ErrorKind.FORBIDDEN


class NotFound(RouteurError):
    """It does not exist, or it belongs to somebody else: the same answer for both."""

    kind = ErrorKind.NOT_FOUND


class ModelNotFound(NotFound):
    """No configured provider serves that model; the message lists what can be called."""

    def __init__(self, model: str, available: Sequence[str] = (), *, reason: str = "") -> None:
        shown = ", ".join(available[:20]) or "none"
        why = f" {reason}" if reason else ""
        super().__init__(
            f"The model '{model[:200]}' does not exist or its provider is not configured.{why} Available: {shown}.",
            code="model_not_found",
            param="model",
        )


class AgentNotFound(NotFound):
    """No agent has that id; the message lists those that do."""

    def __init__(self, agent: str, available: Sequence[str] = ()) -> None:
        super().__init__(
            f"The agent '{agent[:200]}' does not exist. Available: {', '.join(available[:50]) or 'none'}.",
            code="agent_not_found",
            param="agent",
        )


class Conflict(RouteurError):
    """The thing is in a state in which this cannot be done."""

    kind = ErrorKind.CONFLICT


class RateLimited(RouteurError):
    """Too many requests; `retry_after` is set."""

    kind = ErrorKind.RATE_LIMITED


class QuotaExceeded(RouteurError):
    """A budget is spent; waiting a moment does not help."""

    kind = ErrorKind.QUOTA


class UpstreamFailure(RouteurError):
    """A provider refused, broke off or sent what cannot be read. Its own words stay in our log."""

    kind = ErrorKind.UPSTREAM_FAILURE


class UpstreamTimeout(RouteurError):
    """A provider or an agent took longer than its limit."""

    kind = ErrorKind.UPSTREAM_TIMEOUT


class Unavailable(RouteurError):
    """A part of the house is not there: not configured, or shutting down. Names the setting to change."""

    kind = ErrorKind.UNAVAILABLE


class InternalError(RouteurError):
    """A fault of ours. The message is for everyone, the cause is for the log."""

    kind = ErrorKind.INTERNAL

    def __init__(self, message: str = "Something went wrong on our side.") -> None:
        super().__init__(message)
