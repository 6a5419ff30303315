"""Speak SQL and Redis; the only package that does."""
