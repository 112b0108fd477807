"""Famulus: actor-model stream processing on trio."""
