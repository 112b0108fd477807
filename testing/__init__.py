"""What users and the project test with: virtual time, a broker with faults to order, a schema registry,
a pytest plugin.

`famulus.testing.plugin` is the plugin, `famulus.testing.contract` the contract suite for transports; they need pytest.
"""

from ..channels.memory import MemoryBroker as MemoryBroker
from .clock import VirtualClock as VirtualClock
from .schema_registry import StubRegistry as StubRegistry
from .settle import settle as settle

__all__ = ["MemoryBroker", "StubRegistry", "VirtualClock", "settle"]
