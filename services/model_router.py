"""Which model is asked: the deployments of a pool by weight and health, then who steps in by kind of error.

Health only reorders. A model that has failed too often is set aside for a while; when nobody else is left it is asked
all the same. Only models that the settings name have a health: for any other there is nobody to prefer.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from config.routing_settings import FallbackTable
from config.settings import ProviderSettings, SettingsError
from core.metrics import Metrics
from domain.errors import InvalidRequest, ModelNotFound, RateLimited, RouteurError, UpstreamFailure, UpstreamTimeout

logger = logging.getLogger(__name__)

Kind = Literal["down", "rate_limited", "context_length"]
KINDS: tuple[Kind, ...] = ("down", "rate_limited", "context_length")
_LONGEST_RETRY_AFTER = 600.0  # seconds; a provider that names a day is looked at again before
_TOO_LONG = "context_length_exceeded"


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model where it is served. `timeout`: seconds until its first byte before another is asked."""

    model: str
    weight: float = 1.0
    timeout: float | None = None


Group = tuple[Deployment, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Who may answer to one id: its deployments, then, by kind of error, those who step in, in this order."""

    deployments: Group
    fallbacks: Mapping[Kind, tuple[Group, ...]] = field(default_factory=dict)

    def everybody(self) -> Iterator[Deployment]:
        """All deployments of all groups."""
        yield from self.deployments
        for groups in self.fallbacks.values():
            for group in groups:
                yield from group


class _Health:
    """How a model has been doing. `until` None: well; a time: it is set aside until then, and then tried by one."""

    __slots__ = ("failures", "kind", "trial_until", "until")

    def __init__(self) -> None:
        self.failures = 0
        self.kind: Kind = "down"
        self.until: float | None = None
        self.trial_until = float("-inf")

    def ready(self, now: float) -> bool:
        return self.until is None or (now >= self.until and now >= self.trial_until)


class ModelRouter:
    """Routes calls and remembers how they went. One for each application.

    Args:
        plans: by the id that is called; ids without a plan are asked as they are.
        failures: in a row, after which a model is set aside.
        cooldown: for how many seconds.
        clock: seconds that only grow.
        draw: a number from 0 to under 1, for the weighted choice.
        metrics: where replaced calls are counted.
    """

    def __init__(
        self,
        plans: Mapping[str, Plan],
        *,
        failures: int = 3,
        cooldown: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
        metrics: Metrics | None = None,
    ) -> None:
        self._plans = dict(plans)
        self._failures = failures
        self._cooldown = cooldown
        self._metrics = metrics
        self.clock = clock
        self.draw = draw
        self._health = {one.model: _Health() for plan in plans.values() for one in plan.everybody()}
        if metrics is not None:
            metrics.models_cooling.set_function(self.cooling)

    def route(self, model_id: str) -> "Route":
        """Where the call of `provider/name`, as `LLMService.resolve` gave it, goes first."""
        return Route(self, model_id, self._plans.get(model_id))

    def deployments(self, model_id: str) -> Group:
        """Where the model of a plan is served: a pool's deployments."""
        return self._plans[model_id].deployments

    def models(self) -> list[str]:
        """Every model that may be asked in the place of another."""
        return list(self._health)

    def cooling(self) -> int:
        """How many models are set aside now."""
        now = self.clock()
        return sum(health.until is not None and health.until > now for health in self._health.values())

    # -- what a route asks and tells --

    def ready(self, model: str, now: float) -> bool:
        """True when it is well, or its time is over and nobody else is trying it."""
        return self._health[model].ready(now)

    def resting(self, model: str, now: float) -> Kind | None:
        """Why it is set aside; None: it is not."""
        health = self._health[model]
        return None if health.ready(now) else health.kind

    def until(self, model: str) -> float:
        """When its rest is over."""
        return self._health[model].until or 0.0

    def drawn(self, among: Sequence[Deployment]) -> Deployment:
        """One of them, by weight."""
        if len(among) == 1:
            return among[0]
        point = self.draw() * sum(one.weight for one in among)
        for one in among:
            point -= one.weight
            if point < 0:
                return one
        return among[-1]

    def tries(self, model: str, now: float) -> bool:
        """Take the trial of a model whose rest is over; True when there is one. Whoever never reports loses it."""
        health = self._health[model]
        if health.until is None:
            return False
        health.trial_until = now + self._cooldown
        return True

    def gives_back(self, model: str) -> None:
        """The trial told nothing: somebody else may try."""
        self._health[model].trial_until = float("-inf")

    def note_success(self, model: str) -> None:
        """It has answered."""
        health = self._health.get(model)
        if health is not None and health.failures:
            if health.until is not None:
                logger.info("model answers again", extra={"model": model})
            health.failures = 0
            health.until = None
            health.trial_until = float("-inf")

    def note_failure(self, model: str, kind: Kind, error: RouteurError) -> None:
        """It could not answer."""
        health = self._health.get(model)
        if health is None:
            return
        now = self.clock()
        asked = error.retry_after if isinstance(error, RateLimited) else None
        rest = max(self._cooldown, min(asked or 0.0, _LONGEST_RETRY_AFTER))
        health.failures += 1
        health.kind = kind
        well = health.until is None
        if well and asked is None and health.failures < self._failures:
            return
        if health.until is not None and now < health.until:  # calls that had begun before, or for want of others
            if asked is not None:
                health.until = max(health.until, now + rest)
            return
        health.until = now + rest
        health.trial_until = float("-inf")
        extra = {"model": model, "code": error.code, "seconds": round(rest, 1)}
        logger.warning("model is set aside" if well else "model is still not well", extra=extra)

    def note_replaced(self, model: str, by: str, kind: str, code: str) -> None:
        """Another model is asked instead."""
        extra = {"model": model, "next": by, "kind": kind, "code": code}
        logger.warning("model cannot answer, the next one is asked", extra=extra)
        if self._metrics is not None:
            self._metrics.replaced(model, kind)


class Route:
    """One call on its way: whom to ask now, and after a failure whom next.

    Attributes:
        model: `provider/name` to be asked now.
        timeout: seconds until its first byte, where its deployment says so.
        replaced: who was asked before and failed.
    """

    __slots__ = (
        "_asked",
        "_group",
        "_kinds",
        "_plan",
        "_router",
        "_too_long",
        "_trial",
        "model",
        "replaced",
        "timeout",
    )

    def __init__(self, router: ModelRouter, model_id: str, plan: Plan | None) -> None:
        self.model = model_id
        self.timeout: float | None = None
        self.replaced: tuple[str, ...] = ()
        self._router = router
        self._plan = plan
        self._trial = False
        if plan is not None:
            self._asked: tuple[str, ...] = ()
            self._kinds: tuple[Kind, ...] = ()
            self._too_long: tuple[Group, ...] = ()
            self._group = plan.deployments
            self._begin(model_id, plan, router.clock())

    @property
    def spare(self) -> bool:
        """True while another deployment of its pool is well: no use in trying this one twice."""
        if self._plan is None or len(self._group) == 1:
            return False
        now, passed = self._router.clock(), (*self._asked, self.model)
        return any(one.model not in passed and self._router.ready(one.model, now) for one in self._group)

    def succeeded(self) -> None:
        """It has answered to the end."""
        self._trial = False
        self._router.note_success(self.model)

    def failed(self, error: RouteurError, *, begun: bool = False) -> bool:
        """Note the failure; True: `model` is the next one now, ask it. False: nobody is left, raise the error.

        Args:
            begun: something of the answer has been seen; nobody may answer in its place.
        """
        kind = kind_of(error)
        if kind == "down" or kind == "rate_limited":
            self._trial = False
            self._router.note_failure(self.model, kind, error)
        else:
            self._give_back()
        missing = isinstance(error, ModelNotFound)
        if begun or self._plan is None or not (kind or missing):
            return False
        if kind is not None:
            self._remember(kind)
        before = self.model
        if not self._move_on(self._plan):
            return False
        self.replaced = (*self.replaced, before)
        self._router.note_replaced(before, self.model, kind or "not_found", error.code)
        return True

    def skipped(self) -> bool:
        """Whom `model` names cannot be asked at all, which is no failure; True: `model` is the next one now."""
        self._give_back()
        return self._plan is not None and self._move_on(self._plan)

    # -- the choice --

    def _begin(self, model_id: str, plan: Plan, now: float) -> None:
        own = plan.deployments
        if len(own) == 1 and self._router.ready(own[0].model, now):
            self._ask(own[0], own, now)
            return
        self._choose(plan, now)
        if self._group is not own:
            self._router.note_replaced(model_id, self.model, "set_aside", "set_aside")

    def _remember(self, kind: Kind) -> None:
        """What went wrong decides who steps in; a conversation too long for one deployment is so for its like."""
        if kind != "context_length":
            self._kinds = (*self._kinds, kind)
            return
        self._too_long = (*self._too_long, self._group)
        self._kinds = (kind, *self._kinds)

    def _move_on(self, plan: Plan) -> bool:
        self._asked = (*self._asked, self.model)
        return self._choose(plan, self._router.clock())

    def _choose(self, plan: Plan, now: float) -> bool:
        """The first group that has somebody well; else of all that are set aside, whoever is due first."""
        router, resting = self._router, []
        for group in self._groups(plan, now):
            open_ = [one for one in group if one.model not in self._asked]
            ready = [one for one in open_ if router.ready(one.model, now)]
            if ready:
                self._ask(router.drawn(ready), group, now)
                return True
            resting += [(one, group) for one in open_]
        if not resting:
            return False
        one, group = min(resting, key=lambda each: router.until(each[0].model))
        self._ask(one, group, now)
        return True

    def _groups(self, plan: Plan, now: float) -> Iterator[Group]:
        """Its own deployments, then those who step in for what went wrong: in this call, or before it."""
        own, kinds = plan.deployments, self._kinds
        if own in self._too_long:
            kinds = ("context_length",)
        else:
            yield own
            kinds += tuple(kind for one in own if (kind := self._router.resting(one.model, now)) is not None)
        for kind in dict.fromkeys(kinds):
            for group in plan.fallbacks.get(kind, ()):
                if group not in self._too_long:
                    yield group

    def _ask(self, one: Deployment, group: Group, now: float) -> None:
        self.model, self.timeout, self._group = one.model, one.timeout, group
        self._trial = self._router.ready(one.model, now) and self._router.tries(one.model, now)

    def _give_back(self) -> None:
        if self._trial:
            self._trial = False
            self._router.gives_back(self.model)


def kind_of(error: RouteurError) -> Kind | None:
    """The kind of error for which somebody may step in; None: nobody would do better."""
    if isinstance(error, RateLimited):
        return "rate_limited"
    if isinstance(error, UpstreamFailure | UpstreamTimeout):
        return "down"
    return "context_length" if isinstance(error, InvalidRequest) and error.code == _TOO_LONG else None


def plans_of(settings: ProviderSettings, canonical: Callable[[str], str | None]) -> dict[str, Plan]:
    """The plans that MODEL_POOLS and MODEL_FALLBACKS make.

    Args:
        canonical: `provider/name` of a model whose provider is configured, or of a pool; None: there is no such.

    Raises:
        SettingsError: a pool names a deployment of a provider that is not configured, or something stands there twice.
    """
    pools: dict[str, Group] = {}
    for name, pool in settings.model_pools.items():
        members = {}
        for one in pool.deployments:
            model = canonical(one.model)
            if model is None:
                raise SettingsError(
                    f"MODEL_POOLS: the pool '{name}' names '{one.model}', whose provider is not configured"
                )
            if model in members:
                raise SettingsError(f"MODEL_POOLS: the pool '{name}' names '{model}' twice")
            members[model] = Deployment(model, one.weight, one.timeout)
        pools[f"pool/{name}"] = tuple(members.values())
    plans = {name: Plan(group) for name, group in pools.items()}
    named_already: set[str] = set()
    for named, table in settings.model_fallbacks.items():
        asked = canonical(named)
        if asked is not None:
            if asked in named_already:
                raise SettingsError(f"MODEL_FALLBACKS names '{asked}' twice")
            named_already.add(asked)
            own = pools.get(asked) or (Deployment(asked),)
            plans[asked] = Plan(own, _stand_ins(named, table, pools, canonical))
    return plans


def _stand_ins(
    asked: str, table: FallbackTable, pools: Mapping[str, Group], canonical: Callable[[str], str | None]
) -> dict[Kind, tuple[Group, ...]]:
    found: dict[Kind, tuple[Group, ...]] = {}
    missing = set()
    for kind in KINDS:
        groups = []
        for named in getattr(table, kind):
            model = canonical(named)
            if model is None:
                missing.add(named)
            else:
                groups.append(pools.get(model) or (Deployment(model),))
        found[kind] = tuple(groups)
    for named in sorted(missing):
        extra = {"model": asked, "fallback": named}
        logger.warning("MODEL_FALLBACKS: the provider of a fallback is not configured; it is left out", extra=extra)
    return found
