"""The values of MODEL_POOLS and MODEL_FALLBACKS."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from config.fields import SettingsGroup

POOL = "pool"  # the provider under whose name pools are called: `pool/chat`

PoolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class PoolDeployment(SettingsGroup):
    """One place where a pool's model is served."""

    model: str = Field(min_length=1)
    #: Its share of the calls, against the weights of the others.
    weight: float = Field(1, gt=0, le=1_000_000)
    #: Seconds until its first byte, its provider's retries included, before the next deployment is asked.
    timeout: float | None = Field(None, gt=0, le=86_400)


class ModelPool(SettingsGroup):
    """Deployments of one model, any of which may answer."""

    deployments: tuple[PoolDeployment, ...] = Field(min_length=1, max_length=100)

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        models = [deployment.model for deployment in self.deployments]
        if len(set(models)) < len(models):
            raise ValueError("names a deployment twice; give it more weight instead")
        if inner := [model for model in models if pool_of(model) is not None]:
            raise ValueError(f"a pool cannot be a deployment of a pool: {', '.join(inner)}")
        return self


class FallbackTable(SettingsGroup):
    """Who answers instead of a model, by what went wrong with it."""

    down: tuple[str, ...] = ()
    rate_limited: tuple[str, ...] = ()
    context_length: tuple[str, ...] = ()

    def targets(self) -> set[str]:
        """Everybody who is named."""
        return {*self.down, *self.rate_limited, *self.context_length}


def _list_is_down_and_limited(value: Any) -> Any:
    return {"down": value, "rate_limited": value} if isinstance(value, list | tuple) else value


Fallbacks = Annotated[FallbackTable, BeforeValidator(_list_is_down_and_limited)]


def pool_of(model: str) -> str | None:
    """The pool that `pool/name` or `pool:name` means; None: it is no pool's id."""
    return model[len(POOL) + 1 :] if model.startswith((f"{POOL}/", f"{POOL}:")) else None
