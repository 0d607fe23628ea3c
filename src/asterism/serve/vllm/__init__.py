"""The engine on vLLM: every request its own composition, inside an unmodified vLLM."""
