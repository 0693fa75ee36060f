"""Cycles on an object store: what a crash at any request, a rival, a late worker or a bad store can do, and what not.

What holds everywhere is in test_sink.py, which runs on object stores too.
"""

import itertools
import json
import os
import threading
from contextlib import suppress
from datetime import timedelta
from functools import cache

import numpy as np
import pytest
from obstore.exceptions import BaseError, PermissionDeniedError

from pipelines import object_shelf, objects, sink
from pipelines.archive import open_archive, open_cycle
from pipelines.claim import Claim
from pipelines.cycles import find_cycle, latest_cycle, list_cycles
from pipelines.errors import AlreadyPublishedError, InputError, OutputError
from pipelines.ledger import Ledger
from pipelines.object_shelf import LATEST, ObjectShelf
from pipelines.sink import abort, expire, make_draft, point_latest, publish, sweep, write_block
from pipelines.staging import this_process

TIME, EARLIER = "2016-09-28T15:30", "2016-09-28T15:25"
NOW = np.datetime64(TIME, "ns")


class Killed(BaseException):
    """The process is no more: no request of it comes through."""


class Wrapped:
    """An object store, some verbs of which a test replaces."""

    def __init__(self, store, **verbs):
        self._store, self._verbs = store, verbs

    def __getattr__(self, name):
        return self._verbs.get(name) or getattr(self._store, name)


class Failing:
    """An object store that fails at a request and, if it is for ever, at all that follow.

    Args:
        at: how many requests come through before.
        late: the failing request is done, but its answer is lost.
    """

    def __init__(self, store, at, error, late=False, for_ever=True):
        self._store, self._left, self._error, self._late, self._for_ever = store, at, error, late, for_ever
        self._lock = threading.Lock()

    def __getattr__(self, name):
        verb = getattr(self._store, name)

        def request(*args, **options):
            with self._lock:
                left, self._left = self._left, self._left - 1
            if left > 0 or (left < 0 and not self._for_ever):
                return verb(*args, **options)
            if left == 0 and self._late:
                with suppress(Exception):
                    verb(*args, **options)
            raise self._error

        return request


@pytest.fixture
def through(monkeypatch):
    """Has all requests go through a store made from the real one, or from none any more."""
    real = objects.connect

    def use(wrap=None):
        monkeypatch.setattr(objects, "connect", real if wrap is None else cache(lambda bucket: wrap(real(bucket))))

    return use


def everything(bucket) -> dict[str, bytes]:
    home = bucket.place.home
    return {key: objects.get(f"{home}/{key}") for key in objects.keys(home)}


def orphans(bucket) -> list[str]:
    """Objects that belong to no published cycle."""
    tree = everything(bucket)
    stores = {json.loads(data)["store"] for key, data in tree.items() if key.endswith(".json") and key.count("/") == 3}
    own = {LATEST, ".put-if-absent"}
    return [k for k in tree if k not in own and k.count("/") >= 3 and k.partition(".zarr/")[0] + ".zarr" not in stores
            and not k.endswith(".json")] + [k for k in tree if ".staging" in k]  # fmt: skip


def is_whole(bucket, cycle, seed) -> bool:
    values = open_cycle(cycle.path).rain_rate.values[0]
    codes = bucket.codes(seed)
    expected = np.where(codes == -32768, np.float32(np.nan), codes * np.float32(0.01))
    return np.array_equal(values, expected.astype(np.float32), equal_nan=True)


def attempts(make):
    """Numbers from 0 on, until `make(number)` comes to its end without an accident."""
    for number in itertools.count():
        if make(number):
            assert number > 5
            return


# Names


def test_names_are_what_the_documentation_says(bucket):
    cycle = bucket.publish(TIME)
    store = cycle.path.removeprefix(f"{bucket.place.home}/")
    assert store.startswith("2016/09/28/1530.")
    assert store.endswith(".zarr")
    claim = {"cycle": "2016/09/28/1530.json", "store": store}
    tree = everything(bucket)
    assert json.loads(tree["2016/09/28/1530.json"]) == json.loads(tree["latest.json"]) == claim
    assert {key for key in tree if not key.startswith(store)} == {
        ".put-if-absent", "2016/09/28/1530.json", "latest.json",
    }  # fmt: skip
    bucket.publish(TIME, replace=True)
    assert "2016/09/28/1530.r1.json" in everything(bucket)


