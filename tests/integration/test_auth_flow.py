"""Logging in, staying logged in, being thrown out."""

from collections.abc import Awaitable, Callable
from datetime import timedelta

import anyio
import pytest
import time_machine

from config.settings import Settings
from domain.auth import Scope
from tests.fakes.house import House, open_house

pytestmark = pytest.mark.anyio

Opener = Callable[[Settings], Awaitable[House]]


async def test_a_login_gives_what_oauth_clients_expect(house: House) -> None:
    answer = await house.log_in()
    tokens = answer.json()
    assert set(tokens) == {"access_token", "refresh_token", "token_type", "expires_in", "scope"}
    assert (tokens["token_type"], tokens["expires_in"]) == ("bearer", 900)
    assert set(tokens["scope"].split()) == set(Scope)
    assert answer.headers["cache-control"] == "no-store"
    assert (await house.me(tokens["access_token"])).json()["username"] == "admin"


async def test_unknown_user_and_wrong_password_are_the_same_answer(house: House) -> None:
    unknown, wrong = await house.log_in("nobody", "password"), await house.log_in("admin", "password")
    assert unknown.status_code == wrong.status_code == 401
    first, second = unknown.json(), wrong.json()
    first.pop("request_id")
    second.pop("request_id")
    assert first == second
    assert "www-authenticate" in wrong.headers


