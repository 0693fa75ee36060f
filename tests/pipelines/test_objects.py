"""Objects by their URLs: each verb does what it says, and says what is wrong."""

from types import SimpleNamespace

import pytest
from obstore.exceptions import GenericError, PermissionDeniedError, UnauthenticatedError

from pipelines import objects
from pipelines.errors import ConfigError, OutputError
from pipelines.shelves import open_shelf


@pytest.fixture(params=["memory://", "file://"])
def home(request, tmp_path):
    return f"{request.param}{tmp_path}"


def test_what_is_put_is_there_whole_until_it_is_deleted(home):
    url = f"{home}/a/b~c/d.json"
    assert objects.seconds_since_put(url) is None
    objects.put(url, b"one")
    objects.put(url, b"two")
    assert (objects.get(url), objects.is_there(url)) == (b"two", True)
    assert -1 < objects.seconds_since_put(url) < 60
    for _ in range(2):
        objects.delete(url)
    assert not objects.is_there(url)
    assert objects.get_tagged(url) is None
    with pytest.raises(FileNotFoundError, match=url):
        objects.get(url)


def test_an_object_is_created_once_and_finds_itself(home):
    url = f"{home}/claim"
    assert objects.create(url, b"ours")
    assert not objects.create(url, b"theirs")
    assert objects.create(url, b"ours")
    assert objects.get(url) == b"ours"


def test_an_object_is_swapped_only_if_it_is_the_one_that_was_read(tmp_path):
    url = f"memory://{tmp_path}/latest"
    objects.put(url, b"one")
    data, tag = objects.get_tagged(url)
    assert data == b"one"
    assert objects.swap(url, b"two", tag)
    assert not objects.swap(url, b"three", tag)
    assert objects.swap(url, b"two", tag)
    assert objects.get(url) == b"two"


def test_a_store_that_cannot_swap_says_so(tmp_path):
    url = f"file://{tmp_path}/latest"
    objects.put(url, b"one")
    with pytest.raises(NotImplementedError):
        objects.swap(url, b"two", objects.get_tagged(url)[1])


def test_a_server_that_cannot_swap_says_so_too(monkeypatch):
    def put(*args, **options):
        raise GenericError("Server returned error status 501 Not Implemented: <Code>NotImplemented</Code>")

    monkeypatch.setattr(objects, "connect", lambda bucket: SimpleNamespace(put=put))
    with pytest.raises(NotImplementedError):
        objects.swap("s3://weather/latest.json", b"two", {"e_tag": "1"})
    with pytest.raises(OutputError, match="501"):
        objects.put("s3://weather/latest.json", b"two")


def test_names_are_the_next_parts_and_keys_the_whole_rest(home):
    assert objects.names(home) == objects.keys(home) == []
    for key in ("2016/09/a.json", "2016/09/a.zarr/c/0", "2016/b"):
        objects.put(f"{home}/x/{key}", b"")
    objects.put(f"{home}/xyz/2016/other", b"")
    assert objects.names(f"{home}/x/2016") == ["09", "b"]
    assert objects.names(f"{home}/x/2016/09") == ["a.json", "a.zarr"]
    assert objects.keys(f"{home}/x") == ["2016/09/a.json", "2016/09/a.zarr/c/0", "2016/b"]


def test_only_what_lies_below_is_deleted(home):
    for key in ("a.zarr/zarr.json", "a.zarr/c/0", "a.zarr2/c", "a.json"):
        objects.put(f"{home}/x/{key}", b"")
    objects.delete_below(f"{home}/x/a.zarr")
    objects.delete_below(f"{home}/x/a.zarr")
    assert objects.keys(f"{home}/x") == ["a.json", "a.zarr2/c"]


def test_a_deletion_beside_another_goes_on(home, monkeypatch):
    url, real = f"{home}/x", objects.keys
    for number in range(5):
        objects.put(f"{url}/{number}", b"")

    def keys_then_rival(below):
        found = real(below)
        if found:
            objects.delete(f"{below}/{found[0]}")
        return found

    monkeypatch.setattr(objects, "keys", keys_then_rival)
    objects.delete_below(url)
    assert real(url) == []


def test_urls_of_one_bucket_share_a_connection():
    store, key = objects.locate("s3://weather/a/b.zarr")
    assert (store, key) == (objects.locate("s3://weather/c")[0], "a/b.zarr")
    assert store is not objects.locate("s3://other/a")[0]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (
            "https://host/x",
            "no forecasts can be kept at https://host; a plain web server takes no forecasts",
        ),
        ("ftp://host/x", "no forecasts can be kept at ftp://host; expected a folder, s3://BUCKET/PATH"),
        ("s3:///x", "no forecasts can be kept at s3://; expected"),
        ("file://out/x", "no forecasts can be kept at file://out; expected"),
        ("s3://weather//x", "s3://weather//x has the part '' between two slashes, or at its end; expected names"),
        ("file:///a/../x", "has the part '..' between"),
        ("gs://weather/./x", "has the part '.' between"),
        ("az://container/x", "az://container cannot be opened: .*; expected AZURE_STORAGE_ACCOUNT_NAME and"),
    ],
)
def test_a_url_that_holds_no_forecasts_is_refused(url, says, monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(ConfigError, match=says):
        objects.locate(url)


SAID = [PermissionDeniedError, UnauthenticatedError, GenericError, TimeoutError, ConnectionError, FileNotFoundError]


@pytest.mark.parametrize("error", SAID)
@pytest.mark.parametrize("verb", ["put", "create", "names", "keys"])
def test_whatever_a_store_says_is_one_error_with_the_url_and_what_to_do(monkeypatch, error, verb):
    class Broken:
        def __getattr__(self, name):
            def refuse(*args, **options):
                raise error("404: NoSuchBucket")

            return refuse

    monkeypatch.setattr(objects, "connect", lambda bucket: Broken())
    arguments = ("gs://weather/x", b"") if verb in ("put", "create") else ("gs://weather/x",)
    with pytest.raises(OutputError, match=r"no answer for gs://weather/x: .*expected a bucket .*and GOOGLE_"):
        getattr(objects, verb)(*arguments)


@pytest.mark.parametrize(
    ("root", "home"),
    [
        ("s3://weather", "s3://weather/rain"),
        ("s3://weather/", "s3://weather/rain"),
        ("s3://weather/a/", "s3://weather/a/rain"),
        ("file:///", "file:///rain"),
        ("memory://", "memory:///rain"),
    ],
)
def test_the_product_lies_below_the_root(root, home):
    assert open_shelf(root, "rain").home == home


@pytest.mark.parametrize("root", ["s3://", "s3:///", "s3://weather/a//", "file://weather"])
def test_a_root_that_names_no_place_is_refused(root):
    with pytest.raises(ConfigError, match="expected"):
        open_shelf(root, "rain")
