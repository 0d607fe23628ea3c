"""The local engine: transformers with a continuously changing batch, every row its own composition."""
