"""Metadata: the tables that exist, what names an image, and what is refused."""

import errno
import logging
import time
from pathlib import Path

import pytest

from skindist.data.metadata import read_metadata
from skindist.errors import UserError

UNKNOWN = "metadata: patients and lesions are unknown: a split may part them; name the column patient_id or lesion_id"
A, B = "benign/ISIC_0000001.jpg", "malignant/ISIC_0000002.jpg"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "table.csv"


def refusal(file: Path, paths: list[str]) -> str:
    """What is said of the file, without the words that every message starts with."""
    with pytest.raises(UserError) as caught:
        read_metadata(file, paths)
    start, message = f"--data.metadata {file}: ", str(caught.value)
    assert message.startswith(start)
    assert "\n" not in message
    return message.removeprefix(start)


HAM10000 = """lesion_id,image_id,dx,dx_type,age,sex,localization,dataset
HAM_0000118,ISIC_0000001,bkl,histo,80.0,male,scalp,vidir_modern
"""
ARCHIVE = """isic_id,attribution,copyright_license,age_approx,anatom_site_general,anatom_site_special,benign_malignant,\
lesion_id,patient_id,sex
ISIC_0000001,"Hospital, Barcelona",CC-0,55,anterior torso,,benign,IL_7664330,IP_1234567,female
"""
ISIC_2020 = """image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target
ISIC_0000001,IP_7279968,male,45.0,head/neck,unknown,benign,0
"""
ISIC_2019 = """image,age_approx,anatom_site_general,lesion_id,sex
ISIC_0000001_downsampled,30.0,,,female
"""


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (HAM10000, {"lesion_id": "HAM_0000118", "dx": "bkl", "dx_type": "histo", "age": "80.0", "sex": "male",
                    "site": "scalp", "source": "vidir_modern"}),
        (ARCHIVE, {"source": "Hospital, Barcelona", "copyright_license": "CC-0", "age": "55", "site": "anterior torso",
                   "anatom_site_special": "", "benign_malignant": "benign", "lesion_id": "IL_7664330",
                   "patient_id": "IP_1234567", "sex": "female"}),
        (ISIC_2020, {"patient_id": "IP_7279968", "sex": "male", "age": "45.0", "site": "head/neck",
                     "diagnosis": "unknown", "benign_malignant": "benign", "target": "0"}),
        (ISIC_2019, {"age": "30.0", "site": "", "lesion_id": "", "sex": "female"}),
        ("patient_id,lesion_id,fitspatrick,diagnostic,img_id\nPAT_1,2,3.0,BCC,ISIC_0000001.png\n",
         {"patient_id": "PAT_1", "lesion_id": "2", "skin_tone": "3.0", "diagnostic": "BCC"}),
        (",md5hash,fitzpatrick_scale,label\n0,ISIC_0000001,3,lupus\n", {"skin_tone": "3", "label": "lupus"}),
        (",DDI_ID,DDI_file,skin_tone,malignant\n0,1,ISIC_0000001.png,12,True\n",
         {"DDI_ID": "1", "skin_tone": "12", "malignant": "True"}),
        ("bcn_filename,age_approx,lesion_id\nISIC_0000001.png,55.0,BCN_1\n", {"age": "55.0", "lesion_id": "BCN_1"}),
    ],
    ids=["HAM10000", "ISIC archive", "ISIC 2020", "ISIC 2019", "PAD-UFES-20", "Fitzpatrick17k", "DDI", "BCN20000"],
)  # fmt: skip
def test_public_tables_work_as_they_come(table: Path, text: str, values: dict[str, str]) -> None:
    table.write_text(text)
    assert read_metadata(table, [A]) == {A: values}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_bom_delimiters_line_ends_and_blank_lines(table: Path, delimiter: str, end: str, encoding: str) -> None:
    lines = [["image", "age", "site"], ["ISIC_0000001", "50", "genou é"], ["ISIC_0000002", "60"], ["", "", ""], [], []]
    table.write_bytes("".join(delimiter.join(line) + end for line in lines).encode(encoding))
    assert read_metadata(table, [A, B]) == {A: {"age": "50", "site": "genou é"}, B: {"age": "60", "site": ""}}


