"""Who is asked, who steps in for whom, and when somebody is left alone for a while."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.settings import ProviderSettings, SettingsError
from core.metrics import Metrics
from domain.errors import (
    InvalidRequest,
    ModelNotFound,
    RateLimited,
    RouteurError,
    Unavailable,
    UpstreamFailure,
    UpstreamTimeout,
)
from services.model_router import Deployment, ModelRouter, Plan, Route, plans_of

DOWN = UpstreamFailure("down")
SLOW = UpstreamTimeout("slow")
BUSY = RateLimited("busy")
TOO_LONG = InvalidRequest("too long", code="context_length_exceeded")
MISSING = ModelNotFound("x/y")

A, B, C = Deployment("a/m"), Deployment("b/m"), Deployment("c/m")
POOL = {"pool/p": Plan((A, B))}
BACKED = {"a/m": Plan((A,), {"down": ((B,), (C,)), "rate_limited": ((B,),)})}


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def router(plans: dict[str, Plan], clock: Clock | None = None, **more: object) -> ModelRouter:
    """One that draws the first of those that are well."""
    return ModelRouter(plans, clock=clock or Clock(), draw=lambda: 0.0, **more)  # type: ignore[arg-type]


def fail(routes: ModelRouter, model: str, error: RouteurError = DOWN, times: int = 3) -> None:
    """That model, asked for by its own name, fails so often."""
    for _ in range(times):
        routes.route(model).failed(error)


def order(route: Route, error: RouteurError) -> list[str]:
    """Everybody who is asked when all fail with `error`."""
    asked = [route.model]
    while route.failed(error):
        asked.append(route.model)
    return asked


def test_a_model_that_the_settings_do_not_name_is_asked_as_it_is_whatever_happens() -> None:
    routes = router(POOL)
    for _ in range(10):
        route = routes.route("x/y")
        assert (route.model, route.timeout, route.replaced) == ("x/y", None, ())
        assert not route.failed(DOWN)
    assert routes.cooling() == 0


@settings(max_examples=50)
@given(
    st.lists(st.floats(0.1, 100), min_size=1, max_size=8),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=20),
)
def test_each_deployment_is_drawn_exactly_within_its_share(weights: list[float], points: list[float]) -> None:
    members = tuple(Deployment(f"p/{number}", weight) for number, weight in enumerate(weights))
    routes = router({"pool/p": Plan(members)})
    total = sum(weights)
    for point in points:
        routes.draw = lambda point=point: point  # type: ignore[misc]
        number = int(routes.route("pool/p").model.removeprefix("p/"))
        below, until = sum(weights[:number]), sum(weights[: number + 1])
        assert below - 1e-6 <= point * total <= until + 1e-6


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=4))
def test_over_many_calls_the_shares_are_the_weights(weights: list[int]) -> None:
    members = tuple(Deployment(f"p/{number}", weight) for number, weight in enumerate(weights))
    routes, calls = ModelRouter({"pool/p": Plan(members)}), 4_000
    drawn = Counter(routes.route("pool/p").model for _ in range(calls))
    for member in members:
        share = member.weight / sum(weights)
        spread = (calls * share * (1 - share)) ** 0.5
        assert abs(drawn[member.model] - calls * share) < 6 * spread


@pytest.mark.parametrize("error", [DOWN, SLOW, BUSY, MISSING])
def test_the_other_deployments_are_asked_once_each(error: RouteurError) -> None:
    route = router({"pool/p": Plan((A, B, C))}).route("pool/p")
    assert order(route, error) == ["a/m", "b/m", "c/m"]
    assert route.replaced == ("a/m", "b/m")


@pytest.mark.parametrize("error", [InvalidRequest("bad"), Unavailable("off"), TOO_LONG])
def test_what_another_would_refuse_too_is_not_asked_again(error: RouteurError) -> None:
    assert order(router(POOL).route("pool/p"), error) == ["a/m"]


@pytest.mark.parametrize("error", [DOWN, SLOW, BUSY, TOO_LONG])
def test_nobody_goes_on_with_what_another_has_begun(error: RouteurError) -> None:
    route = router(POOL).route("pool/p")
    assert not route.failed(error, begun=True)
    assert (route.model, route.replaced) == ("a/m", ())


def test_a_deployments_own_timeout_is_told() -> None:
    route = router({"pool/p": Plan((Deployment("a/m", timeout=2.5), B))}).route("pool/p")
    assert route.timeout == 2.5
    assert route.failed(SLOW)
    assert route.timeout is None


def test_only_while_another_deployment_is_well_there_is_one_to_spare() -> None:
    assert not router(BACKED).route("a/m").spare, "a fallback is another model"
    assert not router(BACKED).route("x/y").spare
    routes = router(POOL)
    route = routes.route("pool/p")
    assert route.spare
    assert route.failed(DOWN)
    assert not route.spare
    fail(routes, "b/m")
    assert not routes.route("pool/p").spare


def test_after_three_failures_in_a_row_others_come_first_until_the_cooldown_is_over() -> None:
    clock = Clock()
    routes = router(POOL, clock, cooldown=30)
    fail(routes, "a/m", times=2)
    assert routes.route("pool/p").model == "a/m"
    fail(routes, "a/m", times=1)
    assert routes.cooling() == 1
    assert routes.route("pool/p").model == "b/m"
    clock.now = 29.9
    assert routes.route("pool/p").model == "b/m"
    clock.now = 30
    assert routes.cooling() == 0
    assert routes.route("pool/p").model == "a/m"


def test_a_success_between_them_makes_failures_begin_anew() -> None:
    routes = router(POOL)
    fail(routes, "a/m", times=2)
    routes.route("a/m").succeeded()
    fail(routes, "a/m", times=2)
    assert routes.route("pool/p").model == "a/m"


def test_a_success_ends_a_cooldown() -> None:
    routes = router(POOL)
    late = routes.route("pool/p")
    fail(routes, "a/m")
    assert routes.route("pool/p").model == "b/m"
    late.succeeded()
    assert routes.route("pool/p").model == "a/m"


@pytest.mark.parametrize("error", [InvalidRequest("bad"), MISSING, TOO_LONG, Unavailable("off")])
def test_what_is_not_the_models_fault_sets_nobody_aside(error: RouteurError) -> None:
    routes = router(POOL)
    fail(routes, "a/m", error, times=20)
    assert routes.route("pool/p").model == "a/m"


@pytest.mark.parametrize(("asked", "rest"), [(0.0, 30), (5.0, 30), (120.0, 120), (86_400.0, 600)])
def test_a_provider_that_names_when_to_come_back_is_left_alone_at_once(asked: float, rest: float) -> None:
    clock = Clock()
    routes = router(POOL, clock, cooldown=30)
    fail(routes, "a/m", RateLimited("busy", retry_after=asked), times=1)
    clock.now = rest - 0.1
    assert routes.route("pool/p").model == "b/m"
    clock.now = rest
    assert routes.route("pool/p").model == "a/m"


def test_when_nobody_else_is_left_those_set_aside_are_asked_whoever_is_due_first() -> None:
    clock = Clock()
    routes = router({"pool/p": Plan((A, B, C))}, clock)
    fail(routes, "b/m")
    clock.now = 5
    fail(routes, "a/m")
    assert order(routes.route("pool/p"), DOWN) == ["c/m", "b/m", "a/m"]


def test_a_model_without_an_alternative_is_never_refused() -> None:
    routes = router({"a/m": Plan((A,))})
    fail(routes, "a/m", times=10)
    assert routes.route("a/m").model == "a/m"


def test_failures_of_one_that_is_set_aside_do_not_prolong_its_rest() -> None:
    clock = Clock()
    routes = router(POOL, clock, cooldown=30)
    fail(routes, "a/m")
    clock.now = 20
    fail(routes, "a/m", times=5)  # calls that had begun before, or had nobody else
    clock.now = 30
    assert routes.route("pool/p").model == "a/m"


def test_one_call_at_a_time_tries_whether_it_is_well_again() -> None:
    clock = Clock()
    routes = router(POOL, clock)
    fail(routes, "a/m")
    clock.now = 30
    trial = routes.route("pool/p")
    assert trial.model == "a/m"
    assert {routes.route("pool/p").model for _ in range(5)} == {"b/m"}
    assert trial.failed(DOWN)
    assert trial.model == "b/m"
    clock.now = 59
    assert routes.route("pool/p").model == "b/m", "one failed trial is enough for another rest"
    clock.now = 60
    trial = routes.route("pool/p")
    trial.succeeded()
    assert [routes.route("pool/p").model for _ in range(2)] == ["a/m", "a/m"]


def test_a_trial_whose_caller_has_left_is_given_to_another() -> None:
    clock = Clock()
    routes = router(POOL, clock, cooldown=30)
    fail(routes, "a/m")
    clock.now = 30
    assert routes.route("pool/p").model == "a/m"  # cancelled: never heard of again
    assert routes.route("pool/p").model == "b/m"
    clock.now = 60
    assert routes.route("pool/p").model == "a/m"


@pytest.mark.parametrize("how", ["refused", "skipped"])
def test_a_trial_that_told_nothing_is_given_back(how: str) -> None:
    clock = Clock()
    routes = router(POOL, clock)
    fail(routes, "a/m")
    clock.now = 30
    trial = routes.route("pool/p")
    if how == "refused":
        trial.failed(InvalidRequest("bad"))
    else:
        assert trial.skipped()
        assert trial.replaced == (), "it was not asked"
    assert routes.route("pool/p").model == "a/m"


def test_fallbacks_are_those_of_the_kind_of_error() -> None:
    plan = Plan((A,), {"down": ((B,),), "rate_limited": ((C,),), "context_length": ((Deployment("long/m"),),)})
    for error, expected in ((DOWN, "b/m"), (SLOW, "b/m"), (BUSY, "c/m"), (TOO_LONG, "long/m")):
        route = router({"a/m": plan}).route("a/m")
        assert route.failed(error)
        assert route.model == expected


def test_fallbacks_of_fallbacks_are_not_followed() -> None:
    plans = {"a/m": Plan((A,), {"down": ((B,),)}), "b/m": Plan((B,), {"down": ((C,),)})}
    assert order(router(plans).route("a/m"), DOWN) == ["a/m", "b/m"]


def test_a_list_goes_on_when_one_of_it_fails_in_another_way() -> None:
    route = router(BACKED).route("a/m")
    assert route.failed(DOWN)
    assert route.failed(BUSY)
    assert route.model == "c/m"
    assert route.failed(MISSING) is False
    assert route.replaced == ("a/m", "b/m")


def test_a_single_model_that_does_not_exist_is_not_replaced() -> None:
    assert order(router(BACKED).route("a/m"), MISSING) == ["a/m"]


def test_a_pools_other_deployments_come_before_its_fallbacks() -> None:
    plan = {"pool/p": Plan((A, B), {"down": ((C,),)})}
    assert order(router(plan).route("pool/p"), DOWN) == ["a/m", "b/m", "c/m"]


def test_too_long_for_one_deployment_is_too_long_for_its_like() -> None:
    long, longer = Deployment("long/m"), Deployment("longer/m")
    plan = {"pool/p": Plan((A, B), {"down": ((C,),), "context_length": ((long,), (longer,))})}
    assert order(router(plan).route("pool/p"), TOO_LONG) == ["a/m", "long/m", "longer/m"]
    route = router(plan).route("pool/p")
    assert route.failed(TOO_LONG)
    assert order(route, DOWN) == ["long/m", "longer/m"]


def test_a_pool_may_step_in_and_the_well_of_it_come_first() -> None:
    routes = router({"a/m": Plan((A,), {"down": ((B, C),)})})
    fail(routes, "b/m")
    assert order(routes.route("a/m"), DOWN) == ["a/m", "c/m", "b/m"]


def test_a_model_that_is_set_aside_is_not_waited_for_when_somebody_can_step_in() -> None:
    metrics = Metrics()
    routes = router(BACKED, metrics=metrics)
    fail(routes, "a/m")
    route = routes.route("a/m")
    assert (route.model, route.replaced) == ("b/m", ())
    assert order(route, DOWN) == ["b/m", "c/m", "a/m"]
    told = metrics.render().decode()
    assert 'routeur_model_calls_replaced_total{kind="set_aside",model="a/m"} 1.0' in told


def test_replaced_calls_and_models_that_cool_down_are_counted() -> None:
    metrics, clock = Metrics(), Clock()
    routes = router(POOL, clock, metrics=metrics)
    for error in (DOWN, DOWN, BUSY):
        assert routes.route("pool/p").failed(error)
    told = metrics.render().decode()
    assert 'routeur_model_calls_replaced_total{kind="down",model="a/m"} 2.0' in told
    assert 'routeur_model_calls_replaced_total{kind="rate_limited",model="a/m"} 1.0' in told
    assert "routeur_models_cooling 1.0" in told
    clock.now = 30
    assert "routeur_models_cooling 0.0" in metrics.render().decode()


def test_who_was_replaced_by_whom_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    router(POOL).route("pool/p").failed(DOWN)
    (record,) = [record for record in caplog.records if "next one is asked" in record.message]
    assert (record.levelname, record.__dict__["model"], record.__dict__["next"]) == ("WARNING", "a/m", "b/m")


# -- what the settings make of it --


def known(named: str) -> str | None:
    return named if named.startswith(("openai/", "mistral/", "pool/")) else None


def planned(**values: object) -> dict[str, Plan]:
    return plans_of(ProviderSettings.model_validate(values), known)


def test_a_list_of_fallbacks_is_for_models_that_are_down_or_busy() -> None:
    plan = planned(model_fallbacks={"openai/a": ["mistral/b"]})["openai/a"]
    stand_in = ((Deployment("mistral/b"),),)
    assert plan.fallbacks == {"down": stand_in, "rate_limited": stand_in, "context_length": ()}


def test_a_pool_of_a_provider_that_is_not_configured_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match=r"MODEL_POOLS.*'chat'.*'nobody/x'"):
        planned(model_pools={"chat": {"deployments": [{"model": "openai/a"}, {"model": "nobody/x"}]}})


def test_a_fallback_of_a_provider_that_is_not_configured_is_left_out_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan = planned(model_fallbacks={"openai/a": ["nobody/x", "mistral/b"]})["openai/a"]
    assert plan.fallbacks["down"] == ((Deployment("mistral/b"),),)
    assert [record.__dict__["fallback"] for record in caplog.records] == ["nobody/x"]


def test_a_pool_has_fallbacks_and_is_one() -> None:
    plans = planned(
        model_pools={"chat": {"deployments": [{"model": "openai/a", "weight": 3, "timeout": 5}]}},
        model_fallbacks={"pool/chat": {"down": ["mistral/b"]}, "mistral/b": ["pool/chat"]},
    )
    members = (Deployment("openai/a", 3, 5),)
    assert plans["pool/chat"].deployments == members
    assert plans["pool/chat"].fallbacks["down"] == ((Deployment("mistral/b"),),)
    assert plans["mistral/b"].fallbacks["down"] == (members,)


@pytest.mark.parametrize(
    "values",
    [
        {"model_pools": {"chat": {"deployments": []}}},
        {"model_pools": {"chat": {"deployments": [{"model": "openai/a"}, {"model": "openai/a"}]}}},
        {"model_pools": {"chat": {"deployments": [{"model": "pool/other"}]}}},
        {"model_pools": {"chat": {"deployments": [{"model": "openai/a", "weight": 0}]}}},
        {"model_pools": {"chat": {"deployments": [{"model": "openai/a", "timeout": 0}]}}},
        {"model_pools": {"a/b": {"deployments": [{"model": "openai/a"}]}}},
        {"model_fallbacks": {"pool/none": ["openai/a"]}},
        {"model_fallbacks": {"openai/a": ["pool/none"]}},
        {"model_fallbacks": {"openai/a": {"sideways": ["mistral/b"]}}},
        {"compatible": {"pool": {"base_url": "http://x"}}},
        {"failures_before_cooldown": 0},
        {"cooldown": 0},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="ProviderSettings"):
        ProviderSettings.model_validate(values)
