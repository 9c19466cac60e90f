"""Turns exchanges into a student, exports it, serves it. Imports router and proxy."""
