"""Speaks OpenAI, forwards bytes, remembers exchanges. Imports nothing else of Stillroom."""