def test_each_run_has_a_store_of_its_own_that_its_marker_names(bucket):
    one, two = bucket.draft(TIME), bucket.draft(TIME)
    assert one.store != two.store
    for draft in (one, two):
        marker = json.loads(everything(bucket)[f".staging/{draft.staging}"])
        assert f"{bucket.place.home}/{marker['store']}" == draft.store


def test_a_cycle_is_opened_by_its_store_its_claim_or_the_pointer(bucket):
    cycle = bucket.publish(TIME, 1)
    home = bucket.place.home
    for url in (cycle.path, f"{cycle.path}/", f"{home}/2016/09/28/1530.json", f"{home}/latest.json"):
        assert open_cycle(url).rain_rate.shape == (1, 2, 20, 13)
    for url in (f"{home}/2016/09/28/1535.json", f"{home}/2016/09/28/1530.zarr"):
        with pytest.raises(InputError, match=f"no published cycle at {url}"):
            open_cycle(url)


# A process that is killed at any request


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("standing", [False, True], ids=["first", "revision"])
def test_a_writer_killed_at_any_request_leaves_nothing_or_a_whole_cycle_and_the_next_run_ends_it(
    bucket, through, monkeypatch, standing, late
):
    def killed_at(number):
        shelf = bucket.but(root=f"{bucket.root}/{number}")
        if standing:
            shelf.publish(TIME, 1)
        before = [(c.revision, c.path) for c in list_cycles(shelf.root, "rain")]
        through(lambda store: Failing(store, number, Killed(), late))
        try:
            shelf.publish(TIME, 2, replace=standing)
            survived = True
        except Killed:
            survived = False
        through()
        check_readers(shelf, before, standing)
        monkeypatch.setattr(sink, "is_abandoned", lambda *_: True)  # its process has ended
        sweep(shelf.root, "rain")
        monkeypatch.undo()
        assert orphans(shelf) == []
        check_readers(shelf, before, standing)
        check_rerun(shelf, before, standing)
        return survived

    attempts(killed_at)


def check_readers(shelf, before, standing):
    """They see what they saw before the accident, or the new cycle whole."""
    cycles = list_cycles(shelf.root, "rain")
    if [(c.revision, c.path) for c in cycles] != before:
        assert [cycle.revision for cycle in cycles] == [int(standing)]
        assert is_whole(shelf, cycles[0], 2)
    latest = latest_cycle(shelf.root, "rain")
    assert latest is None or is_whole(shelf, latest, 1 if latest.revision < standing else 2)


def check_rerun(shelf, before, standing):
    """It publishes the cycle if that had not been done, and moves the pointer."""
    cycles = list_cycles(shelf.root, "rain")
    if [(c.revision, c.path) for c in cycles] == before:
        shelf.publish(TIME, 2, replace=standing)
    else:
        with pytest.raises(AlreadyPublishedError, match="with the same bytes"):
            publish(shelf.filled(TIME, 2, replace=True))
        sweep(shelf.root, "rain")
    (cycle,) = list_cycles(shelf.root, "rain")
    assert is_whole(shelf, cycle, 2)
    assert latest_cycle(shelf.root, "rain") == cycle


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_retention_killed_at_any_request_leaves_each_cycle_whole_or_gone_and_the_next_run_ends_it(
    bucket, through, monkeypatch, late
):
    def killed_at(number):
        shelf = bucket.but(root=f"{bucket.root}/{number}")
        shelf.publish(EARLIER, 1)
        newest = shelf.publish(TIME, 2)
        through(lambda store: Failing(store, number, Killed(), late))
        try:
            expire(shelf.root, "rain", timedelta(minutes=1), NOW)
            survived = True
        except Killed:
            survived = False
        through()
        assert all(is_whole(shelf, c, 2 if c == newest else 1) for c in list_cycles(shelf.root, "rain"))
        monkeypatch.setattr(sink, "is_abandoned", lambda *_: True)
        sweep(shelf.root, "rain")
        monkeypatch.undo()
        assert orphans(shelf) == []
        expire(shelf.root, "rain", timedelta(minutes=1), NOW)
        assert list_cycles(shelf.root, "rain") == [newest]
        assert orphans(shelf) == []
        return survived

    attempts(killed_at)


