import pytest
from pydantic import ValidationError

from worker.settings import settings_from


def test_a_given_environment_replaces_the_one_of_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GULLAK_SHARDS", "3")
    monkeypatch.setenv("DATABASE_URL", "postgresql://ambient/db")

    config = settings_from({"REDIS_URL": "redis://h/0"})

    assert config.shards == 16
    assert config.database_url.get_secret_value() == ""
    assert config.redis_url.get_secret_value() == "redis://h/0"


def test_values_are_parsed_as_in_the_environment_of_a_process() -> None:
    config = settings_from({"GULLAK_CURRENCIES": '{"EUR": 2}', "GULLAK_FAILPOINT_DIR": ""})

    assert config.currencies == {"EUR": 2}
    assert config.failpoint_dir is None


@pytest.mark.parametrize("currencies", ["{}", '{"usd": 2}', '{"USD": 5}', '{"USDT": 2}'])
def test_a_currency_must_be_iso_4217(currencies: str) -> None:
    with pytest.raises(ValidationError, match="currencies"):
        settings_from({"GULLAK_CURRENCIES": currencies})


def test_a_repr_shows_no_password() -> None:
    assert "hidden" not in repr(settings_from({"DATABASE_URL": "postgresql://u:hidden@h/d"}))
