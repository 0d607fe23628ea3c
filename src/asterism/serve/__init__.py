"""One engine, many mixtures: every request its own composition, behind the API that people already call."""