async def test_scopes_can_be_narrowed_and_not_widened(house: House) -> None:
    narrow = (await house.log_in(scope="completion")).json()
    assert narrow["scope"] == "completion"
    headers = {"authorization": f"Bearer {narrow['access_token']}"}
    refused = await house.anyone.get("/users", headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (403, "missing_scope")
    wider = await house.anyone.post(
        "/auth/token",
        data={"grant_type": "refresh_token", "refresh_token": narrow["refresh_token"], "scope": "completion admin"},
    )
    assert (wider.status_code, wider.json()["code"]) == (422, "invalid_scope")


async def test_a_refresh_token_is_good_once_and_its_second_use_ends_the_family(house: House) -> None:
    first = (await house.log_in()).json()
    second = (await house.refresh(first["refresh_token"])).json()
    assert (await house.me(second["access_token"])).status_code == 200
    assert (await house.refresh(first["refresh_token"])).status_code == 401
    assert (await house.refresh(second["refresh_token"])).status_code == 401, (
        "the thief's and the owner's are both dead"
    )
    assert (await house.me(second["access_token"])).status_code == 401
    assert (await house.me(house.tokens["access_token"])).status_code == 200, "another log-in lives on"


async def test_of_many_simultaneous_refreshes_one_succeeds(house: House) -> None:
    token = (await house.log_in()).json()["refresh_token"]
    statuses: list[int] = []

    async def spend() -> None:
        statuses.append((await house.refresh(token)).status_code)

    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(spend)
    assert sorted(statuses) == [200] + [401] * 7


async def test_logging_out_ends_the_login_at_the_next_request(house: House) -> None:
    tokens = (await house.log_in()).json()
    headers = {"authorization": f"Bearer {tokens['access_token']}"}
    assert (await house.anyone.post("/auth/logout", headers=headers)).status_code == 204
    assert (await house.me(tokens["access_token"])).status_code == 401
    assert (await house.refresh(tokens["refresh_token"])).status_code == 401


async def test_revoking_is_the_same_answer_for_known_and_unknown_tokens(house: House) -> None:
    tokens = (await house.log_in()).json()
    for token in (tokens["refresh_token"], "rt_unknown"):
        assert (await house.anyone.post("/auth/revoke", data={"token": token})).status_code == 200
    assert (await house.me(tokens["access_token"])).status_code == 401


async def test_an_access_token_can_be_revoked_too_and_an_api_key_elsewhere(house: House) -> None:
    tokens = (await house.log_in()).json()
    form = {"token": tokens["access_token"], "token_type_hint": "access_token"}
    assert (await house.anyone.post("/auth/revoke", data=form)).status_code == 200
    assert (await house.me(tokens["access_token"])).status_code == 401
    assert (await house.refresh(tokens["refresh_token"])).status_code == 401
    refused = await house.anyone.post("/auth/revoke", data={"token": "rk_something"})
    assert (refused.status_code, refused.json()["code"]) == (422, "unsupported_token_type")


@pytest.mark.parametrize("change", [{"disabled": True}, {"password": "another password"}, {"scopes": ["completion"]}])
async def test_a_changed_user_is_logged_out_everywhere_at_once(house: House, change: dict[str, object]) -> None:
    user = await house.add_user("ada")
    tokens = (await house.log_in("ada", "a good password")).json()
    assert (await house.me(tokens["access_token"])).status_code == 200
    assert (await house.client.patch(f"/users/{user['id']}", json=change)).status_code == 200
    assert (await house.me(tokens["access_token"])).status_code == 401
    assert (await house.refresh(tokens["refresh_token"])).status_code == 401
    assert (await house.log_in("ada", "a good password")).status_code == (200 if "scopes" in change else 401)


async def test_a_deleted_user_is_gone_with_every_credential(house: House) -> None:
    user = await house.add_user("ada")
    tokens = (await house.log_in("ada", "a good password")).json()
    key = await house.anyone.post(
        "/auth/keys", json={"name": "k"}, headers={"authorization": f"Bearer {tokens['access_token']}"}
    )
    assert (await house.client.delete(f"/users/{user['id']}")).status_code == 204
    for credential in (tokens["access_token"], key.json()["key"]):
        assert (await house.me(credential)).status_code == 401


async def test_the_last_admin_cannot_be_lost(house: House) -> None:
    me = (await house.client.get("/auth/me")).json()
    for change in ({"disabled": True}, {"scopes": ["completion"]}):
        refused = await house.client.patch(f"/users/{me['user_id']}", json=change)
        assert (refused.status_code, refused.json()["code"]) == (409, "last_admin")
    assert (await house.client.delete(f"/users/{me['user_id']}")).status_code == 409
    assert (await house.client.get("/users")).status_code == 200


async def test_a_revocation_in_one_process_counts_in_the_other(settings: Settings) -> None:
    async with open_house(settings) as one, open_house(settings) as other:
        token = one.tokens["access_token"]
        assert (await other.me(token)).status_code == 200
        await one.client.post("/auth/logout")
        assert (await other.me(token)).status_code == 401


async def test_a_restart_keeps_tokens_and_the_secret_is_ours_alone(settings: Settings) -> None:
    async with open_house(settings) as before:
        token = before.tokens["access_token"]
    secret = settings.storage.data_dir / "secret_key"
    assert secret.stat().st_mode & 0o777 == 0o600
    async with open_house(settings) as after:
        assert (await after.me(token)).status_code == 200


async def test_an_access_token_ends_with_its_time(house: House) -> None:
    token = house.tokens["access_token"]
    assert (await house.me(token)).status_code == 200
    with time_machine.travel(timedelta(seconds=901), tick=True):
        assert (await house.me(token)).status_code == 401, "a cached credential too"


async def test_an_api_key_lives_and_ends(house: House) -> None:
    made = await house.client.post("/auth/keys", json={"name": "ci", "scopes": ["completion"]})
    key = made.json()
    assert made.status_code == 201
    assert key["key"].startswith("rk_")
    for headers in ({"authorization": f"Bearer {key['key']}"}, {"x-api-key": key["key"]}):
        assert (await house.anyone.get("/auth/me", headers=headers)).json()["credential"] == "api_key"
    headers = {"authorization": f"Bearer {key['key']}"}
    assert (await house.anyone.get("/users", headers=headers)).status_code == 403
    assert (await house.anyone.post("/auth/logout", headers=headers)).status_code == 422
    listed = (await house.client.get("/auth/keys")).text
    assert key["key"] not in listed
    assert key["id"] in listed
    assert (await house.client.delete(f"/auth/keys/{key['id']}")).status_code == 204
    assert (await house.anyone.get("/auth/me", headers=headers)).status_code == 401
    assert (await house.client.delete(f"/auth/keys/{key['id']}")).status_code == 404


async def test_an_api_key_expires(house: House) -> None:
    key = (await house.client.post("/auth/keys", json={"name": "short", "expires_in": 60})).json()["key"]
    assert (await house.me(key)).status_code == 200
    with time_machine.travel(timedelta(seconds=61), tick=True):
        assert (await house.me(key)).status_code == 401


async def test_a_key_is_never_stronger_than_who_asks_for_it(house: House) -> None:
    await house.add_user("ada", scopes=["completion"])
    token = (await house.log_in("ada", "a good password")).json()["access_token"]
    headers = {"authorization": f"Bearer {token}"}
    refused = await house.anyone.post("/auth/keys", json={"name": "k", "scopes": ["admin"]}, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_scope")
    fenced = {"name": "k", "models": ["offline/rules"], "agents": ["simple"]}
    key = (await house.anyone.post("/auth/keys", json=fenced, headers=headers)).json()["key"]
    wider = await house.anyone.post(
        "/auth/keys", json={"name": "k2", "models": ["openai/gpt-4o"]}, headers={"x-api-key": key}
    )
    assert wider.json()["code"] == "beyond_own_key"
    inherited = (await house.anyone.post("/auth/keys", json={"name": "k3"}, headers={"x-api-key": key})).json()
    assert (inherited["models"], inherited["agents"]) == (["offline/rules"], ["simple"])


async def test_a_key_with_an_allow_list_opens_only_those(house: House) -> None:
    fence = {"name": "k", "models": ["offline/rules"], "agents": ["simple"]}
    key = (await house.client.post("/auth/keys", json=fence)).json()["key"]
    headers = {"x-api-key": key}
    assert (await house.anyone.post("/completion", json={"message": "x"}, headers=headers)).status_code == 200
    other_agent = await house.anyone.post("/completion", json={"message": "x", "agent": "react"}, headers=headers)
    assert (other_agent.status_code, other_agent.json()["code"]) == (403, "agent_not_allowed")
    other_model = await house.anyone.post("/completion", json={"message": "x", "model": "offline/y"}, headers=headers)
    assert (other_model.status_code, other_model.json()["code"]) == (403, "model_not_allowed")


async def test_another_users_key_is_not_there(house: House) -> None:
    mine = (await house.client.post("/auth/keys", json={"name": "mine"})).json()
    await house.add_user("ada")
    token = (await house.log_in("ada", "a good password")).json()["access_token"]
    headers = {"authorization": f"Bearer {token}"}
    theirs = await house.anyone.delete(f"/auth/keys/{mine['id']}", headers=headers)
    nothing = await house.anyone.delete("/auth/keys/does-not-exist", headers=headers)
    assert theirs.status_code == nothing.status_code == 404
    assert theirs.json()["detail"] == nothing.json()["detail"]


async def test_wrong_passwords_make_the_next_try_wait_and_are_forgiven(house: House) -> None:
    for _ in range(5):
        assert (await house.log_in("admin", "wrong")).status_code == 401
    blocked = await house.log_in()
    assert blocked.status_code == 429
    assert int(blocked.headers["retry-after"]) >= 1
    with time_machine.travel(timedelta(seconds=5), tick=True):
        assert (await house.log_in()).status_code == 200
        assert (await house.log_in("admin", "wrong")).status_code == 401
        assert (await house.log_in()).status_code == 200, "a success forgives what was mistyped"


async def test_unknown_names_are_throttled_like_known_ones(house: House) -> None:
    for _ in range(5):
        assert (await house.log_in("nobody", "wrong")).status_code == 401
    assert (await house.log_in("nobody", "wrong")).status_code == 429


async def test_too_many_logins_from_one_address_wait(open_with: Opener, settings: Settings) -> None:
    limits = settings.rate_limits.model_copy(update={"login_per_minute": 3})
    house = await open_with(settings.model_copy(update={"rate_limits": limits}))
    statuses = [(await house.log_in()).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]  # the first of three was the fixture's own
    assert (await house.anyone.get("/health")).status_code == 200


async def test_a_forged_forwarding_header_does_not_lift_the_limit(open_with: Opener, settings: Settings) -> None:
    limits = settings.rate_limits.model_copy(update={"login_per_minute": 2})
    house = await open_with(settings.model_copy(update={"rate_limits": limits}))
    house.anyone.headers["x-forwarded-for"] = "203.0.113.9"
    assert [(await house.log_in()).status_code for _ in range(2)] == [200, 429]


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"grant_type": "password"},
        {"grant_type": "password", "username": "admin"},
        {"grant_type": "client_credentials"},
        {"grant_type": "refresh_token"},
        {"grant_type": "password", "username": "admin", "password": "x", "client_id": "app"},
        {"grant_type": "password", "username": "a" * 9_000, "password": "x"},
        {"grant_type": "password", "username": "admin", "password": "x", "audience": "elsewhere"},
        {"grant_type": "refresh_token", "refresh_token": "rt_x", "username": "admin"},
    ],
)
async def test_a_form_that_makes_no_sense_is_refused_by_name(house: House, form: dict[str, str]) -> None:
    answer = await house.anyone.post("/auth/token", data=form)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_taken_username_is_a_conflict(house: House) -> None:
    await house.add_user("ada")
    again = await house.client.post("/users", json={"username": "ada", "password": "a good password"})
    assert (again.status_code, again.json()["code"]) == (409, "username_taken")


async def test_no_answer_shows_a_password_or_a_hash(house: House) -> None:
    await house.add_user("ada", password="hunter2-hunter2")
    for answer in (await house.client.get("/users"), await house.client.get("/auth/me")):
        assert "argon2" not in answer.text
        assert "hunter2" not in answer.text
    refused = await house.client.post("/users", json={"username": "bob", "password": "hunter2"})
    assert refused.status_code == 422
    assert "hunter2" not in refused.text
