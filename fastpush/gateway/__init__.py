"""The gateway: takes notifications over HTTP, writes them to disk, and sends each to its one recorded end.

`storage` is the one SQLite file that everything durable is in, `outbox` what waits in it to be sent.
"""
