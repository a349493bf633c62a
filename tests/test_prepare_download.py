"""Files are fetched once and whole, and strangers' archives stay where they belong."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import zipfile

import pytest
from file_server import FileServer, member, send_google_here, tar_with

from datasets import download
from datasets.download import DownloadError, fetch, fetch_member
from datasets.unpack import UnpackError, unpack, unpack_nested

CONTENT = b"\x1f\x8b" + bytes(range(256)) * 40
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0)
    monkeypatch.setattr(download, "CHUNK", 1000)
    served = FileServer()
    send_google_here(monkeypatch, served)
    yield served
    served.close()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "x.tgz"


def left_beside(path) -> list[str]:
    return sorted(item.name for item in path.parent.iterdir() if item != path)


# HTTP


def test_file_is_fetched_once(server, target):
    server.files["/x"] = CONTENT
    assert fetch([f"{server.url}/x"], target, MD5).read_bytes() == CONTENT
    fetch([f"{server.url}/x"], target, MD5)
    assert server.asked("/x") == [""] and left_beside(target) == []


def test_cut_download_is_continued_in_the_same_call(server, target):
    server.files["/x"], server.cuts["/x"] = CONTENT, [1500, 0, 3000]
    assert fetch([f"{server.url}/x"], target, MD5).read_bytes() == CONTENT
    assert server.asked("/x") == ["", "bytes=1500-", "bytes=1500-", "bytes=4500-"]


def test_half_finished_download_is_continued_by_the_next_call(server, target):
    server.files["/x"], server.cuts["/x"] = CONTENT, [2500] + [0] * 20
    with pytest.raises(DownloadError, match="cut after 2,500 bytes; 5 tries"):
        fetch([f"{server.url}/x"], target, MD5)
    assert not target.exists() and (target.parent / "x.tgz.part").stat().st_size == 2500
    server.cuts, server.log = {}, []
    assert fetch([f"{server.url}/x"], target, MD5).read_bytes() == CONTENT
    assert server.asked("/x") == ["bytes=2500-"]


def test_file_that_changed_or_cannot_be_continued_begins_anew(server, target):
    server.files["/x"], server.cuts["/x"] = b"\x1f\x8bolder" * 900, [2500] + [0] * 20
    with pytest.raises(DownloadError):
        fetch([f"{server.url}/x"], target)
    server.files["/x"], server.cuts["/x"] = CONTENT, [2000]  # another version, cut once
    server.without_range.add("/x")
    assert fetch([f"{server.url}/x"], target, MD5).read_bytes() == CONTENT


def test_longer_begun_file_is_not_taken_for_the_whole(server, target):
    server.files["/x"], server.cuts["/x"] = CONTENT + CONTENT, [len(CONTENT) + 5] + [0] * 20
    with pytest.raises(DownloadError):
        fetch([f"{server.url}/x"], target)
    server.files["/x"], server.cuts = CONTENT, {}
    assert fetch([f"{server.url}/x"], target, MD5).read_bytes() == CONTENT


def test_complete_part_is_recognised(server, target):
    server.files["/x"] = CONTENT
    server.cuts["/x"] = [len(CONTENT) - 1] + [0] * 20
    with pytest.raises(DownloadError):
        fetch([f"{server.url}/x"], target)
    with (target.parent / "x.tgz.part").open("ab") as file:  # killed before it was renamed
        file.write(CONTENT[-1:])
    assert fetch([f"{server.url}/x"], target, MD5).read_bytes() == CONTENT
    assert server.log[-1][1] == f"bytes={len(CONTENT)}-"


def test_mirrors_are_tried_in_order_and_a_begun_file_of_another_is_dropped(server, target):
    server.status["/dead"] = 404
    server.files["/half"], server.cuts["/half"] = b"\x1f\x8bother" * 500, [700] + [0] * 20
    server.files["/x"] = CONTENT
    urls = [f"{server.url}/{name}" for name in ("dead", "half", "x")]
    assert fetch(urls, target, MD5).read_bytes() == CONTENT
    assert [path for path, _ in server.log if path != "/half"] == ["/dead", "/x"]
    assert server.asked("/x") == [""]


def test_all_dead_addresses_are_told(server, target):
    server.status["/gone"], server.status["/busy"] = 410, 503
    with pytest.raises(DownloadError) as refusal:
        fetch([f"{server.url}/gone", f"{server.url}/busy", "http://127.0.0.1:9/x"], target)
    for told in ("x.tgz cannot be had", "/gone: HTTP 410", "/busy: HTTP 503", "127.0.0.1:9/x:"):
        assert told in str(refusal.value)
    assert len(server.asked("/gone")) == 1 and len(server.asked("/busy")) == download.TRIES


def test_wrong_checksum_is_refused_and_the_file_kept_aside(server, target):
    wrong = CONTENT[:-1] + b"!"
    server.files.update({"/wrong": wrong, "/x": CONTENT})
    with pytest.raises(DownloadError, match=f"MD5 [0-9a-f]{{32}} found, {MD5} expected; kept as"):
        fetch([f"{server.url}/wrong"], target, MD5)
    assert not target.exists()
    assert (target.parent / "x.tgz.wrong-1").read_bytes() == wrong
    assert fetch([f"{server.url}/wrong", f"{server.url}/x"], target, MD5).read_bytes() == CONTENT
    assert left_beside(target) == ["x.tgz.wrong-1", "x.tgz.wrong-2"]


def test_wrong_file_put_there_by_hand_is_kept_aside_too(server, target):
    target.write_bytes(b"\x1f\x8bby hand")
    server.files["/x"] = CONTENT
    assert fetch([f"{server.url}/x"], target, MD5).read_bytes() == CONTENT
    assert (target.parent / "x.tgz.wrong-1").read_bytes() == b"\x1f\x8bby hand"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.zip", b"PK but no: <html>", ""),
        ("a.zip", b"<!DOCTYPE html><html>log in</html>", "a web page came"),
        ("a.zip", b"not a zip", "no .zip file"),
        ("a.json", b"<html>", "a web page came"),
        ("a.json", b'{"train": ', "not valid JSON"),
        ("a.mat", b"oops", "no .mat file"),
    ],
)
def test_other_kinds_of_files_are_refused(server, tmp_path, name, content, told):
    server.files["/x"] = content
    if not told:
        assert fetch([f"{server.url}/x"], tmp_path / name).exists()
    else:
        with pytest.raises(DownloadError, match=told):
            fetch([f"{server.url}/x"], tmp_path / name)
        assert (tmp_path / f"{name}.wrong-1").read_bytes() == content


def test_web_page_is_not_even_downloaded(server, target):
    server.pages["/x"] = "<html>please log in</html>"
    with pytest.raises(DownloadError, match="a web page came instead of the file"):
        fetch([f"{server.url}/x"], target)
    assert left_beside(target) == []


def test_full_disk_is_told_before_the_download(server, target, monkeypatch):
    server.files["/x"] = CONTENT
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage())
    with pytest.raises(DownloadError, match="GB are needed, but .* has 0.0 GB free"):
        fetch([f"{server.url}/x"], target)


class Usage:
    free = 10


# Google Drive


def test_drive_file_behind_the_virus_scan_page(server, target):
    server.files["/x.tgz"], server.drive["abc"] = CONTENT, "/x.tgz"
    server.interstitial.add("abc")
    assert fetch(["drive:abc"], target, MD5).read_bytes() == CONTENT
    assert left_beside(target) == []


def test_cut_drive_download_is_continued(server, target):
    content = CONTENT + bytes(1_200_000)  # gdown writes half a megabyte at a time
    server.files["/x.tgz"], server.drive["abc"] = content, "/x.tgz"
    server.cuts["/x.tgz"] = [700_000]
    assert fetch(["drive:abc"], target).read_bytes() == content
    starts = [int(wanted[6:-1]) for wanted in server.asked("/x.tgz") if wanted]
    assert starts and min(starts) > 500_000


def test_drive_quota_leads_to_the_mirror_or_is_told(server, target):
    server.drive["abc"], server.files["/x"] = "", CONTENT
    with pytest.raises(DownloadError, match="id=abc: Google Drive does not hand.*Too many"):
        fetch(["drive:abc"], target)
    assert fetch(["drive:abc", f"{server.url}/x"], target, MD5).read_bytes() == CONTENT


# One file of a remote archive


def test_small_file_is_taken_out_of_a_remote_archive(server, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("eurosat/2750/big.bin", bytes(300_000))
        archive.writestr("eurosat/split.json", '{"train": []}')
    server.files["/whole.zip"] = buffer.getvalue()
    fetch_member(f"{server.url}/whole.zip", "split.json", tmp_path / "split.json")
    assert (tmp_path / "split.json").read_text() == '{"train": []}'
    assert all(server.asked("/whole.zip"))  # parts of it only
    with pytest.raises(DownloadError, match="no other.json in it"):
        fetch_member(f"{server.url}/whole.zip", "other.json", tmp_path / "other.json")
    server.without_range.add("/whole.zip")
    with pytest.raises(DownloadError, match="cannot send a part"):
        fetch_member(f"{server.url}/whole.zip", "split.json", tmp_path / "again.json")


# Unpacking

EVIL = {
    "absolute": [("/etc/evil", b"x")],
    "climbing": [("a/../../evil", b"x")],
    "windows": [("..\\evil", b"x")],
    "symlink out": [member("a", tarfile.SYMTYPE, "../../evil")],
    "absolute symlink": [member("a", tarfile.SYMTYPE, "/etc/passwd")],
    "hard link out": [member("a", tarfile.LNKTYPE, "../evil")],
    "link to a folder, then through it": [
        member("a", tarfile.SYMTYPE, "."),
        member("b", tarfile.SYMTYPE, "a/.."),
        ("b/evil", b"x"),
    ],
    "device": [member("a", tarfile.CHRTYPE)],
    "pipe": [member("a", tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("kind", EVIL)
def test_malicious_tar_members_are_refused_and_nothing_stays(tmp_path, kind):
    archive = tmp_path / "in" / "evil.tgz"
    archive.parent.mkdir()
    archive.write_bytes(tar_with(("good.txt", b"good"), *EVIL[kind]))
    with pytest.raises(UnpackError, match="evil.tgz is refused: .* Nothing of it is used."):
        unpack(archive, tmp_path / "in" / "out", 10**6)
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["in", "in/evil.tgz"]


def test_links_inside_become_plain_files(tmp_path):
    archive = tmp_path / "x.tgz"
    later = member("first/link.jpg", tarfile.SYMTYPE, "../second/a.jpg")
    hard = member("copy.jpg", tarfile.LNKTYPE, "second/a.jpg")
    archive.write_bytes(tar_with(later, ("second/a.jpg", b"pixels"), hard))
    unpack(archive, tmp_path / "out", 100)
    for name in ("first/link.jpg", "copy.jpg"):
        path = tmp_path / "out" / name
        assert path.read_bytes() == b"pixels" and not path.is_symlink()


def test_modes_and_system_clutter_are_left_out(tmp_path):
    setuid = tarfile.TarInfo("run")
    setuid.mode = 0o4777
    archive = tmp_path / "x.tgz"
    archive.write_bytes(tar_with(setuid, ("__MACOSX/x", b""), ("a/._b.jpg", b""), ("a/b", b"")))
    unpack(archive, tmp_path / "out", 100)
    assert (tmp_path / "out/run").stat().st_mode & 0o7111 == 0
    names = sorted(path.name for path in (tmp_path / "out").rglob("*"))
    assert names == ["a", "b", "run"]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_bombs_stop_at_the_limit(tmp_path, kind):
    if kind == "tar":
        archive = tmp_path / "x.tgz"
        archive.write_bytes(tar_with(("zeros", bytes(3_000_000))))
    else:
        archive = tmp_path / "x.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("zeros", bytes(3_000_000))
    with pytest.raises(UnpackError, match="unpacks to more than 2,000,000 bytes"):
        unpack(archive, tmp_path / "out", 2_000_000)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["/evil", "../evil", "link"])
def test_malicious_zip_members_are_refused(tmp_path, name):
    info = zipfile.ZipInfo(name)
    if name == "link":
        info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr(info, "/etc/passwd")
    with pytest.raises(UnpackError, match="lies outside|is a link"):
        unpack(tmp_path / "x.zip", tmp_path / "out", 100)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["x.tgz", "x.zip", "x.tar"])
def test_damaged_archive_is_named(tmp_path, name):
    if name == "x.zip":
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            file.writestr("a", b"pixels" * 500)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:50] + b"!!" + content[52:])
    else:
        whole = tar_with(("a", os.urandom(3000)))
        if name == "x.tar":
            import gzip

            whole = gzip.decompress(whole)
        (tmp_path / name).write_bytes(whole[:1500])
    with pytest.raises(UnpackError, match=f"{name} is damaged .* Delete it and run"):
        unpack(tmp_path / name, tmp_path / "out", 10**6)
    assert not (tmp_path / "out").exists()


def test_tar_of_tars_is_unpacked_by_class_and_bounded(tmp_path):
    import gzip

    inner = gzip.decompress(tar_with(("n1_1.JPEG", b"pixels")))
    evil = gzip.decompress(tar_with(("../n1_1.JPEG", b"pixels")))
    archive = tmp_path / "train.tar"
    archive.write_bytes(gzip.decompress(tar_with(("n1.tar", inner), ("n2.tar", inner))))
    unpack_nested(archive, tmp_path / "out", 100)
    assert (tmp_path / "out/n2/n1_1.JPEG").read_bytes() == b"pixels"
    with pytest.raises(UnpackError, match="more than"):
        unpack_nested(archive, tmp_path / "out", 10)
    archive.write_bytes(gzip.decompress(tar_with(("n1.tar", evil))))
    with pytest.raises(UnpackError, match="outside the target"):
        unpack_nested(archive, tmp_path / "out", 100)
    assert not (tmp_path / "out").exists()
