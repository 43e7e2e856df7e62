"""The Whisper models of this machine, as a provider that is listed: they transcribe and do not chat."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from domain.agents import ModelParameters
from domain.errors import InvalidRequest
from services.llm_providers.base import BaseProvider, ListedModel
from services.llm_providers.wire.routed import RoutedChat


class Provider(BaseProvider):
    """The folders of WHISPER_MODELS_DIR."""

    def chat_model(self, name: str, parameters: ModelParameters) -> RoutedChat:
        """None of them chats."""
        raise _no_chat(name)

    def completions_body(self, name: str, asked: Mapping[str, Any], *, streamed: bool) -> dict[str, Any]:
        """None of them chats."""
        raise _no_chat(name)

    async def list_models(self, within: float) -> list[ListedModel]:
        """Every folder that holds a model."""
        folders = model_folders(self.config.folder)
        return [ListedModel(name, "transcription", "Whisper, on this machine") for name in folders]


def model_folders(parent: Path | None) -> dict[str, Path]:
    """Folders with CTranslate2 weights in them, by their name."""
    if parent is None or not parent.is_dir():
        return {}
    return {one.name: one for one in sorted(parent.iterdir()) if (one / "model.bin").is_file()}


def _no_chat(name: str) -> InvalidRequest:
    return InvalidRequest(
        f"The model 'whisper/{name}' transcribes; it does not answer.", code="not_a_chat_model", param="model"
    )
