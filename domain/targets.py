"""Who is meant by `model` where OpenAI's clients name it: an agent of ours, or a model itself."""

import re
from dataclasses import dataclass

from domain.agents import AGENT_ID_PATTERN
from domain.errors import InvalidRequest

_AGENT = "agent/"
_AGENT_ID = re.compile(AGENT_ID_PATTERN)


@dataclass(frozen=True, slots=True)
class Target:
    """Who is meant by `model`: an agent (with a model of the caller's choice), or a model itself."""

    agent: str | None
    model: str | None

    def shown(self, served: str) -> str:
        """How an answer names who gave it."""
        return f"{_AGENT}{self.agent}@{served}" if self.agent else served


def target_of(model: str) -> Target:
    """`agent/<id>`, `agent/<id>@provider/name`, or a model.

    Raises:
        InvalidRequest: what stands after `agent/` is no agent's id.
    """
    if not model.startswith(_AGENT):
        return Target(None, model)
    agent, at, chosen = model.removeprefix(_AGENT).partition("@")
    if not _AGENT_ID.fullmatch(agent) or (at and not chosen):
        raise InvalidRequest("An agent is called as agent/<id> or agent/<id>@provider/name.", param="model")
    return Target(agent, chosen or None)
