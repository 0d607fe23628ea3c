"""Reading a strict YAML mapping: see `asterism.core.reading`."""

from asterism.core.reading import TOP, begun, each, keys, read_yaml, text, told, under

__all__ = ["TOP", "begun", "each", "keys", "read_yaml", "text", "told", "under"]
