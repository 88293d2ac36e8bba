"""The watchdog: told in time, once, by the right channels, whatever clock and process do."""

import datetime

import pytest
import trio

from fastpush.gateway.notices import CHANNELS, open_notices
from fastpush.gateway.notices.values import Told
from fastpush.gateway.storage import Limits, open_storage
from fastpush.gateway.watchdog.judge import Certificate, Sight, Table, Trouble, judge
from fastpush.gateway.watchdog.silence import Silence, SourceSilence, Traffic
from fastpush.gateway.watchdog.timekeeping import Timekeeper

ROOMY = Limits(low_water_octets=0, low_water_share=0.0, reserve_octets=4_096)
HOUR, DAY = 3_600.0, 86_400.0
NOW = 1_800_000_000.0
END = datetime.datetime(2027, 6, 1, 12, tzinfo=datetime.UTC).timestamp()
QUIET = ["console", "log", "email"]
EVERY = list(CHANNELS)


class Recorder:
    """A channel that writes down what it is told, and when."""

    def __init__(self, channel, clock, book):
        self.channel, self.clock, self.book = channel, clock, book

    async def tell(self, telling):
        await trio.lowlevel.checkpoint()
        self.book.append((self.clock(), self.channel, telling.change, telling.notice.stage))
        return "the book"


class Clock:
    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now


class Gateway:
    """One process after the other on the same file; `look` is one judgement."""

    def __init__(self, path, now):
        self.path, self.clock = path, Clock(now)
        self.book = []

    async def run(self, life, *carriers):
        """One process, from start to end."""
        async with open_storage(self.path, ROOMY) as storage:
            if not carriers:
                carriers = [
                    Recorder(channel, self.clock, self.book)
                    for channel in CHANNELS if channel not in ("console", "app")
                ]  # fmt: skip
            self.notices = await open_notices(storage, carriers, clock=self.clock)
            async with trio.open_nursery() as nursery:
                await nursery.start(self.notices.run)
                await life()
                nursery.cancel_scope.cancel()

    async def look(self, sight, table=None):
        judgement = judge(sight, self.notices.told, self.clock.now, table)
        if judgement:
            await self.notices.apply(judgement, self.clock.now)
            await self.notices.wait_told()
        return judgement


def certificate(fingerprint="a" * 64, ends=END, **fields):
    fields = {"apps": ("opmanager",), "topic": "com.example.app"} | fields
    return Certificate(
        kind=fields.pop("kind", "certificate"),
        name=fields.pop("name", "com.example.app"),
        fingerprint=fingerprint,
        not_before=fields.pop("begins", ends - 396 * DAY),
        expires_at=ends,
        **fields,
    )


async def told_so_far(notices):
    """From the book that is on disk, also what is told by being asked."""
    return [(round((END - one.at) / DAY, 3), one.channel, one.change) for _, one in await notices.history()]


WALK = [
    (30, "raised", QUIET),
    (10, "raised", EVERY),
    (3, "raised", EVERY),
    (2, "raised", EVERY),
    (1, "raised", EVERY),
    (0, "raised", EVERY),
]


@pytest.mark.parametrize("upsets", ["none", "restarts", "suspends", "clock set", "all of them"])
async def test_a_certificate_walks_to_its_end(tmp_path, seed, upsets):
    """From 400 days ahead to 5 days past the end, hour by hour: the exact list by channel and time."""
    gateway = Gateway(tmp_path / "gateway.db", END - 400 * DAY)
    # Valid for a while: with a clock set back it is not to be one that is not valid yet.
    sight = Sight(certificates=(certificate(begins=END - 401 * DAY),))
    true = END - 400 * DAY
    lines = {END - ahead * DAY for ahead, _, _ in WALK}

    async def until_restart():
        nonlocal true
        while true < END + 5 * DAY:
            gateway.clock.now = true
            await gateway.look(sight)
            if upsets in ("clock set", "all of them") and seed.random() < 0.02:
                # Somebody sets the clock back by hours and right again; between the two it is judged.
                gateway.clock.now = true - seed.uniform(0, 10) * HOUR
                await gateway.look(sight)
            step = HOUR
            if upsets in ("suspends", "all of them") and seed.random() < 0.01:
                # The machine sleeps, not over a line: then it would be told late, which is another story.
                ahead = min((line for line in lines if line > true), default=END + 6 * DAY)
                step = HOUR * seed.randint(1, max(1, int((ahead - true) / HOUR)))
            true += step
            if upsets in ("restarts", "all of them") and seed.random() < 0.02:
                return

    while true < END + 5 * DAY:
        await gateway.run(until_restart)

    async def read():
        gateway.kept = await told_so_far(gateway.notices)

    await gateway.run(read)
    assert gateway.kept == [(ahead, channel, change) for ahead, change, by in WALK for channel in by]
    carried = [(round((END - at) / DAY, 3), channel, stage) for at, channel, change, stage in gateway.book]
    asked = ("console", "app")
    assert sorted(carried, key=str) == sorted(
        [(ahead, channel, ahead) for ahead, _, by in WALK for channel in by if channel not in asked], key=str
    )


