"""Settings: frozen data, overridden by the environment and by `open_app`, wrong ones named."""

import pytest

import famulus
from famulus.app.settings import resolve_settings


def test_precedence_is_run_then_environment_then_declaration_then_default() -> None:
    declared = {"broker": "memory://declared", "topic_partitions": 3, "producer_linger": 0.5}
    environment = {"FAMULUS_BROKER": "memory://environment", "FAMULUS_TOPIC_PARTITIONS": "5"}
    settings = resolve_settings(declared, {"broker": "memory://run"}, environment)
    assert settings.broker == "memory://run"
    assert settings.topic_partitions == 5
    assert settings.producer_linger == 0.5
    assert settings.broker_commit_interval == 3.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"topic_partitions": 0}, r"setting topic_partitions=0: expected a whole number of at least 1"),
        ({"topic_partitions": 1.5}, r"setting topic_partitions=1\.5: expected a whole number"),
        ({"topic_partitions": True}, r"setting topic_partitions=True: expected a whole number"),
        ({"broker_commit_interval": "3"}, r"setting broker_commit_interval='3': expected a number"),
        ({"broker_commit_interval": float("nan")}, r"setting broker_commit_interval=nan: expected a number"),
        ({"broker": ""}, r"setting broker='': expected text that is not empty"),
        ({"consumer_auto_offset_reset": "first"}, r"expected 'earliest' or 'latest'"),
        ({"brocker": "memory://"}, r"there is no setting 'brocker'; did you mean 'broker'\?"),
        ({"broker_rebalance_timeout": 5.0}, r"broker_rebalance_timeout=5: expected more than .* = 25 seconds"),
    ],
)
def test_a_wrong_setting_names_itself_and_what_was_expected(settings: dict[str, object], message: str) -> None:
    with pytest.raises(famulus.ImproperlyConfigured, match=message):
        famulus.App("wrong", **settings)  # type: ignore[arg-type]  # wrong on purpose


def test_a_wrong_environment_variable_names_itself() -> None:
    with pytest.raises(famulus.ImproperlyConfigured, match=r"FAMULUS_TOPIC_PARTITIONS='many': expected a whole number"):
        resolve_settings({}, {}, {"FAMULUS_TOPIC_PARTITIONS": "many"})


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("Yes", True), ("off", False), ("false", False)]
)
def test_a_yes_or_no_is_read_from_the_environment(text: str, value: bool) -> None:
    assert resolve_settings({}, {}, {"FAMULUS_CODEC_ALLOW_PICKLE": text}).codec_allow_pickle is value


def test_what_is_neither_yes_nor_no_names_itself() -> None:
    with pytest.raises(
        famulus.ImproperlyConfigured, match="FAMULUS_CODEC_ALLOW_PICKLE='maybe': expected true or false"
    ):
        resolve_settings({}, {}, {"FAMULUS_CODEC_ALLOW_PICKLE": "maybe"})
    with pytest.raises(famulus.ImproperlyConfigured, match="codec_allow_pickle=1: expected True or False"):
        famulus.Settings(codec_allow_pickle=1)  # type: ignore[arg-type]  # wrong on purpose


def test_codecs_are_limited_by_the_settings() -> None:
    limits = famulus.Settings(codec_allow_pickle=True, codec_max_decompressed=5).codec_limits
    assert (limits.allow_pickle, limits.max_decompressed) == (True, 5)
    assert famulus.Settings().codec_limits.allow_pickle is False
    with pytest.raises(famulus.ImproperlyConfigured, match="codec_max_decompressed=0"):
        famulus.Settings(codec_max_decompressed=0)


async def test_the_environment_reaches_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAMULUS_TOPIC_PARTITIONS", "6")
    async with famulus.open_app() as app:
        assert app.settings.topic_partitions == 6


@pytest.mark.parametrize("broker", ["amqp://localhost", "localhost:9092", "memory://a/b"])
async def test_an_unknown_broker_is_refused_before_anything_starts(broker: str) -> None:
    with pytest.raises(famulus.ImproperlyConfigured, match=r"broker=.*memory://"):
        async with famulus.open_app(broker=broker):
            raise AssertionError("never here")


def test_every_setting_says_what_it_means() -> None:
    import attrs

    assert all(field.metadata.get("help") for field in attrs.fields(famulus.Settings))


def test_a_version_starts_afresh_under_its_own_names() -> None:
    assert famulus.App("shop").id == "shop"
    assert famulus.App("shop", version=2).id == "shop-v2"
