"""A gateway's database with a long backlog, made in seconds."""

from fastpush.gateway.outbox import Entry
from fastpush.gateway.outbox.sqlite import OutboxLimits, open_outbox
from fastpush.gateway.storage import Limits, open_storage


async def fill(path, app, batches, size, *, expiration=None):
    """Accept one batch, and copy it in the tables."""
    limits = Limits(low_water_octets=0, low_water_share=0.0, reserve_octets=4_096)
    async with open_storage(path, limits) as storage:
        outbox = await open_outbox(storage, limits=OutboxLimits(pending_after=60.0))
        entries = [
            Entry(f"{n:064x}", b'{"aps":{"alert":"%0200d"}}' % n, expiration=expiration) for n in range(size)
        ]
        first = await outbox.accept(app, entries)

        def copy(connection):
            values = {"batch": first.batch, "count": batches - 1}
            numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count) "
            for table, key in [("batch", "id"), ("body", "batch"), ("waiting", "batch")]:
                columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
                picked = ", ".join(f"{key} + i * 1048576" if each == key else each for each in columns)
                connection.execute(
                    f"{numbers} INSERT INTO {table} SELECT {picked} FROM {table}, n WHERE {key} = :batch",
                    values,
                )

        await storage.write(copy)
