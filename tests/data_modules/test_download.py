"""Pictures into a folder: fetched once, whole or not at all; dead links found once, and only where the network is well."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from fakes.site import Site, picture, say
from filelock import FileLock
from PIL import Image

from data_modules import picture_files
from data_modules.download import STREAK, download, totals
from data_modules.errors import UserError
from data_modules.fetch import Fetcher, Pace
from data_modules.links import DeadLinks, Link

if TYPE_CHECKING:
    from pathlib import Path

JPG, PNG = picture("JPEG"), picture("PNG")


def names(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "images").iterdir())


def get(site: Site, root: Path, *pictures: str, **options: object) -> dict[tuple[str, str], int]:
    """Download ``/<picture>`` of the site for each name."""
    fetcher = Fetcher("t", Pace(10_000, sleep=lambda _: None), timeout=5, retries=2)
    return dict(download([Link(name, f"{site.address}/{name}") for name in pictures], root, fetcher, **options))


def test_pictures_keep_their_bytes_and_are_called_by_their_content(site: Site, tmp_path: Path):
    bodies = {"jpg": JPG, "png": PNG, "gif": picture("GIF"), "webp": picture("WEBP")}
    site.answers = {f"/{name}": [say(body, Content_Type="text/html")] for name, body in bodies.items()}  # the header is not believed
    assert get(site, tmp_path, *bodies) == {("fetched", ""): 4}
    assert {name: (tmp_path / "images" / name).read_bytes() for name in names(tmp_path)} == {
        "gif.jpg": bodies["gif"],
        "jpg.jpg": JPG,
        "png.png": PNG,
        "webp.jpg": bodies["webp"],
    }


def test_what_is_there_is_not_asked_again(site: Site, tmp_path: Path):
    site.answers = {"/a": [say(JPG)], "/b": [say(PNG)], "/c": [say(JPG)]}
    get(site, tmp_path, "a", "b")
    assert get(site, tmp_path, "a", "b", "c") == {("there", ""): 2, ("fetched", ""): 1}
    assert site.asked == {"/a": 1, "/b": 1, "/c": 1}


def test_a_broken_file_is_replaced_and_a_left_over_part_is_removed(site: Site, tmp_path: Path):
    site.answers = {"/a": [say(PNG)], "/b": [say(JPG)]}
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(JPG[:-20])
    (folder / "b.jpg").write_bytes(b"")
    (folder / ".a.jpg.123").write_bytes(JPG[:-20])
    (folder / ".keep").touch()
    assert get(site, tmp_path, "a", "b") == {("fetched", ""): 2}
    assert names(tmp_path) == [".keep", "a.png", "b.jpg"]
    assert (folder / "a.png").read_bytes() == PNG
    assert (folder / "b.jpg").read_bytes() == JPG


def test_a_broken_file_stays_where_there_is_nothing_better(site: Site, tmp_path: Path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(JPG[:-20])
    assert get(site, tmp_path, "a") == {("dead", "HTTP 404"): 1}
    assert names(tmp_path) == ["a.jpg"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<html>Not available in your country</html>", "not a readable picture"),
        (b"", "not a readable picture"),
        (JPG[:-20], "not a readable picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a readable picture"),
        (picture("TIFF"), "not a readable picture"),
        (picture("PNG", (30, 30)), "not a readable picture"),
        (picture("GIF", (1, 1)), "a single pixel instead of a picture"),
    ],
)
def test_what_is_no_picture_is_dead(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes, reason: str):
    monkeypatch.setattr(picture_files, "MAX_PIXELS", 899)
    site.answers = {"/a": [say(body, Content_Type="image/jpeg")], "/b": [say(JPG)]}
    assert get(site, tmp_path, "a", "b") == {("dead", reason): 1, ("fetched", ""): 1}
    assert names(tmp_path) == ["b.jpg"]
    assert DeadLinks(tmp_path / "dead_links.tsv").reason(Link("a", f"{site.address}/a")) == reason


def test_dead_links_are_not_asked_again_unless_wanted(site: Site, tmp_path: Path):
    assert get(site, tmp_path, "a") == {("dead", "HTTP 404"): 1}
    site.answers["/a"] = [say(JPG)]
    assert get(site, tmp_path, "a") == {("dead", "HTTP 404"): 1}
    assert site.asked == {"/a": 1}
    assert get(site, tmp_path, "a", retry_dead=True) == {("fetched", ""): 1}
    assert (tmp_path / "dead_links.tsv").read_text() == "picture\turl\treason\tdate\n"


def test_a_picture_that_was_put_there_by_hand_is_not_dead(site: Site, tmp_path: Path):
    get(site, tmp_path, "a")
    Image.new("RGB", (5, 5)).save(tmp_path / "images" / "a.png")
    assert get(site, tmp_path, "a") == {("there", ""): 1}


def test_failures_that_may_pass_are_tried_by_the_next_run(site: Site, tmp_path: Path):
    site.answers["/a"] = [say(status=503)] * 3 + [say(JPG)]
    assert get(site, tmp_path, "a") == {("failed", "HTTP 503"): 1}
    assert not (tmp_path / "dead_links.tsv").exists()
    assert get(site, tmp_path, "a") == {("fetched", ""): 1}


def test_a_log_in_page_in_place_of_everything_kills_no_link(site: Site, tmp_path: Path):
    pictures = [f"p{at}" for at in range(STREAK + 500)]
    site.answers = {f"/{name}": [say(b"<html>log in</html>"), say(JPG)] for name in pictures}
    tally = get(site, tmp_path, *pictures, jobs=1)
    host = site.address.removeprefix("http://")
    asked = site.asked.total()
    assert STREAK <= asked < len(pictures)
    assert tally[("failed", "not a readable picture")] == asked
    assert tally[("failed", f"{host} gave no sign of life and was not asked any more")] == len(pictures) - asked
    assert not (tmp_path / "dead_links.tsv").exists()
    site.answers = {f"/{name}": [say(JPG)] for name in pictures}
    assert get(site, tmp_path, *pictures[:STREAK]) == {("fetched", ""): STREAK}


def test_many_dead_links_of_a_host_that_is_well(site: Site, tmp_path: Path):
    pictures = [f"p{at}" for at in range(3 * STREAK)]
    assert get(site, tmp_path, *pictures) == {("dead", "HTTP 404"): 3 * STREAK}
    assert len((tmp_path / "dead_links.tsv").read_text().splitlines()) == 1 + 3 * STREAK


def test_one_host_out_of_reach_does_not_stop_the_others(site: Site, tmp_path: Path):
    site.answers = {f"/a{at}": [say(JPG)] for at in range(30)}
    links = [Link(f"b{at}", f"http://127.0.0.1:1/{at}") for at in range(2000)] + [
        Link(f"a{at}", f"{site.address}/a{at}") for at in range(30)
    ]
    tally = download(links, tmp_path, Fetcher("t", Pace(10_000), retries=0), jobs=2)
    assert totals(tally) == {"failed": 2000, "fetched": 30}
    assert tally["failed", "127.0.0.1:1 gave no sign of life and was not asked any more"] > 0


def test_folders_that_cannot_be_written(site: Site, tmp_path: Path):
    (tmp_path / "images").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write .*images \(File exists\); choose another folder with --root"):
        get(site, tmp_path, "a")
    with pytest.raises(UserError, match=r"cannot write .*images.* \(Not a directory\)"):
        get(site, tmp_path / "images" / "root", "a")
    assert site.asked == Counter()


def test_a_disk_that_is_full_ends_the_run(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(path: Path, _: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("data_modules.download.replace_file", full)
    site.answers["/a"] = [say(JPG)]
    with pytest.raises(UserError, match=r"cannot write .*a\.jpg \(No space left on device\)"):
        get(site, tmp_path, "a")


def test_two_runs_in_one_folder(site: Site, tmp_path: Path):
    (tmp_path / "images").mkdir()
    with FileLock(tmp_path / ".download.lock"), pytest.raises(UserError, match="another download is at work in"):
        get(site, tmp_path, "a")
