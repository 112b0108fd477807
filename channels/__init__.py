"""Channels, topics, streams, and the way of a message between a broker and an agent."""
