"""Convert between generated messages and domain types; the only package that knows generated messages."""
