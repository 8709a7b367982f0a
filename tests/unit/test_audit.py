"""The audit of folders whose every figure is known: the text, the page, and that neither depends on the run."""

import base64
import io
import os
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from skindist.cli import main
from skindist.data.scan import scan_folder
from skindist.data.store import Source, ensure_store
from skindist.data.survey import Survey, survey
from skindist.errors import UserError
from skindist.recipe import DataConfig
from skindist.report import audit as module
from skindist.report.audit import audit, examine

VOID = {"meta", "img", "br", "wbr"}


@pytest.fixture(autouse=True)
def no_cache_at_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKINDIST_CACHE", str(tmp_path_factory.mktemp("cache")))


def picture(path: Path, seed: int, size: tuple[int, int] = (64, 64)) -> Path:
    """A picture of soft spots that no other seed draws."""
    path.parent.mkdir(parents=True, exist_ok=True)
    spots = np.random.default_rng(seed).integers(40, 200, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(spots).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """7 + 3 images to train on and 2 + 2 to test: a copy and a picture in another format cross the split, a mirrored
    one has both labels; one file is empty, one is no image, one is transparent and one turned by EXIF."""
    root = tmp_path / "lesions"
    for index in range(4):
        picture(root / f"train/benign/{index}.png", index)
    picture(root / "train/benign" / 'a<b>&".png', 4)
    with Image.open(picture(root / "train/benign/clear.png", 5)) as image:
        image.convert("RGBA").save(root / "train/benign/clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(picture(root / "train/benign/turned.jpg", 6, (80, 60))) as image:
        image.copy().save(root / "train/benign/turned.jpg", exif=exif, comment=b"Patient: Jane Doe")
    picture(root / "train/malignant/7.png", 7)
    picture(root / "train/malignant/8.png", 8)
    picture(root / "test/benign/9.png", 9)
    picture(root / "test/malignant/10.png", 10)
    (root / "train/malignant/empty.png").touch()
    (root / "train/malignant/notes.txt").write_text("hello")
    shutil.copy(root / "train/benign/0.png", root / "test/benign/copy.png")
    with Image.open(root / "train/malignant/7.png") as image:
        image.save(root / "test/malignant/again.webp", lossless=True)
    with Image.open(root / "train/benign/1.png") as image:
        ImageOps.mirror(image).save(root / "train/malignant/twin.webp", lossless=True)
    return root


class Page(HTMLParser):
    """What a page consists of; fails where a tag is not closed or an id is given twice."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(path.read_text("utf-8"))
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags[tag] += 1
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [str(value) for name, value in attrs if name in ("href", "src", "srcset", "action")]
        if tag == "img":
            self.images.append(values)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


def test_the_text_says_all_of_a_small_folder(split: Path, tmp_path: Path) -> None:
    text = audit(DataConfig(path=str(split)), tmp_path / "page.html")
    assert text.splitlines() == [
        f"audit of {split}",
        "",
        "  images             9 benign + 5 malignant",
        "                     split  benign  malignant  total",
        "                     train       7          3     10",
        "                     test        2          2      4",
        "                     total       9          5     14",
        "  sizes and formats  64 x 64 to 60 x 80 pixels; JPEG, PNG, WEBP",
        "                     pixels   images",
        "                     64 x 64      13",
        "                     60 x 80       1",
        "                     format  images",
        "                     PNG         11",
        "                     WEBP         2",
        "                     JPEG         1",
        "! unusable images    1",
        "                     train/malignant/empty.png: empty (0 bytes)",
        "  converted          2",
        "                     what           images",
        "                     EXIF rotation       1",
        "                     alpha               1",
        "  other files        1",
        "                     train/malignant/notes.txt",
        "! metadata           no table was given: lesions and patients are unknown",
        "  groups             11 that a split must not part; the largest holds 2 of 14 images",
        "  copies             1 set of copies",
        "                     test/benign/copy.png, train/benign/0.png",
        "  near-duplicates    2 pairs of near-duplicates",
        "                     test/malignant/again.webp, train/malignant/7.png",
        "                     train/benign/1.png, train/malignant/twin.webp",
        "! label conflicts    1 pair of near-duplicates",
        "                     train/benign/1.png, train/malignant/twin.webp",
        "! leaks              1 set of copies, 1 pair of near-duplicates",
        "                     what, between               leaks",
        "                     near-duplicate, train/test      1",
        "                     same bytes, train/test          1",
        "                     test/benign/copy.png, train/benign/0.png",
        "                     test/malignant/again.webp, train/malignant/7.png",
        "  shortcut baseline  too few images: it takes 10 groups of each class",
        "",
        f"! wants attention; everything, with pictures: {tmp_path / 'page.html'}",
    ]


def test_the_page_shows_all_of_a_small_folder(split: Path, tmp_path: Path) -> None:
    audit(DataConfig(path=str(split)), tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    examples, copies, pairs, conflicts, leaks = 8 + 5, 2, 4, 2, 4
    assert len(page.images) == examples + copies + pairs + conflicts + leaks
    assert page.tags["h1"] == 1
    assert page.tags["h2"] == 1 + page.text.count("✓ ok") + page.text.count("! attention") == 13
    for said in (
        "9 benign + 5 malignant",
        "train/malignant/empty.png: empty (0 bytes)",
        "train/malignant/notes.txt",
        "Unusable images (1)",
        "Near-duplicates (2)",
        "near-duplicate, train/test, 0 bits apart",
        "same bytes, train/test",
        "too few images",
        "do not publish patient data",
        'a<b>&".png',
    ):
        assert said in page.text


def test_the_page_needs_nothing_else_and_every_picture_is_named(split: Path, tmp_path: Path) -> None:
    audit(DataConfig(path=str(split)), tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in page.links)
    assert {link for link in page.links if link.startswith("#")} <= {f"#{name}" for name in page.ids}
    assert {str(image["alt"]) for image in page.images} >= {"train/benign/turned.jpg", "test/benign/copy.png"}
    assert all((split / str(image["alt"])).is_file() for image in page.images)
    assert "http:" not in (html := (tmp_path / "page.html").read_text())
    assert "https:" not in html
    assert "@import" not in html


def test_a_name_is_text_never_markup(split: Path, tmp_path: Path) -> None:
    shutil.copy(split / "train/benign" / 'a<b>&".png', split / "test/benign" / "<script>alert('x')<script>.png")
    (split / "test/benign" / '"onerror=x.txt').touch()
    audit(DataConfig(path=str(split)), tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert "a<b>" not in html
    assert "<script" not in html
    assert "a&lt;b&gt;&amp;&#34;.png" in html
    assert "<script>alert('x')<script>.png" in Page(tmp_path / "page.html").text


def test_pictures_are_small_upright_and_without_what_the_file_says_besides(split: Path, tmp_path: Path) -> None:
    picture(split / "test/benign/large.png", 20, (600, 300))
    audit(DataConfig(path=str(split)), tmp_path / "page.html")
    for image in Page(tmp_path / "page.html").images:
        content = base64.b64decode(str(image["src"]).removeprefix("data:image/jpeg;base64,"))
        with Image.open(io.BytesIO(content)) as shown:
            expected = {"train/benign/turned.jpg": (60, 80), "test/benign/large.png": (160, 80)}
            assert shown.size == expected.get(str(image["alt"]), (64, 64))
            assert not {"exif", "comment", "icc_profile"} & set(shown.info)
        assert b"Jane" not in content


def test_a_second_audit_writes_the_same_bytes(split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = audit(DataConfig(path=str(split)), tmp_path / "page.html")
    written = (tmp_path / "page.html").read_bytes()
    assert audit(DataConfig(path=str(split)), tmp_path / "page.html") == first
    monkeypatch.setenv("SKINDIST_CACHE", str(tmp_path / "another"))
    assert audit(DataConfig(path=str(split)), tmp_path / "page.html") == first
    assert (tmp_path / "page.html").read_bytes() == written


def test_a_folder_that_file_size_gives_away(tmp_path: Path) -> None:
    for index in range(40):
        name = ("benign", "malignant")[index % 2]
        picture(tmp_path / f"{name}/{index}.png", index, size=(64, 64) if index % 2 else (192, 192))
    text = audit(DataConfig(path=str(tmp_path)), tmp_path / "page.html")
    assert re.search(r"^! shortcut baseline .* scores AUROC (0\.9\d|1\.00) .* most of it from", text, re.MULTILINE)
    assert re.search(r"^ {21}dimensions +1\.00$", text, re.MULTILINE)
    assert "the folder is not split; skindist draws a split that keeps groups together" in text
    assert "  images             20 benign + 20 malignant\n  sizes" in text
    assert "width:100%" in (tmp_path / "page.html").read_text()


def test_metadata_are_counted(tmp_path: Path) -> None:
    lines = ["image,patient,lesion_id,sex,age_approx,dataset"]
    for index in range(6):
        name = ("benign", "malignant")[index % 2]
        picture(tmp_path / f"images/{name}/{index}.png", index)
        lines.append(f"{index},p{index // 3},l{index},{'unknown' if index else 'male'},,{'HAM' if index < 4 else ''}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    config = DataConfig(path=str(tmp_path / "images"), metadata=str(tmp_path / "table.csv"))
    text = audit(config, tmp_path / "page.html").splitlines()
    start = text.index("  metadata           6 of 6 images have a row")
    assert [line.strip() for line in text[start + 1 : start + 17]] == [
        "column      images  share",
        "patient_id       6   100%",
        "lesion_id        6   100%",
        "age              0     0%",
        "sex              1    17%",
        "site             0     0%",
        "skin_tone        0     0%",
        "source           4    67%",
        "source   benign  malignant",
        "HAM           2          2",
        "unknown       1          1",
        "groups             2 that a split must not part; the largest holds 3 of 6 images",
        "what      all  with several images",
        "lesions     6                    0",
        "patients    2                    2",
        "copies             none",
    ]


def test_long_lists_are_cut_on_the_terminal_alone(tmp_path: Path) -> None:
    for index in range(12):
        picture(tmp_path / f"{('benign', 'malignant')[index % 2]}/{index}.png", index, size=(64, 64 + index))
        (tmp_path / f"benign/{index:02}.txt").touch()
    text = audit(DataConfig(path=str(tmp_path)), tmp_path / "page.html")
    assert "benign/04.txt" in text
    assert "benign/05.txt" not in text
    assert text.count("... and 7 more, all on the page") == 2  # of the sizes, and of the other files
    page = Page(tmp_path / "page.html").text
    assert all(f"benign/{index:02}.txt" in page and f"64 x {64 + index}" in page for index in range(12))


def test_pictures_are_capped_and_the_rest_is_named(
    split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DRAWN", 1)
    audit(DataConfig(path=str(split)), tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert len(page.images) == (8 + 5) + 2 + 2 + 2 + 2
    assert page.text.count("Pictures of the first 1; the other 1 are in the list.") == 2  # near-duplicates, leaks


def test_a_large_patient_is_shown_by_some_images_from_both_sides(tmp_path: Path) -> None:
    lines = ["path,patient_id"]
    for index in range(20):
        side = "test" if index in (0, 19) else "train"
        path = f"{side}/{('benign', 'malignant')[index % 2]}/{index:02}.png"
        picture(tmp_path / "images" / path, index)
        lines.append(f"{path},{'p' if index < 19 and index % 2 == 0 else index}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    config = DataConfig(path=str(tmp_path / "images"), metadata=str(tmp_path / "table.csv"))
    leaks = {section.title: section for section in examine(survey(config))}["Leaks"]
    (pictures,) = leaks.pictures
    assert pictures.caption == "patient, train/test, 6 of 10 images"
    shown = [scan_folder(tmp_path / "images").images[member].path for member in pictures.members]
    assert shown[:3] == ["test/benign/00.png", "train/benign/02.png", "train/benign/04.png"]


def test_nothing_usable_is_said(tmp_path: Path) -> None:
    for name in ("benign", "malignant"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").touch()
    text = audit(DataConfig(path=str(tmp_path)), tmp_path / "page.html")
    assert "! images             0 benign + 0 malignant" in text
    assert "! unusable images    2" in text
    assert Page(tmp_path / "page.html").images == []


def test_the_same_bytes_in_both_classes_are_unusable(split: Path, tmp_path: Path) -> None:
    shutil.copy(split / "train/benign/2.png", split / "train/malignant/2.png")
    text = audit(DataConfig(path=str(split)), tmp_path / "page.html")
    assert "! unusable images    3" in text
    assert "train/benign/2.png: same bytes as train/malignant/2.png, which has the other label" in text
    assert "! label conflicts    1 set of copies, 1 pair of near-duplicates" in text


def test_an_unprintable_name_does_no_harm(split: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\x1b[31m\n.png")
    try:
        shutil.copy(split / "train/benign/3.png", split / "train/benign" / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    text = audit(DataConfig(path=str(split)), tmp_path / "page.html")
    shown = "train/benign/caf\ufffd\ufffd[31m\ufffd.png"
    assert shown in text
    assert text.encode()
    assert shown in Page(tmp_path / "page.html").text


def test_a_picture_that_has_gone_meanwhile_is_said(
    split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def survey_then_lose(config: DataConfig) -> Survey:
        found = survey(config)
        (split / "train/benign/0.png").unlink()
        return found

    monkeypatch.setattr(module, "survey", survey_then_lose)
    audit(DataConfig(path=str(split)), tmp_path / "page.html")
    assert Page(tmp_path / "page.html").text.count("cannot be read any more") == 3  # example, copy and leak


def test_messages_name_the_flags_of_the_command(split: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(split), "--label_column", "dx"]) == 2
    assert "error: --label_column dx: give the table that has it, with --metadata FILE.csv" in capsys.readouterr().err


@pytest.mark.parametrize(("page", "message"), [("nowhere/page.html", "there is no folder"), ("", "is a folder")])
def test_a_page_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, page: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "survey", None)  # would raise
    with pytest.raises(UserError, match=message):
        audit(DataConfig(path=str(tmp_path)), tmp_path / page)


def test_a_path_may_begin_with_the_home(
    split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SKINDIST_CACHE", "~/cache")
    (tmp_path / "m.csv").write_text("path,patient_id\ntrain/benign/0.png,P\n")
    assert main(["audit", "~/lesions", "--metadata=~/m.csv", f"--page={tmp_path / 'page.html'}"]) == 0
    assert "1 of 14 images have a row" in capsys.readouterr().out
    assert main(["clear-cache", "--cache_dir=~/cache"]) == 0
    assert capsys.readouterr().out.endswith(f" kB removed from {tmp_path / 'cache'}\n")


def test_what_pil_warns_of_is_not_said_to_users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Here, a warning is an error: it would make the file a damaged one, or end the command."""
    for name in ("benign/0", "malignant/1"):
        with Image.open(picture(tmp_path / f"lesions/{name}.png", int(name[-1]))) as image:
            image.convert("P").save(tmp_path / f"lesions/{name}.png", transparency=bytes([0, 128]))
            cut_off = b"Exif\0\0II*\0\x08\0\0\0\x09\0"
            image.convert("RGB").save(tmp_path / f"lesions/{name}.jpg", exif=cut_off)
    assert main(["audit", str(tmp_path / "lesions"), f"--page={tmp_path / 'page.html'}"]) == 0
    assert "unusable images    none" in capsys.readouterr().out
    images = scan_folder(tmp_path / "lesions").images
    sources = [Source(tmp_path / "lesions" / image.path, image.sha256, 64, 64) for image in images]
    assert ensure_store(tmp_path / "cache", sources, 32, "bicubic").is_dir()
