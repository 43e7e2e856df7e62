"""Two dossiers, three analyses, and what the record knows of them."""

import asyncio
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from config.environment import load_settings
from domain.auth import CredentialKind, Principal, Scope, UserId
from domain.runs import RunFilter
from examples.dossier.service import DossierService
from examples.dossier.tables import DossierTables
from examples.dossier.workflow import KEY, SPEC, build_workflow
from services.container import open_services


async def main() -> None:
    """Open, analyse, show."""
    console = Console()
    settings = load_settings()
    async with open_services(settings) as router:
        router.registry.register_agent(KEY, build_workflow, spec=SPEC)
        await router.users.ensure_admin()
        user = await router.users.find(settings.security.admin_username)
        caller = Principal(
            UserId(user.id), user.username, frozenset({Scope.ADMIN}), CredentialKind.ACCESS_TOKEN, "example"
        )
        with tempfile.TemporaryDirectory() as folder:
            tables = DossierTables(Path(folder) / "notary.sqlite3")
            service = DossierService(tables, router, caller)
            house, farm = tables.add_dossier("Sale of a house", "user:ada"), tables.add_dossier("A farm", "user:bob")
            tables.add_document(house.id, "deed.txt", "Seller: Ms Noether. Buyer: Mr Hilbert. Price: open.")
            for dossier in (house, farm, house):
                checklist = await service.analyse(dossier.id)
                console.print(f"[bold]{dossier.title}[/]: {checklist.items[:100]}", highlight=False)
            table = Table("run", "status", "tokens", title=f"History of {house.title}")
            for run in await service.history(house.id):
                table.add_row(run.run_id, run.status.value, str(run.usage.total_tokens if run.usage else "?"))
            console.print(table)
            stats = await router.runs.stats(RunFilter(agent=KEY), caller, by="metadata", key="dossier_id")
            for row in stats.groups:
                console.print(
                    f"{row.group}: {row.executions} executions, {row.successes} successes, {row.errors} errors"
                )
            tables.close()


if __name__ == "__main__":
    asyncio.run(main())
