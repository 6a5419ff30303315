"""Measure Tollkeeper beside floors: `python -m bench`, or `make bench`. README.md says what and how."""
