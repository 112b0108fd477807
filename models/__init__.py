"""Records, converters, codecs: what values look like, and how they become bytes and come back.

Everything above uses `value_serde` and `key_serde`; users use `Record`. Imports nothing else of ours, and not
trio.
"""

from . import codecs
from .codecs import CODEC_LIMITS, Codec, CodecLimits, UnsafeCodec, get_codec
from .errors import DecodeError, EncodeError, FieldError, NotReady, Unavailable, ValidationError
from .fields import field
from .record import Record
from .schema import Encoder, Schema
from .serde import Serde, key_serde, value_serde

__all__ = ["Record", "field"]
__all__ += ["CODEC_LIMITS", "Codec", "CodecLimits", "UnsafeCodec", "codecs", "get_codec"]
__all__ += ["Encoder", "Schema", "Serde", "key_serde", "value_serde"]
__all__ += ["DecodeError", "EncodeError", "FieldError", "NotReady", "Unavailable", "ValidationError"]
