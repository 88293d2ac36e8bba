"""Watches what the gateway stands on: credentials, certificates, trust, clock, and its own silence.

`judge` says what is to be told, `watch` looks and lets the notices tell, `timekeeping` knows what time it is.
"""
