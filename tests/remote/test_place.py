"""What a URL names, and copies of it: checked, tried again, never torn."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monai_pipelines.data.contents import content_hash
from monai_pipelines.errors import ScanError
from monai_pipelines.privacy import without_secrets
from monai_pipelines.remote import Remote, as_place, entry, local, place, read_start, unlink, whole_write
from monai_pipelines.remote.store import TRIES, MissingError, download
from tests.remote.servers import BUCKET, Proxy, WebServer, serving

Put = Callable[..., str]


def read(source: Any) -> bytes:
    with local(source) as path:
        return path.read_bytes()


def num_copies(tmp_path: Path) -> int:
    return sum(path.is_dir() for path in (tmp_path / "scratch").iterdir())


@pytest.mark.parametrize(
    ("folder", "name", "wanted"),
    [
        ("s3://bucket/cohort", "scans/a.nii", "s3://bucket/cohort/scans/a.nii"),
        ("s3://bucket/cohort", "..\\other\\a b#1.nii", "s3://bucket/other/a b#1.nii"),
        ("https://host/cohort", "scans/a b#1.png", "https://host/cohort/scans/a%20b%231.png"),
        ("https://host/cohort?token=x", "a.png", "https://host/cohort/a.png"),
        ("s3://bucket/cohort", "https://host/a.png?token=x", "https://host/a.png?token=x"),
    ],
)
def test_entries_of_a_table_at_a_url(folder: str, name: str, wanted: str) -> None:
    found = entry(as_place(folder), name)
    assert isinstance(found, Remote)
    assert found.url == wanted


def test_entries_that_are_paths(tmp_path: Path) -> None:
    assert entry(tmp_path, "a.nii") == tmp_path / "a.nii"
    assert entry(tmp_path, "/data/a.nii") == entry(as_place("s3://b/c"), "/data/a.nii") == Path("/data/a.nii")
    assert entry(tmp_path, "file:///data/a%20b.nii") == Path("/data/a b.nii")
    assert as_place("C:/data/a.nii") == Path("C:/data/a.nii")


def test_names_of_urls() -> None:
    file = Remote("https://me:pass@word@host:8000/a/b%20c.nii.gz?signature=1/2")
    assert (file.name, file.suffix, file.stem) == ("b c.nii.gz", ".gz", "b c.nii")
    assert str(file) == f"{file}" == "https://host:8000/a/b%20c.nii.gz"
    assert str(file.parent) == "https://host:8000/a"
    assert "pass" not in repr(file)
    assert pickle.loads(pickle.dumps(file)) == file


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("s3://key:secret@bucket/a.nii: gone", "s3://bucket/a.nii: gone"),
        ('{"a": "https://h/x?sig=1", "b": 2}', '{"a": "https://h/x", "b": 2}'),
        ("what? me@host C:/a?b", "what? me@host C:/a?b"),
    ],
)
def test_secrets_leave_a_text(text: str, wanted: str) -> None:
    assert without_secrets(text) == wanted


def test_an_object_is_copied_once(put: Put, tmp_path: Path) -> None:
    url = put(b"voxels", "a/scan.nii")
    with local(url) as path:
        assert (path.name, path.read_bytes()) == ("scan.nii", b"voxels")
    first = path.stat().st_ino
    with local(url) as path:
        assert path.stat().st_ino == first
    assert num_copies(tmp_path) == 1


def test_a_changed_object_is_copied_again(put: Put) -> None:
    url = put(b"before", "scan.nii")
    assert read(url) == b"before"
    put(b"behind", "scan.nii")
    assert read(url) == b"behind"


def test_a_folder_is_copied_whole(put: Put) -> None:
    for name in ("1.dcm", "deep/2.dcm", ".hidden"):
        url = put(name.encode(), f"series/{name}").removesuffix(f"/{name}")
    put(b"", "series-2/3.dcm")
    with local(f"{url}/") as path:
        assert path.name == "series"
        assert {file.relative_to(path).as_posix() for file in path.rglob("*.*")} == {"1.dcm", "deep/2.dcm"}
    assert Remote(url).is_dir()
    assert Remote(f"{url}/1.dcm").is_file()


@pytest.mark.parametrize("data", ["ElementDataFile = scan.raw", "ElementDataFile = LIST\nscan.raw"])
def test_files_that_a_header_names_come_with_it(data: str, put: Put) -> None:
    put(b"voxels", "ct/scan.raw")
    with local(put(data.encode(), "ct/scan.mhd")) as path:
        assert path.with_name("scan.raw").read_bytes() == b"voxels"
    before = Remote(f"s3://{BUCKET}/ct/scan.mhd").stats()
    put(b"others", "ct/scan.raw")
    assert Remote(f"s3://{BUCKET}/ct/scan.mhd").exists()
    assert Remote(f"s3://{BUCKET}/ct/scan.mhd").stats() != before


def test_a_header_without_its_data(put: Put) -> None:
    header = Remote(put(b"ElementDataFile = none.raw", "ct/scan.mhd"))
    assert [name for name, *_ in header.stats()] == ["scan.mhd"]
    assert header.exists()


def test_a_pattern_at_a_web_server(web: WebServer, tmp_path: Path) -> None:
    (tmp_path / "web" / "scan.mhd").write_text("ElementDataFile = slice%d.raw 1 2 1")
    with pytest.raises(ScanError, match="no folders that can be listed"):
        read(f"{web.url}/scan.mhd")


def test_answers_are_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "_MAX_KNOWN", 4)
    answers = place._Answers()
    one: Any = None
    for url, num in (("a", 2), ("b", 1), ("a", 1), ("c", 3), ("d", 9)):
        answers.put(url, [one] * num)
    assert [url for url in "abcd" if answers.get(url)] == ["d"]
    answers.put("e", [one])
    answers.put("f", [one])
    assert [url for url in "def" if answers.get(url)] == ["e", "f"]


def test_files_that_a_header_names_by_a_pattern(put: Put) -> None:
    for name in ("slice1.raw", "slice2.raw", "other.raw"):
        put(name.encode(), f"ct/{name}")
    with local(put(b"ElementDataFile = slice%d.raw 1 2 1", "ct/scan.mhd")) as path:
        assert sorted(file.name for file in path.parent.iterdir()) == ["scan.mhd", "slice1.raw", "slice2.raw"]


def test_the_folder_of_a_mirax_slide_comes_with_it(put: Put) -> None:
    put(b"index", "slides/a/Index.dat")
    with local(put(b"", "slides/a.mrxs")) as path:
        assert (path.parent / "a" / "Index.dat").read_bytes() == b"index"


@pytest.mark.parametrize("name", ["../scan.raw", "deep/../scan.raw"])
def test_a_name_that_leaves_the_copy_is_refused(name: str, put: Put) -> None:
    put(b"", "scan.raw")
    put(b"", "ct/scan.raw")
    with pytest.raises(ScanError, match="rename it"):
        read(put(f"ElementDataFile = {name}".encode(), "ct/scan.mhd"))


def test_missing_object_and_bucket(put: Put) -> None:
    put(b"", "a")
    for url in (f"s3://{BUCKET}/b.nii", "s3://no-such-bucket/a.nii"):
        assert not Remote(url).exists()
        with pytest.raises(MissingError, match=f"{url}: no such object"):
            read(url)


def test_missing_file_of_a_web_server(web: WebServer) -> None:
    assert not Remote(f"{web.url}/a.png").exists()
    with pytest.raises(MissingError, match="no such object"):
        read(f"{web.url}/a.png")
    with pytest.raises(ScanError, match="no folders"):
        read(f"{web.url}/folder/")


@pytest.fixture
def guarded_s3(put: Put, s3_port: int) -> Any:
    """The S3 server checks credentials, of which it knows none."""

    def check_after(count: bytes) -> None:
        reset = f"http://127.0.0.1:{s3_port}/moto-api/reset-auth"
        urllib.request.urlopen(urllib.request.Request(reset, count, {"Content-Type": "text/plain"})).close()

    url = put(b"voxels", "scan.nii")
    check_after(b"0")
    yield url
    check_after(b"inf")


def test_wrong_credentials(guarded_s3: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "fsspec")
    with pytest.raises(ScanError, match="access denied; check the credentials") as raised:
        read(guarded_s3)
    assert "secret" not in f"{raised.value}{caplog.text}"
    with pytest.raises(ScanError, match="access denied"):
        Remote(guarded_s3).exists()


def test_no_credentials(put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = put(b"", "a.nii")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(ScanError, match=r"no credentials: set .* FSSPEC_S3_ANON"):
        read(url)


@pytest.mark.parametrize("status", [401, 403])
def test_a_web_server_that_denies(status: int, web: WebServer) -> None:
    web.status = status
    with pytest.raises(ScanError, match="access denied"):
        read(f"{web.url}/a.png")


def test_a_web_server_that_refuses(web: WebServer) -> None:
    web.status = 400
    with pytest.raises(ScanError, match="HTTP 400"):
        read(f"{web.url}/a.png")


def test_a_server_that_fails_is_asked_again_but_not_for_ever(web: WebServer) -> None:
    web.status = 503
    with pytest.raises(ScanError, match=rf"HTTP 503, {TRIES} times; check the network"):
        read(f"{web.url}/a.png")
    assert len(web.requests) == 2 * TRIES  # HEAD and GET


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(ScanError, match=f"{TRIES} times; check the network"):
        read("http://127.0.0.1:9/a.png")


def test_connections_that_break(web: WebServer, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4000
    (tmp_path / "web" / "a.nii").write_bytes(content)
    web.cut = TRIES - 1
    assert read(f"{web.url}/a.nii") == content
    assert web.num("GET") == TRIES


def test_a_copy_that_breaks_off_every_time_is_never_used(web: WebServer, tmp_path: Path) -> None:
    (tmp_path / "web" / "a.nii").write_bytes(bytes(100_000))
    web.cut = 100
    with pytest.raises(ScanError, match=f"{TRIES} times"):
        read(f"{web.url}/a.nii")
    assert num_copies(tmp_path) == 0
    web.cut = 0
    assert read(f"{web.url}/a.nii") == bytes(100_000)


def test_every_third_request_fails(put: Put, s3_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {put(bytes([k]) * 50_000, f"{k}.nii"): bytes([k]) * 50_000 for k in range(20)}
    with serving(Proxy(s3_port, every=3)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        assert {url: read(url) for url in contents} == contents
        assert proxy.spoiled > 10


def test_other_bytes_of_the_right_number_are_not_used(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    def get_file(self: Any, path: str, file: str) -> None:
        Path(file).write_bytes(b"VOXELS")

    monkeypatch.setattr(s3fs.S3FileSystem, "get_file", get_file)
    with pytest.raises(ScanError, match="checksum differs"):
        read(put(b"voxels", "a.nii"))


def test_an_object_that_changes_while_it_is_read(web: WebServer, tmp_path: Path) -> None:
    file = tmp_path / "web" / "a.nii"
    file.write_bytes(b"before")
    old = Remote(f"{web.url}/a.nii").files()[0]
    file.write_bytes(b"later on")
    with pytest.raises(ScanError, match="changed while it was read"):
        download(old.place.url, tmp_path / "copy", old.info)


def test_secrets_of_a_web_address_are_used_but_never_shown(
    web: WebServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "web" / "a.nii").write_bytes(b"voxels")
    caplog.set_level(logging.DEBUG)
    url = f"{web.url}/a.nii?signature=s3cret".replace("//", "//jo:pa55@")
    assert read(url) == b"voxels"
    assert ("GET", "/a.nii?signature=s3cret") in web.requests
    web.status = 503
    with pytest.raises(ScanError) as raised:
        read(url)
    shown = "".join([str(raised.value), repr(raised.value), *map(str, raised.value.args), caplog.text])
    assert not {"s3cret", "pa55"} & {word for word in ("s3cret", "pa55") if word in shown}
    assert "a.nii" in shown


def test_another_signature_is_the_same_image_where_it_has_a_version(web: WebServer, tmp_path: Path) -> None:
    (tmp_path / "web" / "a.nii").write_bytes(b"voxels")
    for signature in "ab":
        assert read(f"{web.url}/a.nii?signature={signature}") == b"voxels"
    assert num_copies(tmp_path) == 1


def test_contents_are_compared_without_copies(put: Put, web: WebServer, tmp_path: Path) -> None:
    file = tmp_path / "web" / "a.nii"
    file.write_bytes(bytes(range(256)) * 1000)
    (tmp_path / "scratch").mkdir()
    for url in (put(file, "a.nii"), f"{web.url}/a.nii"):  # with ranges, and without
        assert content_hash(Remote(url)) == content_hash(file)
        assert read_start(Remote(url), 5) == (b"\0\1\2\3\4", 256_000)
    assert num_copies(tmp_path) == 0


def test_files_are_written_whole_and_removed(put: Put) -> None:
    table = Remote(put(b"old", "a.csv"))
    with pytest.raises(RuntimeError), whole_write(table) as part:  # noqa: PT012
        part.write_bytes(b"half")
        raise RuntimeError
    assert read(table) == b"old"
    with whole_write(table) as part:
        part.write_bytes(b"new")
    assert read(table) == b"new"
    for _ in range(2):
        unlink(table)
    assert not table.exists()


def test_two_processes_copy_an_object_once(web: WebServer, tmp_path: Path) -> None:
    (tmp_path / "web" / "a.nii").write_bytes(bytes(10**6))
    code = (
        "import sys\nfrom monai_pipelines.remote import local\n"
        "with local(sys.argv[1]) as path:\n    print(len(path.read_bytes()))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, f"{web.url}/a.nii"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [json.loads(one.communicate()[0]) for one in running] == [10**6] * 3
    assert web.num("GET") == 1


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, url, way_out in (
        ("s3fs", "s3://b/a", "monai_pipelines"),
        ("aiohttp", "https://h/a", "monai_pipelines"),
        ("gcsfs", "gs://b/a", "gcsfs"),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=rf"{package}: pip install .?{way_out}"):
            read(url)
    with pytest.raises(ScanError, match="abc:// is not known"):
        read("abc://b/a")
