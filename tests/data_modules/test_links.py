"""Lists of links as Fashion-IQ's are, broken ones, and the file of dead links."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from data_modules.errors import UserError
from data_modules.links import DeadLinks, Link, read_links

ANNOTATIONS = Path(os.environ.get("CIR_ANNOTATIONS") or Path(__file__).parents[3] / "shared" / "annotations") / "fashioniq"
A, B = Link("B00014NGF6", "http://pictures.example/I/a%2Bb._SY445_.jpg"), Link("245600258X", "https://pictures.example/b.jpg")


def test_lines_with_odd_spaces_from_files_and_folders(tmp_path: Path):
    (tmp_path / "asin2url.dress.txt").write_bytes(f"\ufeff{A.picture} \t {A.url}\r\n\r\n".encode())
    (tmp_path / "asin2url.shirt.txt").write_text(f"{B.picture}\t{B.url}\n  {A.picture}   {A.url}  ")
    (tmp_path / "readme.txt").write_text("no list")
    assert read_links([tmp_path]) == [A, B]
    assert read_links([tmp_path / "asin2url.shirt.txt"]) == [B, A]
    assert A.host == "pictures.example"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("B1", "'B1' is not a picture name and a link"),
        ("B1 http://a.example/1 2.jpg", "is not a picture name and a link"),
        ("../../B1 http://a.example/1.jpg", "is not a picture name and a link"),
        ("B1 file:///etc/passwd", "'file:///etc/passwd' is not an http or https link"),
        ("B1 ftp://a.example/1.jpg", "is not an http or https link"),
        ("B0 http://a.example/other.jpg", "picture B0 had another link before"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, words: str):
    file = tmp_path / "asin2url.dress.txt"
    file.write_text(f"B0 http://a.example/0.jpg\n\n{line}\n")
    with pytest.raises(UserError, match=rf"asin2url\.dress\.txt, line 3: .*{words}.*(mend or )?delete") as caught:
        read_links([tmp_path])
    assert "\n" not in str(caught.value)


def test_lists_that_are_missing_or_no_text(tmp_path: Path):
    remedy = "get Fashion-IQ's lists from https://github.com/hongwang600/fashion-iq-metadata, folder image_url, and name them with --links"
    with pytest.raises(UserError, match=rf"cannot read .*nowhere \(No such file or directory\); {remedy}"):
        read_links([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=rf"no file asin2url\.\*\.txt in folder {tmp_path}; {remedy}"):
        read_links([tmp_path])
    (tmp_path / "asin2url.dress.txt").write_text("\n \n")
    with pytest.raises(UserError, match=rf"no links in {tmp_path}; {remedy}"):
        read_links([tmp_path])
    (tmp_path / "asin2url.dress.txt").write_bytes(b"B1 http://a.example/\xff.jpg")
    with pytest.raises(UserError, match=r"asin2url\.dress\.txt is not UTF-8 text \(invalid start byte at byte 20\)"):
        read_links([tmp_path])


def test_dead_links_are_kept_and_forgotten(tmp_path: Path):
    file = tmp_path / "dead_links.tsv"
    dead = DeadLinks(file)
    dead.add({A: "HTTP 404"})
    dead.add({B: "no such host"})
    today = datetime.now(UTC).date()
    rows = [f"{A.picture}\t{A.url}\tHTTP 404\t{today}\n", f"{B.picture}\t{B.url}\tno such host\t{today}\n"]
    assert file.read_text() == "picture\turl\treason\tdate\n" + "".join(rows)
    again = DeadLinks(file)
    assert [again.reason(link) for link in (A, B, Link(A.picture, "http://elsewhere.example/a.jpg"))] == ["HTTP 404", "no such host", ""]
    again.forget([A])
    assert file.read_text() == "picture\turl\treason\tdate\n" + rows[1]
    assert DeadLinks(file).reason(A) == ""


def test_a_broken_file_of_dead_links(tmp_path: Path):
    file = tmp_path / "dead_links.tsv"
    file.write_text("picture\turl\treason\tdate\nB1\thttp://a.exam")
    with pytest.raises(UserError, match=r"dead_links\.tsv, line 2: .* has not four columns with tabs between; delete the line"):
        DeadLinks(file)


@pytest.mark.skipif(not ANNOTATIONS.is_dir(), reason="needs Fashion-IQ's own lists, see CIR_ANNOTATIONS")
def test_the_real_lists_have_a_link_for_every_picture():
    counts = {}
    for category in ("dress", "shirt", "toptee"):
        links = read_links([ANNOTATIONS / "image_url" / f"asin2url.{category}.txt"])
        splits = [json.loads((ANNOTATIONS / "image_splits" / f"split.{category}.{s}.json").read_text()) for s in ("train", "val", "test")]
        assert {link.picture for link in links} == {name for split in splits for name in split}
        counts[category] = len(links)
    assert counts == {"dress": 19_087, "shirt": 31_728, "toptee": 26_868}
    links = read_links([ANNOTATIONS / "image_url"])
    assert len(links) == 74_381
    assert {link.host for link in links} == {"ecx.images-amazon.com", "g-ecx.images-amazon.com"}
