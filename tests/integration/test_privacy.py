"""Canaries: unique words planted wherever a name could hide, and searched for in all that may leave the house."""

import gzip
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pytest
import timm
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from tests.helpers.commands import PATIENCE, ROOT, TINY
from tests.helpers.wandb_server import WandbServer
from tests.integration.test_wandb import Done, clean, upload_to, watched

IN_FILES = ("artist", "comment", "description", "pngtext", "jpegcomment")
IN_PATHS = ("parent", "data", "subfolder", "filename", "csv", "cache", "weights", "run", "runs", "cwd", "script")
IN_CELLS = ("patient", "lesion", "cell")
IN_ENV = ("USER", "LOGNAME", "HOSTNAME", "HOME", "TMPDIR", "OTHER")
CANARY = {
    place: f"canary{number:02d}{place.lower()}"
    for number, place in enumerate((*IN_FILES, *IN_PATHS, *IN_CELLS, *IN_ENV))
}


@dataclass
class Planted:
    """A set full of canaries: the flags and environment of a run on it, and its script."""

    root: Path
    words: list[str]
    env: dict[str, str]

    def run(self, name: str, env: dict[str, str], *more: str) -> tuple[Path, Done]:
        """A real run: its folder and what it said."""
        folder = self.root / CANARY["runs"] / f"{CANARY['run']}-{name}"
        words = [*self.words, f"--run.dir={folder}", *more]
        process = subprocess.Popen(
            [sys.executable, str(self.root / CANARY["script"] / "train.py"), *words], env=clean(self.env | env),
            cwd=self.root / CANARY["cwd"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        done = watched(process)
        assert (done.status, done.errors) == (0, "")
        return folder, done


@pytest.fixture(scope="module")
def planted(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """60 images, half of them JPEG, with names, comments, EXIF tags and a table that name patients."""
    root = tmp_path_factory.mktemp("planted")
    data = root / CANARY["parent"] / CANARY["data"]
    table = ["image,patient_id,lesion_id,hospital"]
    exif = Image.Exif()
    exif[0x013B], exif[0x010E] = CANARY["artist"], CANARY["description"]
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + CANARY["comment"].encode()
    text = PngInfo()
    text.add_text("Comment", CANARY["pngtext"])
    for number, path in enumerate(sorted(demo.glob("*/*.png"))):
        folder = data / path.parent.name / CANARY["subfolder"]
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{CANARY['filename']}{number}"
        with Image.open(path) as image:
            if number % 2:
                image.save(folder / f"{name}.jpg", exif=exif, comment=CANARY["jpegcomment"], quality=95)
            else:
                image.save(folder / f"{name}.png", exif=exif, pnginfo=text)
        table.append(f"{name},{CANARY['patient']}{number},{CANARY['lesion']}{number},{CANARY['cell']}")
    metadata, weights = root / f"{CANARY['csv']}.csv", root / f"{CANARY['weights']}.safetensors"
    metadata.write_text("\n".join(table))
    save_file(timm.create_model("test_resnet").state_dict(), weights)
    for place in ("cwd", "script", "HOME", "TMPDIR"):
        (root / CANARY[place]).mkdir()
    patient = f"from skindist.tracking import wandb_sink\nwandb_sink.GRACE = {PATIENCE}\n"  # W&B starts late, too
    (root / CANARY["script"] / "train.py").write_text(patient + (ROOT / "launch/train.py").read_text())
    env = {name: CANARY[name] for name in IN_ENV} | {name: str(root / CANARY[name]) for name in ("HOME", "TMPDIR")}
    words = [*TINY, f"--data.path={data}", f"--data.metadata={metadata}", f"--model.weights={weights}"]
    return Planted(root, [*words, f"--data.cache_dir={root / CANARY['cache']}"], env)


def views(content: bytes) -> Iterator[bytes]:
    """The bytes as they are, without the frames of a .wandb file, and decompressed."""
    yield content
    if content.startswith(b":W&B"):
        yield unframed(content)
    decompress: dict[bytes, Callable[[bytes], bytes]] = {
        b"\x1f\x8b": gzip.decompress,
        b"\x78\x01": zlib.decompress,
        b"\x78\x9c": zlib.decompress,
        b"\x78\xda": zlib.decompress,
        b"\x28\xb5\x2f\xfd": lambda packed: bytes(pa.CompressedInputStream(BytesIO(packed), "zstd").read()),
        b"\x89PNG": lambda packed: repr(Image.open(BytesIO(packed)).info).encode(),
    }
    for magic, function in decompress.items():
        if content.startswith(magic):
            yield function(content)


def unframed(content: bytes) -> bytes:
    """What a .wandb file holds: a LevelDB log, in blocks of 32 KiB, of frames with a header of 7 bytes."""
    parts, position = [], 7
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        (length,) = struct.unpack_from("<H", content, position + 4)
        parts.append(content[position + 7 : position + 7 + length])
        position += 7 + length
    return b"".join(parts)


def found(contents: Iterable[bytes], words: Iterable[str]) -> set[str]:
    """The words that occur in any of these."""
    seen = [view.lower() for content in contents for view in views(content)]
    return {word for word in words if any(word.lower().encode() in view for view in seen)}


def files(*folders: Path) -> list[bytes]:
    """All files under these, or these files, but for W&B's own logs."""
    paths = [path for folder in folders for path in (folder.rglob("*") if folder.is_dir() else [folder])]
    return [path.read_bytes() for path in paths if path.is_file() and "logs" not in path.resolve().parts[-2:]]


def assert_kept_at_home(folder: Path) -> None:
    """None in what is handed on: checkpoints, model, figures; all of the images' names in the user's own record."""
    handed_on = files(*(folder / name for name in ("checkpoints", "model", "results.json", "metrics.jsonl")))
    assert found(handed_on, CANARY.values()) == set()
    assert found(handed_on, ["global_step", "test_resnet"]) == {"global_step", "test_resnet"}
    assert found(files(folder / "split.csv"), CANARY.values()) == {CANARY["subfolder"], CANARY["filename"]}


def test_the_search_finds_what_is_there(planted: Planted) -> None:
    data = planted.root / CANARY["parent"]
    assert found(files(data), CANARY.values()) == {CANARY[place] for place in IN_FILES}
    table = planted.root / f"{CANARY['csv']}.csv"
    assert {CANARY[place] for place in IN_CELLS} < found(files(table), CANARY.values())
    packed = [gzip.compress(b"gzipped"), zlib.compress(b"deflated"), pa.compress(b"zstandard", "zstd", asbytes=True)]
    assert found(packed, ["gzipped", "deflated", "zstandard", "absent"]) == {"gzipped", "deflated", "zstandard"}
    frames = [b"x" * 32750 + b"spli", b"t it"]  # one word over two blocks
    log = b":W&B\0\0\0" + b"".join(struct.pack("<IHB", 0, len(frame), 1) + frame for frame in frames)
    assert found([log], ["split"]) == {"split"}


def test_an_offline_run_names_nobody(planted: Planted) -> None:
    """Neither in what W&B and TensorBoard have written, nor in what `wandb sync` uploads of it."""
    trackers = ["wandb"] + ["tensorboard"] * (find_spec("tensorboard") is not None)
    folder, done = planted.run("offline", {}, f"--tracking.to={','.join(trackers)}")
    assert_kept_at_home(folder)
    for tracker in trackers:
        assert found(files(folder / tracker), CANARY.values()) == set()
        assert found(files(folder / tracker), ["val/loss"]) == {"val/loss"}
    written = files(folder / "wandb")
    sent = {"val/loss", "test/roc", "test_resnet"}
    assert found(written, sent) == sent
    with WandbServer() as server:
        upload_to(server, done.upload, planted.env)
        assert found(server.received, CANARY.values()) == set()
        assert found(server.received, sent) == sent
        ((_, run),) = server.runs.items()
        assert not any(name.startswith("media/images") for name in run.files), "no image unless asked for"


@pytest.mark.slow
def test_an_online_run_names_nobody_and_shows_images_if_asked(planted: Planted) -> None:
    with WandbServer() as server:
        often = {"WANDB_X_STATS_SAMPLING_INTERVAL": "0.1"}  # of how busy the machine is, so that a short run shows it
        folder, _ = planted.run("online", server.env | often, "--tracking.images=true", "--tracking.name=chosen")
        assert_kept_at_home(folder)
        assert found(server.received, CANARY.values()) == set()
        sent = {"skindist", "val/loss", "test/roc", "chosen", "probability of malignant", '"host":null', "system.cpu"}
        assert found(server.received, sent) == sent
        ((_, run),) = server.runs.items()
    images = [content for name, content in run.files.items() if name.startswith("media/images/test/largest_errors")]
    assert len(images) == 12, "all of the test images, as they are fewer than 16"
    assert {Image.open(BytesIO(content)).size for content in images} == {(32, 32)}