def test_a_sweep_killed_at_any_request_is_ended_by_the_next(bucket, through, monkeypatch):
    def killed_at(number):
        shelf = bucket.but(root=f"{bucket.root}/{number}")
        standing = shelf.publish(EARLIER, 1)
        shelf.filled(TIME, 2)
        monkeypatch.setattr(sink, "is_abandoned", lambda *_: True)
        through(lambda store: Failing(store, number, Killed()))
        try:
            sweep(shelf.root, "rain")
            survived = True
        except Killed:
            survived = False
        through()
        monkeypatch.setattr(sink, "is_abandoned", lambda *_: True)
        sweep(shelf.root, "rain")
        monkeypatch.undo()
        assert orphans(shelf) == []
        assert list_cycles(shelf.root, "rain") == [standing]
        assert is_whole(shelf, standing, 1)
        return survived

    attempts(killed_at)


@pytest.mark.parametrize("late", [False, True], ids=["refused", "answer lost"])
def test_a_request_that_fails_is_an_error_and_leaves_nothing_or_a_whole_cycle(bucket, through, late):
    def failing_at(number):
        shelf = bucket.but(root=f"{bucket.root}/{number}")
        through(lambda store: Failing(store, number, BaseError("it thundered"), late, for_ever=False))
        draft, said = None, ""
        try:
            draft = shelf.filled(TIME, 2)
            publish(draft)
        except OutputError as error:
            said = str(error)
        if draft is not None:
            abort(draft)
        through()
        cycles = list_cycles(shelf.root, "rain")
        assert all(is_whole(shelf, cycle, 2) for cycle in cycles)
        assert cycles or said
        assert not said or (f"no answer for {shelf.place.home}" in said and "it thundered" in said)
        return not said

    attempts(failing_at)


# Rivals


def test_a_sweep_that_takes_the_marker_between_check_and_claim_has_the_writer_take_the_claim_back(bucket, through):
    """The sweep has removed the marker and not yet looked for a claim."""
    draft = bucket.filled(TIME)
    objects.delete(f"{bucket.place.home}/.staging/{draft.staging}")
    with pytest.raises(OutputError, match=r"cannot write .*1530\..*\.zarr: its draft is gone"):
        publish(draft)
    assert list_cycles(bucket.root, "rain") == []
    assert latest_cycle(bucket.root, "rain") is None


def test_a_sweep_that_sees_the_claim_leaves_the_store(bucket):
    """The writer has put the claim and not yet looked for its marker; the sweep comes between."""
    draft = bucket.filled(TIME, 1)
    name = "2016/09/28/1530.json"
    objects.create(
        f"{bucket.place.home}/{name}", Claim(name, draft.store.removeprefix(f"{bucket.place.home}/")).as_json()
    )
    assert bucket.place.clear(draft.staging)
    assert is_whole(bucket, find_cycle(bucket.root, "rain", NOW), 1)


def test_a_writer_that_claims_right_after_a_sweep_looked_for_claims_fails(bucket, through):
    """The sweep removed the marker before it looked, so the writer sees that it is swept."""
    draft, failures = bucket.filled(TIME, 1), []

    def wrap(store):
        def list_with_delimiter(prefix):
            found = store.list_with_delimiter(prefix)
            through()
            with pytest.raises(OutputError, match="its draft is gone") as failure:
                publish(draft)
            failures.append(failure)
            return found

        return Wrapped(store, list_with_delimiter=list_with_delimiter)

    through(wrap)
    assert bucket.place.clear(draft.staging)
    assert len(failures) == 1
    assert list_cycles(bucket.root, "rain") == []
    assert orphans(bucket) == []


