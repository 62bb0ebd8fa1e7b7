"""Downloads against a server that misbehaves in every way a real one has been seen to."""

import hashlib
import os
import random
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from loopback import CLEAN, Handler, Site

from mcn.errors import MCNError
from mcn.preparation import _space
from mcn.preparation.download import Patience, RemoteFile, download, fetch_all

pytest.importorskip("requests")

BODY = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
SHA = hashlib.sha256(BODY).hexdigest()
QUICK = Patience(tries=3, pause=0.01, timeout=5.0)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Site]]:
    for name in set(os.environ) - set(CLEAN):
        monkeypatch.delenv(name)
    servers = []

    def start(certificate: Path | None = None, **behaviour: object) -> Site:
        site = Site(**{"body": BODY, **behaviour})  # type: ignore[arg-type]
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("H", (Handler,), {"site": site}))
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        site.url = f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}/pub/clips.rar"
        return site

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def get(site: Site, folder: Path, **known: object) -> Path:
    path = folder / "clips.rar"
    return download(site.url, path, progress=False, patience=QUICK, **known)  # type: ignore[arg-type]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


WHOLE = ["SHA256SUMS", "clips.rar"]


def test_a_file_arrives_whole_with_its_checksum(serve: Callable[..., Site], tmp_path: Path) -> None:
    path = get(serve(), tmp_path / "new", size=len(BODY), sha256=SHA)
    assert path.read_bytes() == BODY
    assert names(path.parent) == WHOLE
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=path.parent, check=True)


