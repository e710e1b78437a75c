"""Archives: unpacked whole or not at all, and never outside their folder."""

import hashlib
import io
import stat
import tarfile
import zipfile

import pytest

from rsmamba.data.archives import extract
from rsmamba.errors import ArchiveError, DataNotFoundError, OutputNotWritableError

FILES = {"set/a/1.txt": b"one", "set/b/2.txt": b"two" * 5000}


def make_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in files.items():
            out.writestr(name, content)
    return path


def make_tar(path, files, mode="w:gz", extra=()):
    with tarfile.open(path, mode) as out:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
        for member in extra:
            out.addfile(member)
    return path


def link(name, target, kind=tarfile.SYMTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def tree(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture
def to(tmp_path):
    return tmp_path / "to"


@pytest.mark.parametrize("mode", ["zip", "w", "w:gz", "w:bz2", "w:xz"])
def test_every_kind_is_unpacked_whatever_its_name(tmp_path, to, mode):
    path = tmp_path / "archive"
    make_zip(path, FILES) if mode == "zip" else make_tar(path, FILES, mode)
    assert extract(path, to) == to
    assert tree(to) == FILES
    assert [p.name for p in to.iterdir()] == ["set"]


def test_a_second_archive_fills_the_folders_of_the_first(tmp_path, to):
    extract(make_zip(tmp_path / "1.zip", FILES), to)
    extract(make_zip(tmp_path / "2.zip", {"set/a/3.txt": b"3", "set/a/1.txt": b"new"}), to)
    assert tree(to) == {**FILES, "set/a/3.txt": b"3", "set/a/1.txt": b"new"}


def test_separators_of_windows_are_understood_and_resource_forks_left_out(tmp_path, to):
    files = {"set\\a\\1.txt": b"one", "__MACOSX/set/a/._1.txt": b"fork"}
    extract(make_zip(tmp_path / "a.zip", files), to)
    assert tree(to) == {"set/a/1.txt": b"one"}


@pytest.mark.parametrize(
    "name", ["../evil.txt", "set/../../evil.txt", "/evil.txt", "set\\..\\..\\evil.txt", "C:/evil"]
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_member_that_leads_out_is_refused_and_nothing_is_left(tmp_path, to, name, kind):
    files = {**FILES, name: b"evil"}
    path = tmp_path / f"set.{kind}"
    make_zip(path, files) if kind == "zip" else make_tar(path, files)
    with pytest.raises(ArchiveError, match=rf"set\.{kind}.*evil") as caught:
        extract(path, to)
    assert "\n" not in str(caught.value)
    assert list(to.iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, "to"]


def zip_with_link(path):
    member = zipfile.ZipInfo("set/link")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as out:
        out.writestr(member, "/etc")
    return path


@pytest.mark.parametrize(
    "build",
    [
        zip_with_link,
        lambda p: make_tar(p, FILES, extra=[link("set/link", "../..")]),
        lambda p: make_tar(p, FILES, extra=[link("set/link", "../../secret", tarfile.LNKTYPE)]),
        lambda p: make_tar(p, FILES, extra=[link("set/link", "", tarfile.FIFOTYPE)]),
    ],
)
def test_links_and_devices_are_refused(tmp_path, to, build):
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(ArchiveError, match=r"archive.*set/link"):
        extract(build(tmp_path / "archive"), to)
    assert list(to.iterdir()) == []


@pytest.mark.parametrize("mode", ["zip", "w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.97])
def test_a_truncated_archive_is_named_with_the_remedy(tmp_path, to, mode, share):
    path = tmp_path / "cut"
    many = {f"set/{i}.bin": hashlib.sha512(bytes([i])).digest() * 16 for i in range(40)}
    make_zip(path, many) if mode == "zip" else make_tar(path, many, mode)
    content = path.read_bytes()
    # Uncompressed tar is padded with zeros; what counts is that a file of it is lost.
    size = len(content.rstrip(b"\0")) if mode == "w" else len(content)
    path.write_bytes(content[: int(size * share)])
    with pytest.raises(ArchiveError, match=r"cut: cannot be unpacked.*download it again"):
        extract(path, to)
    assert list(to.iterdir()) == []


def test_a_tar_that_ends_between_two_files_counts_as_truncated(tmp_path, to):
    path = make_tar(tmp_path / "cut.tar", {"a": b"1" * 512, "b": b"2" * 512}, "w")
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(ArchiveError, match="unexpected end of data"):
        extract(path, to)
    content = bytearray(make_tar(path, {"a": b"1" * 512, "b": b"2" * 512}, "w").read_bytes())
    content[1024 + 150] ^= 0xFF  # in the checksum of the second header
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=r"cut\.tar"):
        extract(path, to)


def test_a_flipped_bit_is_found(tmp_path, to):
    path = make_zip(tmp_path / "a.zip", FILES)
    content = bytearray(path.read_bytes())
    content[content.index(b"set/a/1.txt") + len("set/a/1.txt") + 1] ^= 8
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=r"a\.zip"):
        extract(path, to)


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_wrong_checksum_is_refused_with_the_remedy(tmp_path, to, algorithm):
    path = make_zip(tmp_path / "a.zip", FILES)
    right = hashlib.new(algorithm, path.read_bytes()).hexdigest()
    with pytest.raises(ArchiveError, match=rf"a\.zip.*{algorithm} is {right}.*checksum=False"):
        extract(path, to, **{algorithm: "0" * len(right)})
    assert not to.exists()
    extract(path, to, **{algorithm: right.upper()})
    assert tree(to) == FILES


def test_missing_and_unwritable_places_are_named(tmp_path, to):
    with pytest.raises(DataNotFoundError, match=r"none\.zip"):
        extract(tmp_path / "none.zip", to)
    path = make_zip(tmp_path / "a.zip", FILES)
    with pytest.raises(OutputNotWritableError, match=r"a\.zip"):
        extract(path, path / "inside")
    to.mkdir()
    (to / "set").write_text("a file")
    with pytest.raises(OutputNotWritableError, match=r"to/set.*in the way"):
        extract(path, to)
    assert tree(to) == {"set": b"a file"}


def test_an_encrypted_zip_is_named(tmp_path, to):
    path = make_zip(tmp_path / "a.zip", {"a": b"1"})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=r"a\.zip: a is encrypted"):
        extract(path, to)
