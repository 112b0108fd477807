"""The URL of a Kafka broker."""

from __future__ import annotations

from pathlib import Path

import pytest

from famulus.channels.errors import ImproperlyConfigured
from famulus.channels.transport import TransportOptions, load_transport
from famulus.kafka import KafkaTransport
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
        ("kafka://ada:sec/ret@one", "expected kafka://HOST:PORT"),
        ("kafka://ada:sec[ret@one", "write @ : / ? # [ ] % & as %40"),
        ("kafka://one?password=secret", "option 'password'"),
        ("kafka://ada@one", "expected a user and one password"),
        ("kafka://ada:@one", "expected a user and one password"),
        ("kafka://:secret@one", "expected a user and one password"),
        ("kafka://ada:secret@one?password_env=P", "expected a user and one password"),
        ("kafka://one?password_file=p", "option password_file: expected USER:PASSWORD@"),
        ("kafka://one?sasl_mechanism=PLAIN", "option sasl_mechanism: expected USER:PASSWORD@"),
        ("kafka://one?security=plaintext&ssl_cafile=ca.pem", "option ssl_cafile: only for TLS"),
        ("kafka://one?ssl_keyfile=key.pem", "option ssl_keyfile: expected ssl_certfile with it"),
        ("kafka://one?ssl_cafile=", "option ssl_cafile='': expected a path"),
        ("kafka://one?compression=lz4&compression=zstd", "option compression: expected once"),
    ],
)
def test_what_is_wrong_is_named(url: str, told: str) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        parse_url(url)
    assert told in str(caught.value)
    assert not any(part in str(caught.value) for part in ("secret", "sec/ret", "sec[ret"))


def test_options_of_tls_mean_tls() -> None:
    assert parse_url("kafka://one?ssl_cafile=ca.pem").security == "ssl"
    assert parse_url("kafka://ada:secret@one?ssl_check_hostname=false").security == "sasl_ssl"


def test_what_is_escaped_is_itself_again() -> None:
    settings = parse_url("kafka://a%40b:%3A%2F%3F%23%25%5B+@one?ssl_cafile=/etc/c%26a+b.pem")
    assert (settings.user, settings.password, settings.ssl_cafile) == ("a@b", ":/?#%[+", "/etc/c&a+b.pem")


def test_the_password_is_read_from_where_the_url_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "password"
    file.write_text(" pass word \n", encoding="utf-8")
    monkeypatch.setenv("SHOP", "from the environment")
    assert parse_url(f"kafka://ada@one?password_file={file}").login_password() == " pass word "
    assert parse_url("kafka://ada@one?password_env=SHOP").login_password() == "from the environment"
    file.write_text("another\n", encoding="utf-8")  # as when it is changed while we run: the next connection has it
    options = parse_url(f"kafka://ada@one?password_file={file}").client_options()
    assert options["sasl_plain_password"] == "another"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("password_file=nowhere", "option password_file='nowhere': expected a file with a password: .*No such file"),
        ("password_file=/dev/null", "option password_file='/dev/null': .* it is empty"),
        ("password_env=FAMULUS_NOT_SET", "option password_env='FAMULUS_NOT_SET': .*not set, or empty"),
        ("password_env=HOME&ssl_cafile=/dev/null", "option ssl_cafile='/dev/null': expected a PEM file"),
        ("password_env=HOME&ssl_certfile=nowhere", "ssl_certfile='nowhere'.*: expected PEM files"),
    ],
)
def test_a_file_or_variable_that_is_not_there_is_said_before_anything_starts(options: str, told: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=told):
        KafkaTransport(f"kafka://ada@one?{options}")


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(parse_url("kafka://ada:secret@one"))
    assert "secret" not in repr(KafkaTransport("kafka://ada:secret@one"))
    for url in ("kafaka://ada:secret@one", "kafka://ada:secret[@one"):
        with pytest.raises(ImproperlyConfigured) as caught:
            load_transport(url, TransportOptions())
        assert "secret" not in str(caught.value)


def test_a_missing_ca_file_is_named() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"nowhere\.pem"):
        parse_url("kafka://one?security=ssl&ssl_cafile=nowhere.pem").ssl_context()
