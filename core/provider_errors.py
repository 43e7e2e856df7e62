"""What a provider's refusal means to our caller. Its own words are for the log."""

import email.utils
import math
import time
from collections.abc import Mapping

import orjson

from domain.errors import InvalidRequest, ModelNotFound, RateLimited, RouteurError, UpstreamFailure

_A_DAY = 86_400.0


def failure_of(
    provider: str, status: int, code: str, said: str, retry_after: float | None, *, model: str, setting: str
) -> RouteurError:
    """The failure for an HTTP status and an error code of `provider`.

    Args:
        code, said: as `provider_words` read them; neither is passed on.
        retry_after: seconds, where the provider named them.
        model: `provider/name`, for a 404.
        setting: what the operator should look at when our credentials are refused.
    """
    name = f"The provider '{provider}'"
    if status in (401, 403):
        return UpstreamFailure(f"{name} refused our credentials; check {setting}.", code="upstream_credentials")
    if status == 404:
        return ModelNotFound(model or provider, reason=f"{name} does not know it.")
    if status in (400, 413, 422, 501):  # 501: llama.cpp, of what it was not started for
        if "context_length" in code or "context length" in said.lower():
            message = "The conversation is longer than the model's context."
            return InvalidRequest(message, code="context_length_exceeded", param="messages")
        return InvalidRequest(f"{name} refused the request (status {status}).", code="provider_refused")
    if status == 429:
        if code == "insufficient_quota":
            return UpstreamFailure(f"{name} says that our account is out of credit.", code="upstream_quota")
        return RateLimited(f"{name} is busy; try again later.", retry_after=retry_after, code="upstream_busy")
    return UpstreamFailure(f"{name} failed (status {status}).", retry_after=retry_after)


def retry_after_of(headers: Mapping[str, str]) -> float | None:
    """Seconds, from `retry-after-ms` or `Retry-After` (seconds or a date), between 0 and a day; None: not said, or
    nothing that can be meant."""
    try:
        if milliseconds := headers.get("retry-after-ms"):
            seconds = float(milliseconds) / 1000
        elif (value := headers.get("retry-after")) is None:
            return None
        elif value.replace(".", "", 1).isdigit():
            seconds = float(value)
        else:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, seconds), _A_DAY) if math.isfinite(seconds) else None


def provider_words(body: bytes) -> tuple[str, str]:
    """A provider's error code and message, whatever shape it gave them."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "", body[:500].decode("utf-8", "replace")
    error = parsed.get("error", parsed) if isinstance(parsed, dict) else parsed
    if not isinstance(error, dict):
        return "", str(error)
    return str(error.get("code") or error.get("type") or ""), str(error.get("message") or error)
