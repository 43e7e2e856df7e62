"""The LLM factory: a model id in, a LangChain chat model out; and the list of what there is.

Providers are imported when first used. Which model answers when none is named: the agent's own, DEFAULT_MODEL, the
first configured provider's default, a model server recognised on this machine (development), `offline/rules`
(development). Never silently from one to another: what serves is named in every answer.
"""

import asyncio
import importlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from types import ModuleType

from langchain_core.language_models.chat_models import BaseChatModel

from config.catalogue import CatalogueEntry, load_catalogue
from config.routing_settings import POOL
from config.settings import ProviderSettings, Settings
from core.metrics import Metrics
from domain.agents import ModelParameters
from domain.embeddings import Embedded, EmbeddingRequest
from domain.enums import ModelName
from domain.errors import InvalidRequest, ModelNotFound, RouteurError, Unavailable
from domain.models import Abilities, ModelInfo, ModelList, ProviderInfo
from domain.speech import SpeechRequest, Spoken
from domain.usage import Price
from services.llm_providers.base import BaseProvider, ListedModel, ModelKind, ProviderConfig
from services.llm_providers.wire.routed import RoutedChat
from services.local_servers import CANDIDATES, Candidate, find_local_servers
from services.model_router import ModelRouter, plans_of
from services.pools import pool_info
from services.provider_configs import EMBEDDED, configured_providers, found_on_this_machine

logger = logging.getLogger(__name__)

