"""The URL of a Kafka broker."""

from __future__ import annotations

import pytest

from famulus.channels.errors import ImproperlyConfigured
from famulus.kafka.url import KafkaSettings, parse_url


def test_hosts_get_the_default_port() -> None:
    assert parse_url("kafka://one,two:9093,[::1]:9094").servers == ("one:9092", "two:9093", "[::1]:9094")


def test_the_other_scheme_means_the_same() -> None:
    assert parse_url("aiokafka://one") == parse_url("kafka://one") == KafkaSettings(servers=("one:9092",))


def test_options_are_read() -> None:
    settings = parse_url(
        "kafka://one?compression=LZ4&metadata_max_age=1.5&partition_fetch_bytes=1000&isolation=read_uncommitted"
    )
    assert (settings.compression, settings.metadata_max_age) == ("lz4", 1.5)
    assert (settings.partition_fetch_bytes, settings.isolation) == (1000, "read_uncommitted")


def test_a_user_means_sasl() -> None:
    settings = parse_url("kafka://ada:p%40ss@one,two?sasl_mechanism=scram-sha-512")
    assert (settings.user, settings.password, settings.security) == ("ada", "p@ss", "sasl_plaintext")
    options = settings.client_options()
    assert options["security_protocol"] == "SASL_PLAINTEXT"
    assert (options["sasl_mechanism"], options["sasl_plain_username"]) == ("SCRAM-SHA-512", "ada")
    assert options["bootstrap_servers"] == ["one:9092", "two:9092"]


def test_tls_checks_the_host_name_unless_told_not_to() -> None:
    context = parse_url("kafka://one?security=ssl").ssl_context()
    assert context is not None
    assert context.check_hostname
    unchecked = parse_url("kafka://one?security=ssl&ssl_check_hostname=false").ssl_context()
    assert unchecked is not None
    assert not unchecked.check_hostname
    assert parse_url("kafka://one").ssl_context() is None


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("memory://one", "expected kafka://HOST:PORT"),
        ("kafka://", "host ''"),
        ("kafka://one:port", "host 'one:port'"),
        ("kafka://one,,two", "host ''"),
        ("kafka://one/path", "expected kafka://HOST:PORT"),
        ("kafka://one?color=red", "option 'color': expected one of security"),
        ("kafka://one?compression=best", "option compression='best': expected none or gzip"),
        ("kafka://one?metadata_max_age=-1", "option metadata_max_age='-1': expected seconds above 0"),
        ("kafka://one?partition_fetch_bytes=many", "expected bytes"),
        ("kafka://one?nonsense", "expected OPTION=VALUE"),
        ("kafka://one?security=sasl_ssl", "expected USER:PASSWORD@"),
        ("kafka://ada:secret@one?security=ssl", "only given with sasl"),
    ],
)
def test_what_is_wrong_is_named(url: str, told: str) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        parse_url(url)
    assert told in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(parse_url("kafka://ada:secret@one"))


def test_a_missing_ca_file_is_named() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"nowhere\.pem"):
        parse_url("kafka://one?security=ssl&ssl_cafile=nowhere.pem").ssl_context()
