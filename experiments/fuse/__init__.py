"""Fusing experts of different families: seven parts, and which claims hold."""