_LIST_TTL = 60.0  # seconds that a provider's list is believed
_LIST_WITHIN = 2.0  # seconds for a provider to list its models
_NO_MODEL = (
    "No model is configured. Set OPENAI_API_KEY, MISTRAL_API_KEY, OLLAMA_BASE_URL or COMPATIBLE_PROVIDERS, "
    "or DEFAULT_MODEL; OFFLINE_PROVIDER=true offers the embedded demonstration model."
)


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model whose provider is configured, or a pool (of the provider `pool`)."""

    provider: str
    name: str

    @property
    def id(self) -> str:
        """`provider/name`."""
        return f"{self.provider}/{self.name}"


@dataclass(frozen=True, slots=True)
class _Listing:
    models: tuple[ListedModel, ...]
    reason: str | None
    until: float


def _parted(model_id: str) -> ResolvedModel:
    provider, _, name = model_id.partition("/")
    return ResolvedModel(provider, name)


class _Peers:
    """The models that may have to answer in the place of one, with its parameters: each built when first asked."""

    def __init__(self, build: Callable[[ResolvedModel], RoutedChat]) -> None:
        self._build = build
        self._made: dict[str, RoutedChat] = {}
        self._refused: set[str] = set()

    def __call__(self, model_id: str) -> RoutedChat:
        """The chat model of that id.

        Raises:
            RouteurError: it cannot be built with these parameters.
        """
        made = self._made.get(model_id)
        if made is None:
            try:
                made = self._made[model_id] = self._build(_parted(model_id))
            except RouteurError as error:
                if model_id not in self._refused:
                    self._refused.add(model_id)
                    extra = {"model": model_id, "code": error.code, "param": error.param}
                    logger.warning("model cannot take the parameters and is passed over", extra=extra)
                raise
        return made


class LLMService:
    """Chat models by id.

    Attributes:
        router: whom each call goes to, and how those models are doing.

    Raises:
        SettingsError: MODEL_POOLS names a deployment of a provider that is not configured.
    """

    def __init__(
        self,
        configs: list[ProviderConfig],
        catalogue: Mapping[str, CatalogueEntry],
        settings: ProviderSettings,
        metrics: Metrics | None = None,
    ) -> None:
        self._configs = {config.name: config for config in configs}
        self._catalogue = catalogue
        self._asked_default = settings.default_model
        self._default: str | None = None
        self._providers: dict[str, BaseProvider] = {}
        self._listings: dict[str, _Listing] = {}
        self._listing: dict[str, asyncio.Lock] = {}
        self._pools = tuple(settings.model_pools)
        self.router = ModelRouter(
            plans_of(settings, self._canonical),
            failures=settings.failures_before_cooldown,
            cooldown=settings.cooldown,
            metrics=metrics,
        )

    # -- which model --

    @property
    def default_model_id(self) -> str | None:
        """What answers when neither caller nor agent names a model; None: nothing is configured."""
        return self._default

    async def resolve(
        self, asked: str | None, agent_model: str | None = None, *, kind: ModelKind = "chat"
    ) -> ResolvedModel:
        """The model that shall answer. No input or output for `provider/name` and for defaults.

        Args:
            kind: which models to offer somebody who named one that is not there.

        Raises:
            ModelNotFound: no configured provider has it; the message lists what can be called.
            InvalidRequest: several providers list that bare name.
            Unavailable: none was named and none is configured.
        """
        named = asked or agent_model or self._default or await self._default_now()
        return self._split(named) or await self._find_bare(named, kind)

    async def choose_default(self) -> None:
        """Settle what answers when no model is named; asks a server for its list where need be.

        A configured provider that does not answer leaves the question open: nobody steps in for it unasked.
        """
        if self._asked_default:
            self._default = (await self.resolve(self._asked_default)).id
            return
        for config in self._configs.values():
            if config.default_model:
                self._default = f"{config.name}/{config.default_model}"
                return
            listed = await self._listed(config.name)
            first = next((model for model in listed.models if model.kind == "chat"), None)
            if first is not None:
                self._default = f"{config.name}/{first.name}"
            if first is not None or config.source == "setting":
                return

    async def _default_now(self) -> str:
        """The default, asked for again: a server that was down at the start may be up."""
        await self.choose_default()
        if self._default is None:
            reasons = [listing.reason for listing in self._listings.values() if listing.reason]
            raise Unavailable(" ".join([*reasons, _NO_MODEL]), code="no_model")
        return self._default

    def _split(self, named: str) -> ResolvedModel | None:
        """`provider/name` or `provider:name` of a configured provider; or a built-in by its bare name."""
        for separator in ("/", ":"):
            provider, found, name = named.partition(separator)
            if found and name and self._has(provider, name):
                return ResolvedModel(provider, name)
        for built_in in ModelName:
            provider = built_in.value.partition("/")[0]
            if named in (built_in.bare, built_in.name) and provider in self._configs:
                return ResolvedModel(provider, built_in.bare)
        return None

    def _has(self, provider: str, name: str) -> bool:
        return name in self._pools if provider == POOL else provider in self._configs

    def _canonical(self, named: str) -> str | None:
        resolved = self._split(named)
        return resolved.id if resolved is not None else None

    async def _find_bare(self, named: str, kind: ModelKind) -> ResolvedModel:
        await asyncio.gather(*(self._listed(name) for name in self._configs))
        having = [name for name in self._configs if any(model.name == named for model in self._listings[name].models)]
        if len(having) > 1:
            choices = ", ".join(f"{provider}/{named}" for provider in having)
            raise InvalidRequest(
                f"Several providers have '{named[:200]}': {choices}.", code="ambiguous_model", param="model"
            )
        if not having:
            raise ModelNotFound(named, self._known_ids(kind))
        return ResolvedModel(having[0], named)

    # -- the factory --

    def get_llm(
        self,
        model: str | ModelName,
        temperature: float | None = None,
        max_tokens: int | None = None,
        *,
        parameters: ModelParameters | None = None,
    ) -> BaseChatModel:
        """A chat model; those that its pool or MODEL_FALLBACKS name answer when it cannot.

        Args:
            model: `provider/name` of a configured provider, `pool/name`, or a built-in.
            temperature: 0 to 2; None leaves it to the provider.
            max_tokens: the most tokens to write.
            parameters: all parameters at once; the two above win.

        Raises:
            ModelNotFound: the provider is not configured.
            InvalidRequest: a parameter that the provider, or every deployment of the pool, does not take.
            Unavailable: the provider's package is not installed.
        """
        given = {"temperature": temperature, "max_tokens": max_tokens}
        over = ModelParameters(**{name: value for name, value in given.items() if value is not None})
        chosen = (parameters or ModelParameters()).merged(over)
        resolved = self._split(str(model))
        if resolved is None:
            raise ModelNotFound(str(model), self._known_ids())
        peers = _Peers(partial(self._build, parameters=chosen))
        llm = self._first(resolved, peers) if resolved.provider == POOL else self._build(resolved, chosen)
        llm.route, llm.peer = partial(self.router.route, resolved.id), peers
        return llm

    def provider_of(self, model_id: str) -> tuple[BaseProvider, str]:
        """Who serves `provider/name` of a configured provider, and what it is called there.

        Raises:
            ModelNotFound: the provider is not configured.
            Unavailable: the provider's package is not installed.
        """
        resolved = self._split(model_id)
        if resolved is None:
            raise ModelNotFound(model_id, self._known_ids())
        return self._provider(resolved.provider), resolved.name

    async def embed(self, model: ResolvedModel, asked: EmbeddingRequest) -> Embedded:
        """The vectors of that model, as its provider sends them; nobody answers in its place.

        Raises:
            InvalidRequest: it does not embed, or not this.
            RouteurError: of the upstream kinds.
        """
        return await (await self._in_person(model)).embed(model.name, asked)

    async def speech(self, model: ResolvedModel, asked: SpeechRequest) -> AbstractAsyncContextManager[Spoken]:
        """What that model says, as `BaseProvider.speak`; nobody speaks in its place.

        Raises:
            InvalidRequest: it does not speak, or not so.
        """
        return (await self._in_person(model)).speak(model.name, asked)

    async def _in_person(self, model: ResolvedModel) -> BaseProvider:
        """The provider of a model in whose place nobody may answer."""
        if model.provider == POOL:
            raise InvalidRequest(
                f"'{model.id}' is a pool, and pools answer chats only.", code="pool_not_supported", param="model"
            )
        if model.provider not in self._providers:  # seconds of imports, which nobody else is to wait for
            await asyncio.to_thread(self._module, model.provider)
        return self._provider(model.provider)

    def price(self, model_id: str) -> Price | None:
        """Dollars per million tokens; None: unknown."""
        entry = self._catalogue.get(model_id)
        return entry.price if entry else None

    def price_per_minute(self, model_id: str) -> Decimal | None:
        """Dollars per minute of sound; None: unknown, or tokens are charged."""
        entry = self._catalogue.get(model_id)
        return entry.price_per_minute if entry else None

    async def first_of_kind(self, kind: ModelKind, defaults: Mapping[str, str]) -> ResolvedModel | None:
        """The model of that kind that the first provider has which has one; None: nobody has.

        Args:
            defaults: models by vendor, where no list needs to be asked for.

        Raises:
            Unavailable: a configured provider that might have one does not answer; nobody steps in for it unasked.
        """
        for config in self._configs.values():
            if config.vendor in defaults:
                return ResolvedModel(config.name, defaults[config.vendor])
            listing = await self._listed(config.name)
            found = next((model for model in listing.models if model.kind == kind), None)
            if found is not None:
                return ResolvedModel(config.name, found.name)
            if listing.reason is not None and config.vendor == "compatible":
                raise Unavailable(listing.reason, code="no_model")
        return None

    def known_ids(self, kind: ModelKind) -> list[str]:
        """What can be called, of that kind: listed models, else the catalogue's."""
        return self._known_ids(kind)

    async def warm_up(self) -> None:
        """Import the providers of the default model and of those that may step in beforehand, in a thread.

        The first caller need not wait for it, nor everybody else while one model is replaced by another.
        """
        models = [*([] if self._default is None else [self._default]), *self.router.models()]
        providers = dict.fromkeys(model.partition("/")[0] for model in models)
        for vendor in dict.fromkeys(self._configs[name].vendor for name in providers if name != POOL):
            with suppress(ImportError):  # an extra: whoever asks for it is told what to install
                await asyncio.to_thread(importlib.import_module, f"services.llm_providers.{vendor}")

    def _first(self, pool: ResolvedModel, peers: _Peers) -> RoutedChat:
        """A model of the pool's first deployment that takes the parameters; what a graph binds is bound to it."""
        refused: RouteurError | None = None
        for deployment in self.router.deployments(pool.id):
            try:
                llm = peers(deployment.model)
            except RouteurError as error:
                refused = refused or error
            else:
                return llm
        raise refused or ModelNotFound(pool.id, self._known_ids())

    def _build(self, model: ResolvedModel, parameters: ModelParameters) -> RoutedChat:
        return self._provider(model.provider).chat_model(model.name, parameters)

    def _provider(self, name: str) -> BaseProvider:
        provider = self._providers.get(name)
        if provider is None:
            provider = self._providers[name] = self._module(name).Provider(self._configs[name])
        return provider

    def _module(self, name: str) -> ModuleType:
        """Seconds of imports for each vendor: only those that are used are paid for."""
        vendor = self._configs[name].vendor
        try:
            return importlib.import_module(f"services.llm_providers.{vendor}")
        except ImportError as error:
            raise Unavailable(
                f"The provider '{name}' needs a package that is not installed: uv sync --extra {vendor}.",
                code="provider_not_installed",
            ) from error

    # -- what there is --

    async def list_available_models(self) -> ModelList:
        """Every provider and its models. A provider that does not answer is listed with the reason."""
        await asyncio.gather(*(self._listed(name) for name in self._configs))
        models = [model for name in self._configs for model in self._models_of(name)]
        models += [self._pool_info(name) for name in self._pools]
        return ModelList(default_model=self._default, providers=self.providers(), models=models)

    async def get_model(self, model_id: str) -> ModelInfo:
        """One model.

        Raises:
            ModelNotFound: no configured provider lists it, and the catalogue does not know it.
        """
        resolved = await self.resolve(model_id)
        if resolved.provider == POOL:
            await asyncio.gather(*map(self._listed, {one.provider for one in self._members(resolved.name)}))
            return self._pool_info(resolved.name)
        await self._listed(resolved.provider)
        for model in self._models_of(resolved.provider):
            if model.name == resolved.name:
                return model
        raise ModelNotFound(model_id, self._known_ids())

    def providers(self) -> list[ProviderInfo]:
        """Every configured provider, as it stood when it was last asked."""
        return [self._provider_info(config) for config in self._configs.values()]

    def _provider_info(self, config: ProviderConfig) -> ProviderInfo:
        listing = self._listings.get(config.name)
        return ProviderInfo(
            name=config.name,
            source=config.source,
            base_url=config.base_url or None,
            available=listing is None or listing.reason is None,
            unavailable_reason=listing.reason if listing else None,
            default_model=config.default_model,
        )

    def _models_of(self, provider: str) -> list[ModelInfo]:
        """What is listed, plus what the catalogue knows where the provider could not be asked."""
        listing = self._listings[provider]
        listed = {model.name: model for model in listing.models}
        names = list(listed)
        if listing.reason is not None:
            names += [known.partition("/")[2] for known in self._catalogue if known.startswith(f"{provider}/")]
        return [self._model_info(provider, name, listed.get(name), listing.reason) for name in names]

    def _members(self, pool: str) -> list[ResolvedModel]:
        return [_parted(one.model) for one in self.router.deployments(f"{POOL}/{pool}")]

    def _pool_info(self, name: str) -> ModelInfo:
        """What holds for all its deployments, each as its provider lists it."""
        members = []
        for one in self._members(name):
            listing = self._listings[one.provider]
            listed = next((model for model in listing.models if model.name == one.name), None)
            members.append(self._model_info(one.provider, one.name, listed, listing.reason))
        return pool_info(name, members, default=f"{POOL}/{name}" == self._default)

    def _model_info(self, provider: str, name: str, listed: ListedModel | None, reason: str | None) -> ModelInfo:
        model_id = f"{provider}/{name}"
        known = self._catalogue.get(model_id) or CatalogueEntry()
        listed = listed or ListedModel(name, known.kind)
        told = {key: value for key, value in listed.abilities.model_dump().items() if value is not None}
        return ModelInfo(
            id=model_id,
            provider=provider,
            name=name,
            description=known.description or listed.description,
            kind=known.kind if model_id in self._catalogue else listed.kind,
            context_window=listed.context_window or known.context_window,
            max_output_tokens=known.max_output_tokens,
            price=known.price,
            price_per_minute=known.price_per_minute,
            abilities=Abilities(**{**known.abilities.model_dump(), **told}),
            available=reason is None,
            unavailable_reason=reason,
            default=model_id == self._default,
            offline=provider == "offline",
        )

    async def _listed(self, name: str) -> _Listing:
        """A provider's list, asked for once a minute, by one caller for all."""
        known = self._listings.get(name)
        if known is not None and known.until > time.monotonic():
            return known
        async with self._listing.setdefault(name, asyncio.Lock()):
            known = self._listings.get(name)
            if known is not None and known.until > time.monotonic():
                return known
            models: tuple[ListedModel, ...] = ()
            reason = None
            try:
                models = tuple(await self._provider(name).list_models(_LIST_WITHIN))
            except RouteurError as error:
                reason = error.message
            self._listings[name] = _Listing(models, reason, time.monotonic() + _LIST_TTL)
            return self._listings[name]

    def _known_ids(self, kind: ModelKind = "chat") -> list[str]:
        """What to offer somebody who named a model that is not there: listed models, else the catalogue's."""
        ids = [f"{POOL}/{name}" for name in self._pools] if kind == "chat" else []
        for name in self._configs:
            listing = self._listings.get(name)
            if listing and listing.models:
                ids += [f"{name}/{model.name}" for model in listing.models if model.kind == kind]
            else:
                known = [model_id for model_id, entry in self._catalogue.items() if entry.kind == kind]
                ids += [model_id for model_id in known if model_id.startswith(f"{name}/")]
        return ids

    async def aclose(self) -> None:
        """Close every provider's connections."""
        await asyncio.gather(*(provider.aclose() for provider in self._providers.values()))


@asynccontextmanager
async def open_llm_service(
    settings: Settings, metrics: Metrics | None = None, *, local_candidates: tuple[Candidate, ...] = CANDIDATES
) -> AsyncIterator[LLMService]:
    """The factory for these settings, its default settled.

    Raises:
        ModelNotFound: DEFAULT_MODEL names a model of a provider that is not configured.
        SettingsError: MODEL_POOLS does.
    """
    configs = configured_providers(settings)
    if settings.discover_local:
        taken = {config.name for config in configs}
        for server in await find_local_servers(leave_out_port=settings.server.port, candidates=local_candidates):
            if server.name not in taken:
                configs.append(found_on_this_machine(server, settings))
    if settings.offline_allowed:
        configs.append(EMBEDDED)
    service = LLMService(configs, load_catalogue(), settings.providers, metrics)
    try:
        await service.choose_default()
        yield service
    finally:
        await service.aclose()
