"""Decides which model answers, and on what evidence. Imports proxy, never distiller."""