def test_commas_in_a_quoted_name_of_a_column_are_no_delimiters(table: Path) -> None:
    table.write_text('image;age;"region (head, neck, arm, leg)"\nISIC_0000001;50;arm\n')
    assert read_metadata(table, [A]) == {A: {"age": "50", "region (head, neck, arm, leg)": "arm"}}


@pytest.mark.parametrize("first", ["sep=;", "SEP=,", "sep=\t"])
def test_the_line_that_tells_excel_the_delimiter_is_passed_over(table: Path, first: str) -> None:
    lines = [["image", "age"], ["ISIC_0000001", "50"], ["ISIC_0000002", "60", "70"]]
    table.write_bytes("\r\n".join([first, *(first[-1].join(line) for line in lines[:2])]).encode())
    assert read_metadata(table, [A]) == {A: {"age": "50"}}
    table.write_bytes("\r\n".join([first, *(first[-1].join(line) for line in lines)]).encode())
    assert refusal(table, [A]) == "line 4 has 3 fields, the header has 2"


@pytest.mark.parametrize(
    ("header", "values"),
    [
        ("image,AGE_Approx,Gender,Anatom Site-1", {"age": "1", "sex": "2", "site": "3"}),
        ("image,age_approx,age,dataset", {"age_approx": "1", "age": "2", "source": "3"}),
        ("image,attribution,dataset,Skin-Type", {"attribution": "1", "source": "2", "skin_tone": "3"}),
        ("image,patient,lesion,fitzpatrick", {"patient_id": "1", "lesion_id": "2", "skin_tone": "3"}),
        ("image,,Odd One,id", {"Odd One": "2", "id": "3"}),
        ("image,PatientID,LesionId,FitzpatrickSkinType", {"patient_id": "1", "lesion_id": "2", "skin_tone": "3"}),
        ("FileName,PatientId,Patient.ID,AgeApprox", {"PatientId": "1", "patient_id": "2", "age": "3"}),
        ("image,subject_id,x,y", {"patient_id": "1", "x": "2", "y": "3"}),
        ("image,CaseID,patient,y", {"CaseID": "1", "patient_id": "2", "y": "3"}),
    ],
)
def test_known_columns_get_one_name_and_all_are_kept(table: Path, header: str, values: dict[str, str]) -> None:
    table.write_text(f"{header}\nISIC_0000001,1,2,3\n")
    assert read_metadata(table, [A]) == {A: values}


@pytest.mark.parametrize(
    "header", ["path", "file_name", "File Name", "filename", "file", "IMAGE", "image-id", "image_name", "isic_id", "id"]
)
def test_columns_that_name_the_image(table: Path, header: str) -> None:
    table.write_text(f"name,age,{header}\nBob,50,ISIC_0000001\n")
    assert read_metadata(table, [A]) == {A: {"name": "Bob", "age": "50"}}


@pytest.mark.parametrize(
    "value",
    ["", " ", "NA", "nan", "null", "Unknown", "#N/A", "<NA>", "-", "--", "?", ".", "Missing", "N.A.", "not available",
     "#REF!"],
)  # fmt: skip
def test_an_unknown_patient_has_no_id_but_an_unknown_sex_stays(table: Path, value: str) -> None:
    table.write_text(f"image,patient_id,lesion_id,sex\nISIC_0000001,{value},{value},{value}\n")
    assert read_metadata(table, [A]) == {A: {"patient_id": "", "lesion_id": "", "sex": value.strip()}}


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("train/benign/a.b.jpg", "train/benign/a.b.jpg"), ("./Train/Benign/A.B.JPG", "train/benign/a.b.jpg"),
        ("benign\\1.jpg", "benign/1.jpg"), ("a.b.jpg", "train/benign/a.b.jpg"), ("A.b", "train/benign/a.B.jpg"),
        ("ISIC_0012258", "benign/ISIC_0012258_downsampled.jpg"), ("isic_0012258_small", "benign/ISIC_0012258.JPG"),
        ("images/ISIC_0012258.png", "train/benign/ISIC_0012258.jpg"),
        ("l\u00e4sion 1.jpg", "benign/la\u0308sion 1.jpg"), ("La\u0308sion 1", "benign/l\u00e4sion 1.jpg"),
    ],
)  # fmt: skip
def test_what_names_an_image(table: Path, key: str, path: str) -> None:
    table.write_text(f"image,age\n{key},50\n")
    assert read_metadata(table, [path]) == {path: {"age": "50"}}


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("benign/1.jpg", "malignant/1.jpg"), ("1.jpg", "benign/1.png"), ("1", "benign/11.jpg"), ("", "benign/1.jpg"),
        ("ISIC_0012258", "benign/ISIC_00122581.jpg"),
    ],
)  # fmt: skip
def test_what_does_not(table: Path, key: str, path: str) -> None:
    table.write_text(f"image,age\n{key},50\n")
    assert refusal(table, [path]) == f"no row names an image: a row is called {key!r}, an image {path!r}"


