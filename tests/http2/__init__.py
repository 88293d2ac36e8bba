"""Both engines against servers that behave, misbehave and attack. docs/nasty-servers.md is the map."""
