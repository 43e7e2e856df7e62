"""Settings are read from one place, refuse what cannot work, and never show a secret."""

from pathlib import Path

import pytest

from config.environment import env_example, load_settings, setting_fields
from config.settings import Settings, SettingsError

ROOT = Path(__file__).parents[2]


def test_the_env_example_is_what_the_settings_say() -> None:
    assert (ROOT / ".env.example").read_text() == env_example(), "run: routeur settings --example > .env.example"


def test_uncommenting_every_line_of_the_example_changes_nothing(tmp_path: Path) -> None:
    lines = [
        line[2:] for line in env_example().splitlines() if line.startswith("# ") and line[2:3].isupper() and "=" in line
    ]
    (tmp_path / "env").write_text("\n".join(lines))
    assert load_settings({}, tmp_path / "env") == Settings()


def test_every_setting_has_one_name_of_its_own() -> None:
    names = [field.env for field in setting_fields()]
    assert len(names) == len(set(names))
    assert all(name.isupper() for name in names)


def test_the_process_environment_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PORT=1111\nHOST=0.0.0.0\n")
    settings = load_settings({"PORT": "2222"}, tmp_path / ".env")
    assert (settings.server.port, settings.server.host) == (2222, "0.0.0.0")


def test_a_secret_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("k" * 40 + "\n")
    settings = load_settings({"SECRET_KEY_FILE": str(tmp_path / "key")}, None)
    assert settings.security.secret_key is not None
    assert settings.security.secret_key.get_secret_value() == "k" * 40


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"SECRET_KEY": "short"}, "SECRET_KEY"),
        ({"SECRET_KEY": "09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7"}, "everybody knows"),
        ({"PORT": "high"}, "PORT"),
        ({"ENVIRONMENT": "staging"}, "ENVIRONMENT"),
        ({"DATABASE_URL": "mysql://x"}, "DATABASE_URL"),
        ({"OPENAI_BASE_URL": "file:///etc/passwd"}, "OPENAI_BASE_URL"),
        ({"COMPATIBLE_PROVIDERS": "{not json"}, "COMPATIBLE_PROVIDERS"),
        ({"COMPATIBLE_PROVIDERS": '{"openai": {"base_url": "http://x"}}'}, "taken"),
        ({"COMPATIBLE_PROVIDERS": '{"vllm": {"url": "http://x"}}'}, "COMPATIBLE_PROVIDERS"),
        ({"MODEL_POOLS": "{not json"}, "MODEL_POOLS"),
        ({"MODEL_POOLS": '{"chat": {"deployments": []}}'}, "MODEL_POOLS"),
        ({"MODEL_FALLBACKS": '{"openai/a": ["pool/none"]}'}, "MODEL_FALLBACKS"),
        ({"MODEL_COOLDOWN": "0"}, "MODEL_COOLDOWN"),
        ({"COMPATIBLE_PROVIDERS": '{"pool": {"base_url": "http://x"}}'}, "taken"),
        ({"JWT_ALGORITHM": "RS256"}, "JWT_PRIVATE_KEY_FILE"),
        ({"JWT_ALGORITHM": "none"}, "JWT_ALGORITHM"),
        ({"WORKERS": "4"}, "DATABASE_URL"),
        ({"RUN_QUEUE": "procrastinate"}, "DATABASE_URL"),
        ({"RUN_QUEUE": "celery"}, "RUN_QUEUE"),
        ({"WEBHOOK_ALLOWED_NETWORKS": "10.0.0.0/99"}, "WEBHOOK_ALLOWED_NETWORKS"),
        ({"RETENTION_EVENTS_DAYS": "7", "SESSION_STORE_URL": "mem://"}, "RETENTION_EVENTS_DAYS"),
    ],
)
def test_what_cannot_work_is_refused_by_name(environ: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        load_settings(environ, None)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(SettingsError, match=r"PORT.*LOG_LEVEL"):
        load_settings({"PORT": "x", "LOG_LEVEL": "y"}, None)


@pytest.mark.parametrize("name", ["SECRET_KEY", "OPENAI_API_KEY", "ADMIN_PASSWORD", "DATABASE_URL"])
def test_no_secret_is_shown(name: str) -> None:
    value = "postgresql://u:hunter2-hunter2-hunter2-hunter2@h/d" if name == "DATABASE_URL" else "hunter2" * 6
    settings = load_settings({name: value}, None)
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in settings.model_dump_json()


def test_a_refusal_does_not_show_the_secret_either() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({"SECRET_KEY": "hunter2"}, None)
    assert "hunter2" not in str(caught.value)


def test_production_guesses_nothing() -> None:
    settings = load_settings({"ENVIRONMENT": "production"}, None)
    assert not settings.discover_local
    assert not settings.offline_allowed
    asked = load_settings({"ENVIRONMENT": "production", "OFFLINE_PROVIDER": "true", "DISCOVER_LOCAL": "1"}, None)
    assert asked.offline_allowed
    assert asked.discover_local


def test_settings_cannot_be_changed_after_the_start() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().server.port = 1  # type: ignore[misc]
