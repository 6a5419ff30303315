"""Run, operate and demonstrate Tollkeeper from the command line."""
