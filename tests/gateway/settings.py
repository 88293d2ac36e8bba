"""What the configurations of the test houses have in common."""

ON_THIS_MACHINE = """
[ingest]
listen = ["127.0.0.1:0"]

[admin]
listen = ["127.0.0.1:0"]

[storage]
path = "gateway.db"
low_water_mib = 1
low_water_percent = 0.0
"""
"""Free ports, and a database that no full disk of the machine's stops."""
