"""A meter reads the clock and the memory."""

from engines.meter import Mark, Meter


def test_the_meter_reads_this_process():
    meter = Meter()
    assert meter.now() <= meter.now()
    assert meter.host_bytes() > 1 << 20


def test_a_mark_tells_what_a_step_has_taken():
    class Steps(Meter):
        def __init__(self, *readings):
            self.readings = iter(readings)

        def now(self):
            return next(self.readings)

        host_bytes = free_device_bytes = now

    growth = Mark(Steps(1000, 10, 5.0, 7.0, 16, 900)).passed()
    assert (growth.seconds, growth.host, growth.device) == (2.0, 6, 100)
    assert Mark(Steps(None, 10, 5.0, 7.0, 16, None)).passed().device is None
