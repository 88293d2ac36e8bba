"""Watches what the gateway stands on: credentials, certificates, trust, clock, and its own silence."""