def test_the_closest_name_wins(table: Path) -> None:
    keys = ["ISIC_0000001_copy", "ISIC_0000001", "ISIC_0000001.jpg", A]
    for count in range(len(keys), 0, -1):
        table.write_text("image,age\n" + "".join(f"{key},{age}\n" for age, key in enumerate(keys[:count])))
        assert read_metadata(table, [A])[A] == {"age": str(count - 1)}


@pytest.mark.parametrize("keys", [("benign/x.jpg", "benign/X.jpg"), ("benign/X.jpg", "benign/x.jpg")])
def test_an_exact_path_tells_names_apart_that_differ_in_capitals(table: Path, keys: tuple[str, str]) -> None:
    table.write_text(f"path,patient_id\n{keys[0]},1\n{keys[1]},2\n")
    found = read_metadata(table, ["benign/X.jpg", "benign/x.jpg"])
    assert found == {keys[0]: {"patient_id": "1"}, keys[1]: {"patient_id": "2"}}
    table.write_text(f"path,patient_id\n{keys[0]},1\n")
    assert read_metadata(table, list(keys)) == {keys[0]: {"patient_id": "1"}}
    table.write_text("path,patient_id\nBENIGN/x.jpg,1\n")
    assert refusal(table, list(keys)) == f"line 2: 'BENIGN/x.jpg' fits {keys[0]} and {keys[1]}; use a path column"


def test_one_picture_in_two_places_has_one_row(table: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = ["train/benign/ISIC_0000001.jpg", "test/malignant/ISIC_0000001.jpg", "test/benign/ISIC_0000001_small.png"]
    table.write_text("image,patient_id\nISIC_0000001,P\n")
    with caplog.at_level(logging.WARNING, "skindist"):
        assert read_metadata(table, paths) == {path: {"patient_id": "P"} for path in paths}
    assert caplog.messages == [f"metadata: rows that each fit several images: 1, such as {paths[0]} and {paths[1]}"]


@pytest.mark.parametrize("key", ["1", "1.jpg"])
def test_a_bare_name_of_several_images_is_refused_and_a_path_is_not(table: Path, key: str) -> None:
    paths = ["benign/1.jpg", "benign/2.jpg", "malignant/1.jpg"]
    table.write_text(f"image,age\n2.jpg,40\n{key},50\n")
    assert refusal(table, paths) == f"line 3: '{key}' fits benign/1.jpg and malignant/1.jpg; use a path column"
    table.write_text(f"path,age\n2.jpg,40\n{paths[0]},50\n{paths[2]},60\n")
    ages = {path: values["age"] for path, values in read_metadata(table, paths).items()}
    assert ages == {"benign/1.jpg": "50", "benign/2.jpg": "40", "malignant/1.jpg": "60"}


@pytest.mark.parametrize("column", ["patient_id", "lesion_id"])
@pytest.mark.parametrize("key", ["ISIC_0000001", "isic_0000001", "ISIC_0000001_downsampled"])
def test_two_rows_of_one_image_must_agree_on_patient_and_lesion(table: Path, column: str, key: str) -> None:
    table.write_text(f"image,{column}\nISIC_0000001,X\nISIC_0000002,Z\n{key},Y\n")
    assert refusal(table, [A]) == f"lines 2 and 4 differ in the {column} of {A}; keep the right one"


def test_of_two_rows_that_agree_the_first_wins(table: Path) -> None:
    table.write_text("image,patient_id,age\nISIC_0000001,unknown,40\nISIC_0000001,NA,50\nISIC_0000001,NA,50\n")
    assert read_metadata(table, [A]) == {A: {"patient_id": "", "age": "40"}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf\r\n\r\n", "is empty"),
        (b"image,age\n\n", "has a header but no rows"),
        ("image,age\nISIC_0000001,é\n".encode("latin-1"), "is not UTF-8 text; save it as CSV in UTF-8"),
        (b"image,age\nISIC_0000002,1\n\nISIC_0000001,1,2\n", "line 4 has 3 fields, the header has 2"),
        (b"image,age,age\nISIC_0000001,1,2\n", "two columns are called age; rename or remove one"),
        (b'image,age\n"' + b"x" * 140_000, "line 2: field larger than field limit (131072); is a quote not closed?"),
        (b"picture,age\nISIC_0000001,1\n", "no column names the images: call it one of path, file_name, filename, "
         "file, image, image_id, image_name, img_id, isic_id, id, name; found picture, age"),
    ],
)  # fmt: skip
def test_malformed_files_are_refused(table: Path, content: bytes, message: str) -> None:
    table.write_bytes(content)
    assert refusal(table, [A]) == message


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.csv", [A]) == "no such file"
    assert refusal(tmp_path, [A]) == "is a folder"


