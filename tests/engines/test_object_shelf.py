"""A registry on an object store: what a crash, a rival, a changed object or a bad store can do, and what not."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from obstore.exceptions import AlreadyExistsError
from obstore.store import MemoryStore

from engines.object_shelf import ObjectShelf, connect
from engines.registry import Registry, RegistryError, open_registry

URL = "memory:///models"


class Wrapped:
    """An object store, one verb of which a test replaces."""

    def __init__(self, store, **verbs):
        self._store, self._verbs = store, verbs

    def __getattr__(self, name):
        return self._verbs.get(name) or getattr(self._store, name)


@pytest.fixture
def on(tmp_path):
    """Makes a registry on a store, as another machine would have it: with a cache of its own."""

    def made(store, machine="here"):
        return Registry(ObjectShelf(store, URL, tmp_path / "machines" / machine))

    return made


@pytest.fixture
def make(tmp_path, plain, package):
    def written(version="1", name="package", **changes):
        return package(tmp_path / f"{name}-{version}", plain(), version=version, **changes)

    return written


@pytest.fixture
def gate(tmp_path):
    path = tmp_path / "gate.json"
    path.write_text(json.dumps({"verdict": "go"}))
    return path


@pytest.fixture
def two(on, object_store, make, gate):
    """Versions 1 and 2 of `test` are in the store; 1, then 2 were promoted."""
    registry = on(object_store)
    for version in "12":
        registry.add(make(version), reports=[gate])
        registry.promote("test", version)
    return registry


def keys(store) -> list[str]:
    return sorted(entry["path"] for batch in store.list() for entry in batch)


def of_version_1(store, path: str) -> str:
    """The key of a file of version 1; of `model.yaml` and the record there is one for each version."""
    record = json.loads(bytes(store.get("test/versions/1/version.json").bytes()))
    return f"test/files/{record['files'][path]}"


# Versions


def test_files_are_named_by_their_content_and_the_record_makes_them_a_version(two, object_store):
    files = [key for key in keys(object_store) if key.startswith("test/files/")]
    assert len(files) == 4  # one graph and one report for both, two contracts
    assert [key for key in keys(object_store) if not key.startswith("test/files/")] == [
        ".put-if-absent", "test/aliases/production/000001.json", "test/aliases/production/000002.json",
        "test/versions/1/version.json", "test/versions/2/version.json",
    ]  # fmt: skip


@pytest.mark.parametrize("whole_puts", range(5))
def test_an_add_that_dies_half_way_leaves_nothing_to_see_and_the_next_one_finishes(
    on, object_store, make, gate, whole_puts
):
    puts = []

    def put(*args, **options):
        if len(puts) == whole_puts:
            raise KeyboardInterrupt
        puts.append(args)
        return object_store.put(*args, **options)

    with pytest.raises(KeyboardInterrupt):
        on(Wrapped(object_store, put=put)).add(make(), reports=[gate])
    registry = on(object_store, "there")
    assert (registry.models(), registry.find("test", "1")) == ([], None)
    with pytest.raises(RegistryError, match="no model 'test' in memory:///models; there is none"):
        registry.resolve("test", "1")
    registry.add(make(), reports=[gate])
    assert registry.resolve("test", "1").contract.version == "1"


@pytest.mark.parametrize("is_same", [True, False])
def test_of_two_who_add_a_version_at_once_one_wins_and_the_other_compares(on, object_store, make, is_same):
    meet = threading.Barrier(2)

    def put(key, data, **options):
        if key.endswith("version.json"):
            meet.wait(timeout=30)
        return object_store.put(key, data, **options)

    folders = [make(name=name, description="" if is_same else name) for name in "ab"]

    def add(n):
        try:
            return on(Wrapped(object_store, put=put), str(n)).add(folders[n], who=str(n))
        except RegistryError as error:
            return error

    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(add, range(2)))
    stored = on(object_store).release("test", "1")
    assert stored in answers
    if is_same:
        assert answers == [stored, stored]
    else:
        (refused,) = [answer for answer in answers if answer != stored]
        assert "version 1 of test stands with another model.yaml" in str(refused)
    assert on(object_store).resolve("test", "1").contract.version == "1"


def test_a_request_that_is_repeated_after_its_answer_was_lost_finds_itself(two, on, object_store, make):
    def put(key, data, **options):
        object_store.put(key, data, **options)
        if options.get("mode") == "create":
            raise AlreadyExistsError("told of the first try")

    registry = on(Wrapped(object_store, put=put))
    registry.add(make("3"), who="ann")
    move = registry.promote("test", "3", who="ann", why="must", force=True)
    assert registry.rollback("test", who="ann").version == "2"
    assert move.number == 3
    assert [m.version for m in registry.history("test", "production")] == ["1", "2", "3", "2"]


def test_a_store_that_overwrites_what_it_should_not_is_refused(on, object_store, make):
    def put(key, data, mode="overwrite"):
        return object_store.put(key, data)

    registry = on(Wrapped(object_store, put=put))
    with pytest.raises(RegistryError, match="overwrites where it should put only if nothing is there"):
        registry.add(make())
    assert registry.models() == []


# Damage


def change(store, key: str, data: bytes = b"changed") -> None:
    store.put(key, data)


DAMAGES = {
    "graph changed": (lambda s: change(s, of_version_1(s, "model.onnx")), "model.onnx of version 1 is damaged"),
    "contract changed": (lambda s: change(s, of_version_1(s, "model.yaml")), "has sha256"),
    "report changed": (lambda s: change(s, of_version_1(s, "reports/gate.json")), "gate.json of version 1 is damaged"),
    "graph gone": (lambda s: s.delete(of_version_1(s, "model.onnx")), "no object memory:///models/test/files/"),
    "record gone": (lambda s: s.delete("test/versions/1/version.json"), "no version '1' in .*; there is 2"),
    "record cut short": (lambda s: change(s, "test/versions/1/version.json", b'{"name": "te'), "damaged"),
    "a path that leads elsewhere": (lambda s: replace_in_record(s, '"model.yaml"', '"../../model.yaml"'),
                                    "'../../model.yaml'"),
    "an absolute path": (lambda s: replace_in_record(s, '"model.yaml"', '"/etc/model.yaml"'), "'/etc/model.yaml'"),
    "a file that would be a folder": (lambda s: replace_in_record(s, '"model.yaml"', '"model.onnx/a"'),
                                      "model.onnx/a"),
    "the record among the files": (lambda s: replace_in_record(s, '"model.yaml"', '"version.json"'),
                                   "expected a path inside"),
    "a key that leads elsewhere": (lambda s: replace_in_record(s, '"model.yaml": "', '"model.yaml": "../'), "64 hex"),
    "another graph named": (lambda s: replace_in_record(s, '"graph_sha256": "', '"graph_sha256": "0'), "another graph"),
}  # fmt: skip


def replace_in_record(store, before: str, after: str) -> None:
    key = "test/versions/1/version.json"
    store.put(key, bytes(store.get(key).bytes()).decode().replace(before, after).encode())


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_changed_object_is_neither_used_nor_promoted_nor_rolled_back_to(two, on, object_store, damage):
    cause, named = DAMAGES[damage]
    cause(object_store)
    elsewhere = on(object_store, "elsewhere")
    for action in (
        lambda: elsewhere.resolve("test", "1"),
        lambda: two.promote("test", "1", why="must", force=True),  # a whole copy is in the cache of this machine
        lambda: two.rollback("test"),
    ):
        with pytest.raises(RegistryError, match=named):
            action()
    assert two.current("test").version == "2"


def test_what_is_refused_leaves_nothing_in_the_cache(two, on, object_store, tmp_path):
    change(object_store, of_version_1(object_store, "model.onnx"))
    with pytest.raises(RegistryError):
        on(object_store, "elsewhere").resolve("test", "1")
    cache = tmp_path / "machines/elsewhere"
    assert [path for path in cache.rglob("*") if path.name not in (".staging", ".locks")] == []


@pytest.mark.parametrize("text", [b"", b"[1]", b'{"number": 2}'])
def test_a_damaged_move_is_an_error_and_never_an_older_version(two, object_store, text):
    change(object_store, "test/aliases/production/000002.json", text)
    for action in (two.resolve, two.rollback, two.current):
        with pytest.raises(RegistryError, match=r"memory:///models/test/aliases/production/000002\.json is damaged"):
            action("test")


def test_a_move_of_megabytes_is_not_read(two, object_store):
    key = "test/aliases/production/000002.json"
    change(object_store, key, bytes(object_store.get(key).bytes()) + b" " * (1 << 24))
    with pytest.raises(RegistryError, match=r"000002\.json has \d+ bytes; expected at most 16777216"):
        two.resolve("test")


def test_a_verdict_that_was_changed_afterwards_is_refused(on, object_store, make, gate):
    registry = on(object_store)
    registry.add(make())
    gate.write_text(json.dumps({"verdict": "no-go"}))
    registry.attach("test", "1", gate)
    (later,) = (key for key in keys(object_store) if key.startswith("test/reports/"))
    change(object_store, later, b'{"verdict": "go"}')
    with pytest.raises(RegistryError, match="changed after"):
        registry.promote("test", "1")


# The copies on a machine


def test_a_version_is_fetched_once_by_all_who_want_it_at_once(two, on, object_store):
    fetched = []

    def get_range(key, **options):
        fetched.append(key)
        return object_store.get_range(key, **options)

    registry = on(Wrapped(object_store, get_range=get_range), "elsewhere")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: registry.resolve("test"), range(8)))
    assert len({package.folder for package in found}) == 1
    assert len(fetched) == len(set(fetched)) == 3


@pytest.mark.parametrize("damage", ["changed", "gone", "added", "link"])
def test_a_damaged_copy_is_fetched_again(two, damage):
    folder = two.resolve("test").folder
    file = folder / "model.onnx"
    whole = file.read_bytes()
    if damage == "added":
        (folder / "more").write_bytes(b"")
    else:
        file.unlink()
    if damage == "changed":
        file.write_bytes(b"x")
    if damage == "link":
        (folder.parent / "away").write_bytes(whole)
        file.symlink_to(folder.parent / "away")
    again = two.resolve("test").folder
    assert (again, (again / "model.onnx").read_bytes(), (again / "more").exists()) == (folder, whole, False)
    assert not (again / "model.onnx").is_symlink()


def test_a_link_in_place_of_a_copy_is_not_followed(two, tmp_path):
    folder = two.resolve("test").folder
    folder.rename(tmp_path / "away")
    folder.symlink_to(tmp_path / "away")
    assert not two.resolve("test").folder.is_symlink()


def test_files_longer_than_a_request_and_empty_ones_come_whole(on, object_store, make, tmp_path):
    long, empty = tmp_path / "long.npz", tmp_path / "empty.npz"
    long.write_bytes(bytes(range(256)) * (1 << 17) + b"end")
    empty.write_bytes(b"")
    registry = on(object_store)
    registry.add(make(), cases=[long, empty])
    cases = registry.resolve("test", "1").folder / "cases"
    assert (cases / "long.npz").read_bytes() == long.read_bytes()
    assert (cases / "empty.npz").read_bytes() == b""


def test_a_cache_that_cannot_be_written_is_named(two, object_store, tmp_path):
    (tmp_path / "file").write_text("")
    registry = Registry(ObjectShelf(object_store, URL, tmp_path / "file"))
    with pytest.raises(RegistryError, match=f"cannot keep fetched versions in {tmp_path}/file"):
        registry.resolve("test")


# URLs


def test_a_folder_is_named_by_its_path_or_a_file_url(tmp_path, make):
    open_registry(tmp_path / "registry", tmp_path).add(make())
    assert open_registry(f"file://{tmp_path}/registry", tmp_path).models() == ["test"]
    assert open_registry(str(tmp_path / "registry"), tmp_path).models() == ["test"]


@pytest.mark.parametrize("url", ["http://host/models", "https://host/models", "ftp://host/models", "s3//:x://y"])
def test_a_url_that_can_hold_no_registry_is_refused_and_says_what_can(url, tmp_path):
    with pytest.raises(RegistryError) as refusal:
        open_registry(url, tmp_path)
    assert f"no registry can be kept at {url}" in str(refusal.value)
    assert "expected a folder, s3://BUCKET/PATH" in str(refusal.value)


@pytest.mark.parametrize("url", ["s3://", "gs:///models"])
def test_a_url_without_a_bucket_is_refused(url, tmp_path):
    with pytest.raises(RegistryError, match=f"{url} cannot be opened: .*; expected a folder, s3://BUCKET"):
        open_registry(url, tmp_path)


def test_a_store_that_does_not_answer_is_named_with_what_it_needs(tmp_path, monkeypatch, make):
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:9", "ALLOW_HTTP": "true", "ACCESS_KEY_ID": "none",
                        "SECRET_ACCESS_KEY": "none"}.items():  # fmt: skip
        monkeypatch.setenv(f"AWS_{name}", value)
    connect.cache_clear()
    registry = open_registry("s3://bucket/models", tmp_path / "cache")
    for action in (registry.models, lambda: registry.add(make()), lambda: registry.resolve("test")):
        with pytest.raises(RegistryError) as refusal:
            action()
        said = str(refusal.value)
        assert said.startswith("no answer for s3://bucket/models")
        assert said.endswith("and, for other stores than Amazon's, AWS_ENDPOINT_URL in the environment")
        assert "\n" not in said
    connect.cache_clear()


# Both shelves


class Alike(RuleBasedStateMachine):
    """A registry in a folder and one on objects, to which the same is done, answer the same."""

    place: Path
    packages: Path

    def __init__(self):
        super().__init__()
        home = self.place / str(len(list(self.place.iterdir())))
        home.mkdir()
        shelf = ObjectShelf(MemoryStore(), URL, home / "cache")
        self.both = Registry(home / "registry"), Registry(shelf)

    def ask(self, action):
        first, second = (answer(action, registry) for registry in self.both)
        assert first == second
        return first

    @rule(package=st.sampled_from(["1a", "1b", "2a", "3a"]), gate=st.sampled_from(["go", "no-go", None]))
    def add(self, package, gate):
        reports = [self.packages / gate / "gate.json"] if gate else []
        self.ask(lambda registry: registry.add(self.packages / package, reports=reports))

    @rule(version=st.sampled_from("123"), gate=st.sampled_from(["go", "no-go"]))
    def attach(self, version, gate):
        self.ask(lambda registry: registry.attach("test", version, self.packages / gate / "gate.json"))

    @rule(version=st.sampled_from("123"), alias=st.sampled_from(["production", "canary"]), force=st.booleans())
    def promote(self, version, alias, force):
        self.ask(lambda registry: registry.promote("test", version, alias, "ann", "why", force))

    @rule(only_from=st.sampled_from([None, "1", "2"]), alias=st.sampled_from(["production", "canary"]))
    def rollback(self, only_from, alias):
        self.ask(lambda registry: registry.rollback("test", alias, "ann", "", only_from))

    @rule(reference=st.sampled_from(["1", "2", "3", "production", "canary"]))
    def resolve(self, reference):
        self.ask(lambda registry: registry.resolve("test", reference).identity)

    @invariant()
    def they_look_alike(self):
        self.ask(lambda registry: registry.models())
        self.ask(lambda registry: [registry.gates("test", version.version) for version in registry.versions("test")])
        for alias in ("production", "canary"):
            self.ask(lambda registry, alias=alias: registry.history("test", alias))


def answer(action, registry):
    """What a registry answers, without the time and the place."""
    try:
        found = action(registry)
    except RegistryError as error:
        return str(error).partition(" in ")[0]
    entries = found if isinstance(found, list) else [found]
    return [replace(entry, at="") if hasattr(entry, "at") else entry for entry in entries]


def test_a_registry_in_a_folder_and_one_on_objects_answer_alike(tmp_path, package, plain):
    Alike.place, Alike.packages = tmp_path / "places", tmp_path / "packages"
    Alike.place.mkdir()
    Alike.packages.mkdir()
    for name in ("1a", "1b", "2a", "3a"):
        package(Alike.packages / name, plain(), version=name[0], description=name[1])
    for verdict in ("go", "no-go"):
        (Alike.packages / verdict).mkdir()
        (Alike.packages / verdict / "gate.json").write_text(json.dumps({"verdict": verdict}))
    run_state_machine_as_test(Alike, settings=settings(max_examples=25, stateful_step_count=15, deadline=None))
