"""Codecs whose schemas are kept at a Confluent-compatible schema registry: Avro, JSON Schema and Protobuf.

`SchemaRegistry` is the way in. The libraries are loaded when a codec is asked for: `pip install 'famulus[avro]'`,
`'famulus[jsonschema]'`, `'famulus[protobuf]'`.
"""

from .client import SchemaRegistry
from .derive import AvroType, avro_schema
from .subjects import SubjectNames

__all__ = ["AvroType", "SchemaRegistry", "SubjectNames", "avro_schema"]
