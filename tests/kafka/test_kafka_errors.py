"""Errors of the client, as ours."""

from __future__ import annotations

import pytest
from aiokafka import errors as kafka_errors

from famulus.channels.errors import BrokerUnavailable, MessageTooLarge, ProduceError, TransportError
from famulus.kafka.errors import translated


@pytest.mark.parametrize(
    ("error", "ours", "advice"),
    [
        (kafka_errors.NodeNotReadyError("node id 1"), BrokerUnavailable, "advertised.listeners"),
        (
            kafka_errors.MessageSizeTooLargeError(),
            MessageTooLarge,
            "raise that, or .* lower our producer_max_batch_bytes",
        ),
        (kafka_errors.TopicAuthorizationFailedError("orders"), TransportError, "ACLs do not allow it"),
        (kafka_errors.SaslAuthenticationFailed(), TransportError, "check user, password and sasl_mechanism"),
    ],
)
def test_an_error_says_what_was_going_on_and_what_to_do(
    error: Exception, ours: type[TransportError], advice: str
) -> None:
    mapped = translated(error, "writing to orders-0")
    assert type(mapped) is ours
    assert str(mapped).startswith("writing to orders-0: ")
    with pytest.raises(ours, match=advice):
        raise mapped


def test_an_error_of_ours_stays_as_it_is() -> None:
    error = ProduceError("too late")
    assert translated(error, "writing") is error
