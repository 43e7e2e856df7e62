"""What can be said of a pool: what holds for all its deployments."""

from collections.abc import Iterable, Sequence

from config.routing_settings import POOL
from domain.models import Abilities, ModelInfo


def pool_info(name: str, deployments: Sequence[ModelInfo], *, default: bool) -> ModelInfo:
    """The pool as a model: whoever calls it may be answered by any of `deployments`."""
    prices = {one.price for one in deployments}
    kinds = {one.kind for one in deployments}
    reasons = dict.fromkeys(one.unavailable_reason for one in deployments if one.unavailable_reason)
    available = any(one.available for one in deployments)
    return ModelInfo(
        id=f"{POOL}/{name}",
        provider=POOL,
        name=name,
        description=f"Any of {', '.join(one.id for one in deployments)}",
        kind=kinds.pop() if len(kinds) == 1 else "chat",
        context_window=_least(one.context_window for one in deployments),
        max_output_tokens=_least(one.max_output_tokens for one in deployments),
        price=prices.pop() if len(prices) == 1 else None,
        abilities=_shared([one.abilities for one in deployments]),
        available=available,
        unavailable_reason=None if available else " ".join(reasons),
        default=default,
        offline=all(one.offline for one in deployments),
    )


def _least(values: Iterable[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)


def _shared(abilities: Sequence[Abilities]) -> Abilities:
    """What all can do; one that cannot settles it, one that does not say leaves it open."""
    told: dict[str, bool | None] = {}
    for name in Abilities.model_fields:
        values = {getattr(one, name) for one in abilities}
        told[name] = False if False in values else None if None in values else True
    return Abilities(**told)
