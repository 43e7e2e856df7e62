"""What the commands of the terminal have in common."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import typer
from rich.console import Console

from config.environment import load_settings
from core.logging import setup_logging
from domain.auth import CredentialKind, Principal, Scope, UserId
from services.container import Services, open_services

T = TypeVar("T")

out = Console()
err = Console(stderr=True)


def with_services(work: Callable[[Services], Awaitable[T]]) -> T:
    settings = load_settings()
    setup_logging(settings.log.model_copy(update={"level": "WARNING"}))

    async def run() -> T:
        async with open_services(settings) as services:
            return await work(services)

    return asyncio.run(run())


def checked(make: Callable[[], T]) -> T:
    try:
        return make()
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


async def operator_of(services: Services, username: str | None) -> Principal:
    """Whoever sits at this terminal may read the keys anyway: they speak as that user, ADMIN_USERNAME by default."""
    user = await services.users.find(username or services.settings.security.admin_username)
    return Principal(UserId(user.id), user.username, frozenset({Scope.ADMIN}), CredentialKind.ACCESS_TOKEN, "terminal")
