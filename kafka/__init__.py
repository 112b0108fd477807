"""Kafka as a transport: aiokafka under trio-asyncio, found by the URL schemes ``kafka://`` and ``aiokafka://``."""

from __future__ import annotations

from .transport import KafkaTransport

__all__ = ["KafkaTransport"]
