"""The form that servers of this wire take."""

from domain.audio import TranscriptionOptions

TRANSCRIPTIONS, TRANSLATIONS = "/audio/transcriptions", "/audio/translations"


def common_fields(asked: TranscriptionOptions) -> list[tuple[str, str]]:
    """What every server of this wire takes; a translation knows no language."""
    given = {
        "language": None if asked.translate else asked.language,
        "prompt": asked.prompt,
        "temperature": None if asked.temperature is None else f"{asked.temperature:g}",
    }
    return [(name, value) for name, value in given.items() if value is not None]
