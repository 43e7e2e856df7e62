"""Store a run that another library made: save it, go on with it, read it back.

`.venv/bin/python -m examples.record_a_pydantic_ai_run` (no network: pydantic-ai's own test model answers)
"""

import asyncio

from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel
from rich.console import Console

from config.environment import load_settings
from domain.auth import CredentialKind, Principal, Scope, UserId
from domain.enums import Role
from domain.messages import Message
from domain.sessions import AppendMessages
from services.container import Services, open_services


async def record(router: Services, caller: Principal) -> str:
    """Save a run, append to its session; the session's id."""
    agent = Agent(TestModel(custom_output_text="Paris."), system_prompt="Be brief.")
    result = await agent.run("What is the capital of France?")
    saved = await router.sessions.save_run(result, caller, agent="geographer", metadata={"source": "pydantic-ai"})
    assert saved.session_id is not None
    follow_up = await agent.run("And of Italy?", message_history=result.all_messages())
    await router.sessions.save_run(follow_up, caller, agent="geographer", session_id=saved.session_id)
    note = AppendMessages(messages=[Message(role=Role.USER, content="Thank you.")])
    await router.sessions.append_to_session(saved.session_id, note, caller)
    return saved.session_id


async def main() -> None:
    """Save, and show what is stored."""
    settings = load_settings()
    console = Console()
    async with open_services(settings) as router:
        await router.users.ensure_admin()
        user = await router.users.find(settings.security.admin_username)
        caller = Principal(
            UserId(user.id), user.username, frozenset({Scope.ADMIN}), CredentialKind.ACCESS_TOKEN, "example"
        )
        session = await router.sessions.get_session(await record(router, caller), caller)
        for line in session.messages:
            console.print(f"[bold]{line.role.value}[/] {line.content}", highlight=False)
        usage = session.token_usage.usage
        console.print(f"{usage.total_tokens if usage else '?'} tokens in {session.token_usage.calls} calls")


if __name__ == "__main__":
    asyncio.run(main())
