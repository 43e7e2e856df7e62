"""Fetch, run, keep: the three steps of a business use case around a workflow."""

from domain.auth import Principal
from domain.models import CompletionRequest
from domain.runs import RunFilter, RunInfo
from examples.dossier.tables import Checklist, DossierTables
from examples.dossier.workflow import KEY
from services.container import Services


class DossierService:
    """The notary's use cases. `caller` is who runs the workflows: the owner of their runs."""

    def __init__(self, tables: DossierTables, router: Services, caller: Principal) -> None:
        self._tables = tables
        self._router = router
        self._caller = caller

    async def analyse(self, dossier_id: str) -> Checklist:
        """Run the workflow over a dossier and keep its checklist.

        Raises:
            KeyError: there is no such dossier.
            RouteurError: the workflow failed; its run says why, and no checklist is kept.
        """
        dossier = self._tables.dossier(dossier_id)
        papers = "\n\n".join(f"# {one.name}\n{one.content}" for one in self._tables.documents(dossier_id))
        request = CompletionRequest(
            message=f"Dossier: {dossier.title}\n\n{papers}",
            agent=KEY,
            metadata={"dossier_id": dossier.id, "user_id": dossier.user_id},
        )
        result = await self._router.agents.invoke(request, self._caller)
        return self._tables.add_checklist(dossier_id, result.run_id, result.response)

    async def history(self, dossier_id: str) -> list[RunInfo]:
        """Every analysis of a dossier, newest first, the failed ones too."""
        query = RunFilter(metadata={"dossier_id": dossier_id})
        return (await self._router.runs.list_runs(query, self._caller)).runs
