"""Agents: declared over channels, run as supervised actors, called by others."""
