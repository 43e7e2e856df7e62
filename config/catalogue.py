"""The model catalogue: what `models.yaml` says, validated."""

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from domain.models import Abilities
from domain.usage import Price

MODELS_FILE = Path(__file__).with_name("models.yaml")

ModelId = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*/\S+$")]


class CatalogueEntry(BaseModel):
    """One model beforehand; what is absent is unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["chat", "embedding", "transcription", "speech"] = "chat"
    description: str = ""
    context_window: int | None = None
    max_output_tokens: int | None = None
    price: Price | None = None
    price_per_minute: Decimal | None = None  # of sound, where that is what is charged
    abilities: Abilities = Abilities()


def load_catalogue(path: Path = MODELS_FILE) -> dict[str, CatalogueEntry]:
    """Entries by model id.

    Raises:
        pydantic.ValidationError: the file does not fit.
    """
    adapter = TypeAdapter(dict[ModelId, CatalogueEntry])
    return adapter.validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