def test_two_sweeps_at_once_remove_a_draft_together(bucket, monkeypatch):
    draft = bucket.filled(TIME)
    place = bucket.place
    answers = [place.clear(draft.staging), place.clear(draft.staging)]
    assert answers == [True, False]
    assert orphans(bucket) == []


def test_a_claim_whose_answer_was_lost_is_the_writers_own(bucket, through):
    """The client repeats the request, and the store says that the name is taken: by ourselves."""
    draft = bucket.filled(TIME)

    def wrap(store):
        def put(key, data, **options):
            if key.endswith("1530.json"):
                store.put(key, data, **options)
            return store.put(key, data, **options)

        return Wrapped(store, put=put)

    through(wrap)
    cycle = publish(draft)
    through()
    assert list_cycles(bucket.root, "rain") == [cycle]


def test_a_worker_that_is_late_by_one_request_changes_nothing(bucket, monkeypatch):
    """It saw its marker just before the cycle was published."""
    draft = bucket.filled(TIME, 1)
    cycle = publish(draft)
    before = everything(bucket)
    monkeypatch.setattr(objects, "is_there", lambda url: True)
    write_block(draft, bucket.grid.window, bucket.codes(5))
    assert everything(bucket) == before
    assert is_whole(bucket, cycle, 1)


def test_codes_written_instead_of_others_stay(bucket):
    draft = bucket.filled(TIME, 1)
    write_block(draft, bucket.grid.window, bucket.codes(2), instead=True)
    write_block(draft, bucket.grid.window, bucket.codes(1))
    assert is_whole(bucket, publish(draft), 2)


def test_work_of_another_host_is_swept_a_day_after_it_began(bucket, monkeypatch):
    draft = bucket.filled(TIME)
    marker = f"{bucket.place.home}/.staging/{draft.staging}"
    theirs = marker.replace(this_process().host, "another-host")
    objects.put(theirs, objects.get(marker))
    objects.delete(marker)
    assert sweep(bucket.root, "rain") == []
    monkeypatch.setattr(objects, "seconds_since_put", lambda url: 25 * 3600.0)
    assert sweep(bucket.root, "rain") == [theirs]
    assert orphans(bucket) == []


def test_a_writer_may_start_and_end_while_the_pointer_is_moved(bucket, through):
    """The pointer changes between being read and being put: it is looked at again."""
    bucket.publish(EARLIER)
    draft, interrupted = bucket.filled(TIME), []

    def wrap(store):
        def put(key, data, **options):
            if key.endswith(LATEST) and not interrupted:
                interrupted.append(key)
                bucket.publish("2016-09-28T15:35")
            return store.put(key, data, **options)

        return Wrapped(store, put=put)

    through(wrap)
    publish(draft)
    assert interrupted
    assert str(latest_cycle(bucket.root, "rain").reference_time)[:16] == "2016-09-28T15:35"


def test_a_pointer_to_a_cycle_that_is_gone_counts_as_none(bucket):
    bucket.publish(TIME)
    objects.delete(f"{bucket.place.home}/2016/09/28/1530.json")
    assert latest_cycle(bucket.root, "rain") is None
    cycle = bucket.publish(EARLIER)
    assert latest_cycle(bucket.root, "rain") == cycle


def test_a_marker_that_cannot_be_asked_for_leaves_the_claim_alone(bucket, through):
    """Readers may have seen the cycle by then: it stays, and the error says that there was no answer."""
    draft, broken = bucket.filled(TIME, 1), []

    def wrap(store):
        def put(key, data, **options):
            broken.extend([key] if key.endswith("1530.json") else [])
            return store.put(key, data, **options)

        def head(key):
            if broken:
                raise BaseError("it thundered")
            return store.head(key)

        return Wrapped(store, put=put, head=head)

    through(wrap)
    with pytest.raises(OutputError, match="it thundered"):
        publish(draft)
    through()
    abort(draft)
    assert is_whole(bucket, find_cycle(bucket.root, "rain", NOW), 1)
    assert orphans(bucket) == []


