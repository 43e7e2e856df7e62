"""The providers that the settings name."""

from config.settings import Settings
from core.http import Deadlines
from domain.enums import ModelName
from services.llm_providers.base import ProviderConfig
from services.local_servers import LocalServer

OPENAI_DEFAULT = ModelName.GPT_4O_MINI.bare
MISTRAL_DEFAULT = ModelName.MISTRAL_SMALL.bare
EMBEDDED = ProviderConfig("offline", "offline", "", None, "embedded", "OFFLINE_PROVIDER", "rules")


def found_on_this_machine(server: LocalServer, settings: Settings) -> ProviderConfig:
    """A recognised local server as a provider."""
    return ProviderConfig(
        server.name,
        server.vendor,
        server.base_url,
        None,
        "loopback",
        "the server",
        deadlines=_deadlines(settings),
        running_usage=server.name == "vllm",
    )


def configured_providers(settings: Settings) -> list[ProviderConfig]:
    """The providers that the settings name, in the order in which their defaults count."""
    asked = settings.providers
    deadlines, most = _deadlines(settings), asked.max_connections
    configs = []
    if asked.openai_api_key or asked.openai_base_url:
        url = asked.openai_base_url or "https://api.openai.com/v1"
        configs.append(
            ProviderConfig(
                "openai",
                "openai",
                url,
                asked.openai_api_key,
                "setting",
                "OPENAI_API_KEY",
                OPENAI_DEFAULT,
                deadlines,
                most,
            )
        )
    if asked.mistral_api_key or asked.mistral_base_url:
        url = asked.mistral_base_url or "https://api.mistral.ai/v1"
        configs.append(
            ProviderConfig(
                "mistral",
                "mistral",
                url,
                asked.mistral_api_key,
                "setting",
                "MISTRAL_API_KEY",
                MISTRAL_DEFAULT,
                deadlines,
                most,
            )
        )
    if asked.ollama_base_url:
        url = asked.ollama_base_url.removesuffix("/v1")
        configs.append(
            ProviderConfig("ollama", "ollama", url, None, "setting", "OLLAMA_BASE_URL", None, deadlines, most)
        )
    for name, server in asked.compatible.items():
        configs.append(
            ProviderConfig(
                name,
                "compatible",
                server.base_url,
                server.api_key,
                "setting",
                f"COMPATIBLE_PROVIDERS.{name}.api_key",
                server.default_model,
                deadlines,
                most,
                running_usage=server.running_usage,
            )
        )
    folder = settings.transcription.whisper_models_dir
    if folder is not None:  # embedded: it never decides which model chats
        configs.append(ProviderConfig("whisper", "whisper", "", None, "embedded", "WHISPER_MODELS_DIR", folder=folder))
    return configs


def _deadlines(settings: Settings) -> Deadlines:
    asked = settings.providers
    return Deadlines(
        connect=asked.connect_timeout,
        first_byte=asked.first_token_timeout,
        idle=asked.idle_timeout,
        total=asked.total_timeout,
        retries=asked.max_retries,
    )
