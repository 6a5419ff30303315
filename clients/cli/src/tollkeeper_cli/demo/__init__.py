"""The user journey of `make run`: a real hour of an LLM platform, from one check to its invoices.

Owns: the order of the journey, the measurements after it, the comparison of what was acknowledged with what the ledger
stored and billed, and the summary. Everything it does goes through the public contracts; nothing is assumed.
"""
