"""Fusing experts of different families: eight parts, and which claims hold."""