# Stores that are not what they should be


def test_a_store_that_overwrites_where_it_should_not_is_refused(bucket, through):
    object_shelf._check_claims_once.cache_clear()
    through(lambda store: Wrapped(store, put=lambda key, data, **options: store.put(key, data)))
    with pytest.raises(OutputError, match="overwrites where it should put only if nothing is there"):
        make_draft(bucket.root, "rain", NOW, bucket.layout)
    with pytest.raises(OutputError, match="overwrites"):
        bucket.place.check()
    through()
    assert bucket.staged == []


@pytest.mark.parametrize("verb", ["put", "list_with_delimiter"])
def test_a_store_that_refuses_is_named_with_what_it_needs(through, monkeypatch, tmp_path, verb):
    def refuse(*args, **options):
        raise PermissionDeniedError("403 Forbidden\n\nDebug source: secrets")

    monkeypatch.setattr(objects, "connect", lambda _: Wrapped(objects.from_url("memory:///"), **{verb: refuse}))
    url = f"s3://weather{tmp_path}"
    with pytest.raises(
        OutputError, match=r"no answer for s3://weather/.*: 403 Forbidden; expected a bucket that is"
    ) as e:
        make_draft(url, "rain", NOW, None)
    assert "AWS_ACCESS_KEY_ID" in str(e.value)
    assert "secrets" not in str(e.value)


def test_a_damaged_claim_is_named(bucket):
    bucket.publish(TIME)
    url = f"{bucket.place.home}/2016/09/28/1530.json"
    for data in (b"{", b"[]", b"{}"):
        objects.put(url, data)
        with pytest.raises(OutputError, match=r"1530\.json is damaged .*; expected JSON with cycle and store"):
            list_cycles(bucket.root, "rain")


@pytest.mark.parametrize("mend", [lambda root: sweep(root, "rain"), lambda root: point_latest(root, "rain")])
def test_a_damaged_pointer_is_put_anew(bucket, mend):
    """It says nothing that the claims do not say; a run that ended at it would end each time."""
    cycle = bucket.publish(TIME)
    whole = everything(bucket)
    objects.put(f"{bucket.place.home}/{LATEST}", b"{")
    assert latest_cycle(bucket.root, "rain") is None
    mend(bucket.root)
    assert everything(bucket) == whole
    assert latest_cycle(bucket.root, "rain") == cycle


def test_a_cycle_removed_after_the_archive_was_opened_is_an_error_and_not_missing_data(bucket):
    bucket.publish(EARLIER)
    bucket.publish(TIME)
    archive = open_archive(bucket.root, "rain")
    expire(bucket.root, "rain", timedelta(minutes=1), NOW)
    with pytest.raises(InputError, match=r"shard .*1525\..* is gone: its cycle was removed"):
        archive.rain_rate[0].values  # noqa: B018


def test_a_late_reader_of_a_store_that_is_being_removed_finds_no_store(bucket, through):
    """The metadata goes first: no reader opens a store that lacks shards."""
    cycle = bucket.publish(EARLIER)
    bucket.publish(TIME)
    gone = []

    def wrap(store):
        def delete(paths):
            gone.extend([paths] if isinstance(paths, str) else paths)
            return store.delete(paths)

        return Wrapped(store, delete=delete)

    through(wrap)
    expire(bucket.root, "rain", timedelta(minutes=1), NOW)
    key = objects.locate(cycle.path)[1]
    assert next(path for path in gone if path.startswith(key)) == f"{key}/zarr.json"


def test_the_ledger_lies_beside_the_cycles(bucket):
    ledger = Ledger(bucket.root, "rain")
    assert ledger.folder == f"{bucket.place.home}/ledger"
    ledger.flush()
    assert bucket.place.names("ledger") == []


@pytest.mark.skipif("SQUALL_TEST_STORE" not in os.environ, reason="no object store is named")
def test_a_bucket_that_is_not_there_is_named():
    with pytest.raises(OutputError, match="expected a bucket that is there"):
        ObjectShelf("s3://no-such-bucket-of-squall/rain").check()