def test_a_file_that_may_not_be_read_is_refused(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    table.write_text("image,age\nISIC_0000001,1\n")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert refusal(table, [A]) == "cannot be read (Permission denied)"


@pytest.mark.parametrize(("header", "known"), [("id,Sex,patient", "patient_id, sex"), ("id,x,y", "no known column")])
def test_it_says_what_it_found(table: Path, caplog: pytest.LogCaptureFixture, header: str, known: str) -> None:
    table.write_text(f"{header}\n" + "".join(f"{index},1,2\n" for index in range(2000)))
    with caplog.at_level(logging.INFO, "skindist"):
        assert len(read_metadata(table, [f"benign/{index}.jpg" for index in range(1001)])) == 1001
        read_metadata(table, [f"benign/{index}.jpg" for index in range(1998, 2002)])
    said = [(record.levelname, record.message) for record in caplog.records]
    assert [one for one in said if one[1] != UNKNOWN] == [
        ("INFO", f"metadata: 1,001 of 1,001 images have a row in table.csv ({known})"),
        ("INFO", "metadata: 999 rows without an image among these, such as 1001"),
        ("INFO", f"metadata: 2 of 4 images have a row in table.csv ({known})"),
        ("WARNING", "metadata: 2 images without a row, such as benign/2000.jpg"),
        ("INFO", "metadata: 1,998 rows without an image among these, such as 0"),
    ]
    assert said.count(("WARNING", UNKNOWN)) == (0 if "patient" in header else 2), "once for each reading"


def test_the_time_is_linear(table: Path) -> None:
    paths = [f"train/benign/ISIC_{index:07}_downsampled.jpg" for index in range(20_000)]
    table.write_text("image,age\n" + "".join(f"ISIC_{index:07},50\n" for index in range(20_000)))
    start = time.process_time()
    assert len(read_metadata(table, paths)) == 20_000
    assert time.process_time() - start < 5  # 400 million comparisons would take longer


def test_a_quote_that_is_not_closed_is_refused(table: Path) -> None:
    """It would take all rows up to the next quote for one field."""
    table.write_text('image,note\na,x\nb,"about 5 mm\nc,y\nd,z\n')
    assert "unexpected end of data; is a quote not closed?" in refusal(table, ["a.png", "b.png", "c.png"])


def test_no_image_is_no_mistake_of_the_table(table: Path) -> None:
    table.write_text(HAM10000)
    assert read_metadata(table, []) == {}