def look(sight, told, now, table=None):
    """One judgement and what it leaves behind, without a disk."""
    judgement = judge(sight, told, now, table)
    for key in judgement.withdraw:
        told[key] = Told(told[key].notice, told[key].at, standing=False)
    for key in judgement.forget:
        told.pop(key, None)
    for notice in (*judgement.tell, *judgement.restore):
        told[notice.id] = Told(notice, now)
    return judgement


def stages(judgement):
    return [notice.stage for notice in judgement.tell]


def test_only_the_most_urgent_line_is_told():
    told = {}
    sight = Sight(certificates=(certificate(),))
    assert stages(look(sight, told, END - 2.5 * DAY)) == [3]
    assert stages(look(sight, told, END - 2.5 * DAY)) == []
    assert stages(look(sight, told, END - 0.5 * DAY)) == [1], "the line of 2 days was slept over"
    assert stages(look(sight, told, END + 40 * DAY)) == [0]


def test_a_new_certificate_withdraws_and_an_old_one_put_back_is_not_told_twice():
    told = {}
    old = Sight(certificates=(certificate(),))
    new = Sight(certificates=(certificate("b" * 64, ends=END + 396 * DAY),))
    (notice,) = look(old, told, END - 9 * DAY).tell
    assert look(new, told, END - 8 * DAY).withdraw == (notice.id,)
    again = look(old, told, END - 7 * DAY)
    assert not again.tell
    assert [one.id for one in again.restore] == [notice.id]
    assert stages(look(old, told, END - 2.9 * DAY)) == [3]
    assert look(new, told, END - 2 * DAY).withdraw == (notice.id,)


def test_one_certificate_for_several_apps_is_told_once():
    one, other = certificate(apps=("first",)), certificate(apps=("second",))
    (notice,) = judge(Sight(certificates=(one, other, one)), {}, END - 9 * DAY).tell
    assert notice.apps == ("first", "second")
    assert notice.body.endswith("It is used by: first, second.")


def test_what_was_told_by_a_clock_a_year_ahead_does_not_count():
    """Set right, the certificate is good again, and its true lines are told when they are crossed."""
    told = {}
    sight = Sight(certificates=(certificate(),))
    (wrong,) = look(sight, told, END + 100 * DAY).tell
    assert wrong.stage == 0
    right = look(sight, told, END - 265 * DAY)
    assert right.withdraw == (wrong.id,)
    assert not right.tell
    assert [stages(look(sight, told, END - ahead * DAY)) for ahead in (30, 10, 3, 2, 1, 0)] == [
        [30], [10], [3], [2], [1], [0],
    ]  # fmt: skip


def test_the_ingests_certificate_is_told_once_at_a_fifth_of_its_lifetime():
    for lifetime in (47, 90, 396):
        told = {}
        own = certificate(kind="ingest_certificate", begins=END - lifetime * DAY, apps=(), topic=None)
        sight = Sight(certificates=(own,))
        found = []
        for hour in range(int(-lifetime * 24), 5 * 24):
            found += [(hour / 24, notice.channels) for notice in look(sight, told, END + hour * HOUR).tell]
        ((ahead, channels),) = found
        assert -lifetime / 5 <= ahead < -lifetime / 5 + 1 / 24
        assert channels == CHANNELS


def test_the_days_are_configurable():
    table = Table(early=(), days=(14, 7))
    told = {}
    sight = Sight(certificates=(certificate(),))
    days = [ahead for ahead in range(40, -1, -1) if look(sight, told, END - ahead * DAY, table)]
    assert days == [14, 7, 0]


def test_a_certificate_that_is_not_valid_yet_is_told_until_it_is():
    told = {}
    sight = Sight(certificates=(certificate(begins=END - 300 * DAY),))
    (notice,) = look(sight, told, END - 301 * DAY).tell
    assert notice.kind == "not_yet_valid"
    assert "2026-08-05" in notice.body
    assert look(sight, told, END - 300 * DAY).withdraw == (notice.id,)


