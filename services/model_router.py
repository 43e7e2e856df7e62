"""placeholder"""

from domain.errors import RouteurError


class Route:
    def __init__(self, model: str) -> None:
        self.model = model
        self.timeout: float | None = None
        self.replaced: tuple[str, ...] = ()

    def succeeded(self) -> None: ...

    def failed(self, error: RouteurError, *, begun: bool = False) -> bool:
        return False


class ModelRouter:
    def route(self, model_id: str) -> Route:
        return Route(model_id)