def test_a_whole_file_is_left_alone(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve()
    path = get(site, tmp_path)
    before = path.stat()
    site.asked.clear()
    for known in ({}, {"size": len(BODY)}, {"sha256": SHA.upper()}):
        get(site, tmp_path, **known)
    assert site.asked == []  # its checksum is known: nobody needs to be asked
    (tmp_path / "SHA256SUMS").unlink()
    get(site, tmp_path)  # as one that came by browser
    assert [method for method, _, _ in site.asked] == ["HEAD"]
    assert path.stat() == before
    assert (tmp_path / "SHA256SUMS").read_text() == f"{SHA}  clips.rar\n"


@pytest.mark.parametrize("tag", ["etag", "date", "nothing"])
def test_a_cut_connection_is_continued(tag: str, serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(cuts=[150_000, 100_000])
    site.etag = {"etag": '"one"', "date": 'W/"weak"', "nothing": ""}[tag]
    site.date = "" if tag == "nothing" else site.date
    assert get(site, tmp_path).read_bytes() == BODY
    assert site.gets == ["", "bytes=150000-", "bytes=250000-"]
    assert site.conditions == [{"etag": '"one"', "date": site.date, "nothing": ""}[tag]] * 2
    assert names(tmp_path) == WHOLE


def test_progress_gives_new_tries(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(cuts=[20_000] * 14)  # many more cuts than tries
    assert get(site, tmp_path).read_bytes() == BODY
    assert len(site.gets) == 15


def test_without_progress_it_ends_and_can_be_continued(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(cuts=[100_000] + [0] * 4)
    with pytest.raises(MCNError, match=r"100000 bytes came, 4 further tries .* run again later") as stopped:
        get(site, tmp_path)
    assert "\n" not in str(stopped.value)
    assert names(tmp_path) == ["clips.rar.partial", "clips.rar.partial.json"]
    assert get(site, tmp_path).read_bytes() == BODY
    assert site.gets[-1] == "bytes=100000-"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_changed_remote_file_is_never_mixed_in(
    ranges: bool, serve: Callable[..., Site], tmp_path: Path
) -> None:
    site = serve(cuts=[100_000, 0, 0, 0, 0])
    with pytest.raises(MCNError, match="further tries"):
        get(site, tmp_path)
    site.body, site.etag, site.ranges = OTHER, '"two"', ranges
    assert get(site, tmp_path).read_bytes() == OTHER


def test_a_server_that_ignores_if_range_is_found_out(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(cuts=[100_000, 0, 0, 0, 0])
    with pytest.raises(MCNError, match="further tries"):
        get(site, tmp_path)
    site.body, site.etag = OTHER, '"two"'  # the date stays valid, as in a server that does not compare
    note = tmp_path / "clips.rar.partial.json"
    note.write_text(note.read_text().replace('\\"one\\"', site.date))
    assert get(site, tmp_path).read_bytes() == OTHER


def test_a_part_longer_than_the_file_starts_anew(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(cuts=[250_000, 0, 0, 0, 0])
    with pytest.raises(MCNError, match="further tries"):
        get(site, tmp_path)
    site.body, site.etag = BODY[:1000], ""
    note = tmp_path / "clips.rar.partial.json"
    note.write_text(note.read_text().replace('\\"one\\"', ""))
    assert get(site, tmp_path).read_bytes() == BODY[:1000]  # 416, then all


def test_a_part_from_another_address_is_not_continued(serve: Callable[..., Site], tmp_path: Path) -> None:
    with pytest.raises(MCNError, match="further tries"):
        get(serve(body=OTHER, cuts=[100_000, 0, 0, 0, 0]), tmp_path)
    site = serve()
    assert get(site, tmp_path).read_bytes() == BODY
    assert site.gets == [""]


@pytest.mark.parametrize("note", [None, b"", b"{", b"[1]", b'{"colour": 1}'])
def test_a_part_of_unknown_origin_is_not_believed(
    note: bytes | None, serve: Callable[..., Site], tmp_path: Path
) -> None:
    (tmp_path / "clips.rar.partial").write_bytes(OTHER[:100_000])
    if note is not None:
        (tmp_path / "clips.rar.partial.json").write_bytes(note)
    assert get(serve(), tmp_path).read_bytes() == BODY
    assert names(tmp_path) == WHOLE


def test_a_server_without_ranges_is_asked_for_all(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(ranges=False, cuts=[100_000, 200_000])
    assert get(site, tmp_path).read_bytes() == BODY
    # One that always breaks off at the same place never ends: that is no progress.
    (tmp_path / "clips.rar").unlink()
    site.cuts = [100_000] * 50
    with pytest.raises(MCNError, match="100000 bytes came, 4 further tries"):
        get(site, tmp_path)
    assert len(site.cuts) == 45


def test_a_stream_of_unknown_length(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(chunked=True, cuts=[100_000])
    assert get(site, tmp_path, sha256=SHA).read_bytes() == BODY
    assert site.gets == ["", ""]  # not continued: nothing tells that it is the same


def test_a_length_that_lies(serve: Callable[..., Site], tmp_path: Path) -> None:
    with pytest.raises(MCNError, match="300000 bytes came, 4 further tries"):
        get(serve(length=400_000), tmp_path / "long")
    with pytest.raises(MCNError, match="the server has 200000 bytes, 300000 are expected"):
        get(serve(length=200_000), tmp_path / "short", size=len(BODY))
    assert names(tmp_path / "short") == []  # refused before the first byte
    with pytest.raises(MCNError, match=r"clips\.rar: its SHA-256 is .* published one"):
        get(serve(length=200_000), tmp_path / "sum", sha256=SHA)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_waited_for(status: int, serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(statuses=[(status, {"Retry-After": "0"}), (status, {}), (status, {"Retry-After": "soon"})])
    assert get(site, tmp_path).read_bytes() == BODY
    site.statuses = [(status, {"Retry-After": "0"})] * 9
    with pytest.raises(MCNError, match=rf"HTTP {status} .*busy, try again later") as refused:
        get(site, tmp_path / "other")
    assert len(site.statuses) == 5  # one try and three more
    assert "\n" not in str(refused.value)


def test_what_a_server_says_of_waiting_is_kept_to_and_bounded(
    serve: Callable[..., Site],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    get(serve(statuses=[(429, {"Retry-After": "7"}), (503, {"Retry-After": "86400"})]), tmp_path)
    assert [seconds for seconds in slept if seconds] == [7, 120]
    # Nobody should wonder why a bar stands still.
    assert capsys.readouterr().err.splitlines() == [
        "/pub/clips.rar: the server is busy (HTTP 429), asked again in 7 s",
        "/pub/clips.rar: the server is busy (HTTP 503), asked again in 120 s",
    ]
    patience = Patience(tries=4, pause=1.0, timeout=5.0)
    with pytest.raises(MCNError, match="no answer"):
        download("http://127.0.0.1:9/x.rar", tmp_path / "x.rar", progress=False, patience=patience)
    assert capsys.readouterr().err.splitlines() == [
        "/x.rar: no answer, asked again in 4 s",
        "/x.rar: no answer, asked again in 8 s",
    ]


@pytest.mark.parametrize("status", [401, 403, 404, 410, 418])
def test_a_refusal_is_one_line_with_a_way_out(
    status: int, serve: Callable[..., Site], tmp_path: Path
) -> None:
    site = serve(statuses=[(status, {})])
    with pytest.raises(MCNError, match=rf"clips\.rar: HTTP {status} .*browser.*get --from FOLDER") as refused:
        get(site, tmp_path)
    assert site.url in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(site.gets) == 1
    assert names(tmp_path) == []


def test_a_web_page_is_not_taken_for_the_archive(serve: Callable[..., Site], tmp_path: Path) -> None:
    with pytest.raises(MCNError, match="a web page instead of the file"):
        get(serve(kind="text/html; charset=utf-8"), tmp_path)
    assert names(tmp_path) == []


def test_no_server_at_all(tmp_path: Path, serve: Callable[..., Site]) -> None:
    with pytest.raises(
        MCNError, match=r"no answer \(\[Errno 111\] Connection refused\): check the net"
    ) as no:
        download("http://127.0.0.1:9/x.rar", tmp_path / "x.rar", progress=False, patience=QUICK)
    assert "\n" not in str(no.value)


def test_a_silent_server(serve: Callable[..., Site], tmp_path: Path) -> None:
    site, patience = serve(pause=0.5), Patience(tries=1, pause=0.01, timeout=0.1)
    with pytest.raises(MCNError, match=r"further tries brought no more \(.*timed out"):
        download(site.url, tmp_path / "x", progress=False, patience=patience)


def test_wrong_content_is_kept_aside(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(body=OTHER)
    with pytest.raises(MCNError, match=rf"clips\.rar: its SHA-256 is .*{SHA}.*clips\.rar\.corrupt") as wrong:
        get(site, tmp_path, sha256=SHA)
    assert "\n" not in str(wrong.value)
    assert names(tmp_path) == ["clips.rar.corrupt"]
    site.body = BODY
    assert get(site, tmp_path, sha256=SHA).read_bytes() == BODY


def test_a_second_get_compares_with_the_first(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve()
    path = get(site, tmp_path)  # the publisher states nothing
    path.unlink()
    site.body, site.etag = OTHER, '"two"'
    with pytest.raises(MCNError, match=rf"{SHA} was recorded in SHA256SUMS"):
        get(site, tmp_path)
    (tmp_path / "SHA256SUMS").unlink()
    assert get(site, tmp_path).read_bytes() == OTHER
    path.write_bytes(OTHER[:-1] + b"x")  # one byte rots
    with pytest.raises(MCNError, match="was recorded"):
        get(site, tmp_path)
    assert "clips.rar" not in names(tmp_path)


def test_room_is_asked_for_before_the_first_byte(
    serve: Callable[..., Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=299_999)
    monkeypatch.setattr(_space.shutil, "disk_usage", lambda _: free)
    site = serve()
    with pytest.raises(MCNError, match=r"the rest of clips\.rar will need 0\.0003 GB, 0\.0003 GB are free"):
        get(site, tmp_path)
    assert names(tmp_path) == []
    remotes = [RemoteFile(site.url, "a", 200_000), RemoteFile(site.url, "b")]
    (tmp_path / "new").mkdir()
    with pytest.raises(MCNError, match=r"new: the 2 files need 0\.0005 GB"):
        fetch_all(remotes, tmp_path / "new", progress=False, patience=QUICK)
    assert site.gets == [""]  # the first call's; the second only asked for the size it did not know
    assert site.asked[-1][0] == "HEAD"
    (tmp_path / "new" / "a.partial").write_bytes(bytes(200_000))  # what is there needs no more room
    monkeypatch.setattr(_space.shutil, "disk_usage", lambda _: free._replace(free=300_000))
    assert len(fetch_all([RemoteFile(site.url, "b")], tmp_path / "new", progress=False, patience=QUICK)) == 1


def test_a_full_disk_keeps_the_part(
    serve: Callable[..., Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    site = serve()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(MCNError, match=r"cannot write .*clips\.rar.*: No space left"):
            get(site, tmp_path)
    assert get(site, tmp_path).read_bytes() == BODY


def test_killed_and_started_again(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(pause=0.02)  # 300 kB in 0.6 s
    call = (
        f"from mcn.preparation.download import download; download({site.url!r}, 'clips.rar', progress=False)"
    )
    partial = tmp_path / "clips.rar.partial"
    for least in (1, 100_000, 200_000):
        child = subprocess.Popen([sys.executable, "-c", call], cwd=tmp_path, env=CLEAN)
        while not (partial.exists() and partial.stat().st_size >= least):
            assert child.poll() is None
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert "clips.rar" not in names(tmp_path)
    site.pause = 0
    assert get(site, tmp_path).read_bytes() == BODY
    assert names(tmp_path) == WHOLE
    assert all(wanted.startswith("bytes=") for wanted in site.gets[1:])
    assert site.gets == sorted(site.gets, key=lambda wanted: int(wanted[6:-1] or 0))


def test_killed_before_the_rename(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve()
    get(site, tmp_path)
    for tail in ("", ".json"):
        shutil.copy(tmp_path / "clips.rar", tmp_path / f"clips.rar.partial{tail}")
    (tmp_path / "clips.rar").unlink()
    note = f'{{"url": "{site.url}", "tag": "", "size": {len(BODY)}}}'
    (tmp_path / "clips.rar.partial.json").write_text(note)
    site.asked.clear()
    assert get(site, tmp_path).read_bytes() == BODY
    assert site.asked == []


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("openssl"):
        pytest.skip("makes its certificate with the openssl command, which is not here")
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout key.pem -out cert.pem -subj /CN=mcn"
    alternative = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command.split(), *alternative], cwd=folder, check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_bytes((folder / "key.pem").read_bytes() + (folder / "cert.pem").read_bytes())
    return both


def test_an_untrusted_certificate_is_refused(
    certificate: Path, serve: Callable[..., Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = serve(certificate)
    pattern = r"certificate is not trusted \(self.signed certificate\).*--ca-bundle FILE.*get --from FOLDER"
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", lambda _: pytest.fail("asked again"))
        with pytest.raises(MCNError, match=pattern) as refused:
            get(site, tmp_path)
    assert "\n" not in str(refused.value)
    assert site.asked == []
    assert get(site, tmp_path, ca_bundle=certificate.with_name("cert.pem")).read_bytes() == BODY


def test_a_bundle_that_is_none(certificate: Path, serve: Callable[..., Site], tmp_path: Path) -> None:
    with pytest.raises(MCNError, match=r"no such file: .*none\.pem \(--ca-bundle takes"):
        get(serve(certificate), tmp_path, ca_bundle=tmp_path / "none.pem")
    (tmp_path / "bad.pem").write_text("no certificate\n")
    with pytest.raises(MCNError, match=r"clips\.rar: "):
        get(serve(certificate), tmp_path, ca_bundle=tmp_path / "bad.pem")


def test_without_requests_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "requests", None)
    with pytest.raises(MCNError, match=r'downloads need requests: pip install "mcn\[data\]"'):
        download("http://127.0.0.1:9/x", tmp_path / "x", progress=False)
    (tmp_path / "x").write_bytes(BODY)  # a file that is here needs no library to be checked
    assert download("http://127.0.0.1:9/x", tmp_path / "x", sha256=SHA, progress=False).exists()


# --- several files, and archives that are already on the disk


def two(site: Site) -> list[RemoteFile]:
    return [
        RemoteFile(site.url, "clips.rar", len(BODY), SHA),
        RemoteFile(site.url.replace("clips.rar", "lists.zip"), "lists/lists.zip"),
    ]


def test_all_files_go_where_they_belong(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(head=405)  # some servers do not answer HEAD: the size is then learnt with the file
    paths = fetch_all(two(site), tmp_path, progress=False, patience=QUICK)
    assert paths == [tmp_path / "clips.rar", tmp_path / "lists" / "lists.zip"]
    assert all(path.read_bytes() == BODY for path in paths)
    asked = len(site.asked)
    assert fetch_all(two(site), tmp_path, progress=False, patience=QUICK) == paths
    assert len(site.asked) == asked
    with pytest.raises(MCNError, match=r"lists\.zip: HTTP 404"):
        fetch_all(two(serve(head=404)), tmp_path / "other", progress=False, patience=QUICK)


@pytest.mark.parametrize("links", [True, False])
def test_files_that_are_here_are_linked_or_copied(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder, nowhere = (
        tmp_path / "source",
        tmp_path / "folder",
        Site(url="http://127.0.0.1:9/clips.rar"),
    )
    source.mkdir()
    (source / "lists.zip").write_bytes(OTHER)
    (source / "real").write_bytes(BODY)
    (source / "clips.rar").symlink_to("real")
    before = {path.name: (path.read_bytes(), path.lstat().st_mtime_ns) for path in source.iterdir()}
    if not links:
        monkeypatch.setattr(
            os, "link", lambda *_: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link"))
        )
    for _ in range(2):
        clips, lists = fetch_all(two(nowhere), folder, source=source, progress=False, patience=QUICK)
        assert (clips.read_bytes(), lists.read_bytes()) == (BODY, OTHER)
        assert not clips.is_symlink()  # it stays when the source goes
    assert clips.samefile(source / "real") is links
    assert before == {path.name: (path.read_bytes(), path.lstat().st_mtime_ns) for path in source.iterdir()}
    assert names(folder) == ["SHA256SUMS", "clips.rar", "lists"]


def test_what_the_source_lacks_is_downloaded(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve()
    (tmp_path / "clips.rar").write_bytes(BODY)
    fetch_all(two(site), tmp_path / "a", source=tmp_path / "clips.rar", progress=False, patience=QUICK)
    assert [path for _, path, _ in site.asked] == ["/pub/lists.zip"] * 2
    assert names(tmp_path / "a") == ["SHA256SUMS", "clips.rar", "lists"]


def test_a_wrong_source_is_named_and_left_alone(tmp_path: Path) -> None:
    remotes = two(Site(url="http://127.0.0.1:9/clips.rar"))
    with pytest.raises(MCNError, match=r"no such folder or file: .*none"):
        fetch_all(remotes, tmp_path / "a", source=tmp_path / "none", progress=False)
    with pytest.raises(MCNError, match=r"none of the files looked for \(clips\.rar, lists\.zip\)"):
        fetch_all(remotes, tmp_path / "a", source=tmp_path, progress=False)
    for content, fault in ((BODY[:-1], "it has 299999 bytes, 300000"), (OTHER, "its SHA-256 is")):
        (tmp_path / "clips.rar").write_bytes(content)
        with pytest.raises(MCNError, match=rf"{tmp_path}/clips\.rar: {fault}.*fetch it again from http"):
            fetch_all(remotes, tmp_path / "a", source=tmp_path, progress=False)
        assert names(tmp_path) == ["clips.rar"]


def test_the_bar_counts_bytes(
    serve: Callable[..., Site], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    download(serve(cuts=[100_000]).url, tmp_path / "clips.rar", patience=QUICK)
    shown = capsys.readouterr().err
    assert "clips.rar: 100%" in shown
    assert "300k/300k" in shown