def test_a_trouble_is_told_at_once_withdrawn_when_over_and_left_alone_when_unknown():
    told = {}
    refused = Trouble(
        kind="credential_refused", subject="opmanager", title="APNs refuses it", body="403.", cure="Renew."
    )
    (notice,) = look(Sight(troubles=(refused,)), told, END).tell
    assert notice.channels == CHANNELS
    assert not look(Sight(troubles=(refused,)), told, END + HOUR)
    assert not look(Sight(unknown=frozenset({notice.id})), told, END + 2 * HOUR), "after a restart, say"
    assert look(Sight(), told, END + 3 * HOUR).withdraw == (notice.id,)
    assert look(Sight(troubles=(refused,)), told, END + 4 * HOUR).tell, "there again: told again"


def test_every_notice_says_what_to_do():
    kinds = ("certificate", "intermediate", "trust_root", "ingest_certificate")
    for kind in kinds:
        (notice,) = judge(Sight(certificates=(certificate(kind=kind),)), {}, END - HOUR).tell
        assert notice.cure.endswith(".")
        assert "1 hour" in notice.title
        assert notice.severity == 2
        assert len(notice.entity) < 100
    (notice,) = judge(Sight(certificates=(certificate(source="/etc/push.p12"),)), {}, END).tell
    assert notice.severity == 1
    assert "/etc/push.p12" in notice.cure


# What time it is.


class Machine:
    """A wall clock that somebody sets, and an uptime that nobody does."""

    def __init__(self):
        self.wall_now, self.up = END, 1_000.0

    def passes(self, seconds):
        self.wall_now += seconds
        self.up += seconds

    def keeper(self):
        return Timekeeper(lambda: self.wall_now, lambda: self.up)


def test_a_servers_date_corrects_the_clock_until_somebody_sets_it():
    machine = Machine()
    keeper = machine.keeper()
    machine.wall_now += 365 * DAY  # set wrong
    assert keeper.jumped()
    keeper.heard(END)
    machine.passes(DAY)
    assert not keeper.jumped()
    assert keeper.now() == END + DAY
    assert keeper.offset == 365 * DAY
    machine.wall_now -= 365 * DAY  # set right
    assert keeper.jumped()
    assert keeper.offset is None
    assert keeper.doubtful()
    assert keeper.now() == END + DAY, "by the wall clock again"


def test_a_small_difference_is_none_and_slewing_is_no_jump():
    machine = Machine()
    keeper = machine.keeper()
    keeper.heard(END - 20)
    assert keeper.now() == END
    for _ in range(100):
        machine.passes(60)
        machine.wall_now += 0.5
        assert not keeper.jumped()
    assert keeper.offset == 20


def test_doubt_ends_with_patience():
    machine = Machine()
    keeper = machine.keeper()
    assert keeper.doubtful()
    machine.passes(899)
    assert keeper.doubtful()
    machine.passes(2)
    assert not keeper.doubtful()
    machine.wall_now += 3 * DAY  # it slept, and its uptime did not count that
    assert keeper.jumped()
    assert keeper.doubtful()
    keeper.heard(machine.wall_now)
    assert not keeper.doubtful()


# Silence.


def test_silence_is_offering_without_acceptance():
    silence = Silence(after=600)
    assert silence.look(Traffic(0, 0, 0), 0) is None
    assert silence.look(Traffic(0, 0, 0), 5_000) is None, "nothing was offered"
    assert silence.look(Traffic(0, 0, 5), 5_060) is None
    assert silence.look(Traffic(0, 3, 2), 5_600) is None
    assert silence.look(Traffic(0, 3, 0), 5_660) == 600
    assert silence.look(Traffic(1, 3, 0), 5_720) is None, "one was accepted"
    assert silence.look(Traffic(1, 4, 0), 5_780) is None
    assert silence.look(Traffic(1, 4, 0), 6_379) is None
    assert silence.look(Traffic(1, 4, 0), 6_380) == 600
    never = Silence(after=0)
    for uptime in range(0, 100_000, 1_000):
        assert never.look(Traffic(0, uptime, 9), uptime) is None


def test_a_source_that_never_spoke_is_not_missed():
    sources = SourceSilence({"opm1": 60.0, "opm2": 60.0}, {"opm2": NOW})
    sources.heard("stranger", NOW)
    assert not sources.changed
    assert not sources.troubles(NOW + 3_600)
    (trouble,) = sources.troubles(NOW + 3_601)
    assert trouble.subject == "opm2"
    sources.heard("opm2", NOW + 4_000)
    assert sources.changed
    assert not sources.troubles(NOW + 4_001)
