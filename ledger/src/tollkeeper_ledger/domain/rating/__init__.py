"""Turn usage into money, purely.

Owns what a price means. (Plan version bytes, usage, facts of the subscription, engine version) give charges with an
explanation of each step: no clock, locale, float or I/O, so the same inputs give the same bytes on any machine, years
later. Each price model is one module with one function; an old engine version stays callable.
"""
