"""`skindist export`: a saved model as one file that other programs run, from pictures of any size to decisions.

The file is tried before it is written: on drawn lesions, against this model and the pixels that skindist gives it.
"""

import io
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import logit
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from skindist.data.demo import draw_lesion
from skindist.errors import UserError, first_line
from skindist.files import refuse_bad_file, write_atomic
from skindist.inference.description import Description
from skindist.inference.graph import Classifier
from skindist.inference.saved_model import SavedModel
from skindist.inference.single import probabilities
from skindist.inference.sources import load_model

OPSET = 18
FREE = {axis: Dim(name) for axis, name in enumerate("NHW")}
OWN_SIZE, RESIZED = 1e-4, 5e-3  # largest differences of probabilities
Pixels = NDArray[np.uint8]
Answer = Callable[[Pixels], Sequence[NDArray[Any]]]  # probability and decision
log = logging.getLogger("skindist")


def export_model(model: str, out: Path, overwrite: bool = False) -> None:
    """Write a saved model as one ONNX or .pt2 file, once it has given the right probabilities.

    Its input `images` is uint8 (N, H, W, 3), with any N, H and W. Its outputs are `probability` (N,) float32, which is
    calibrated, and `decision` (N,) int64: 1, malignant, where the probability reaches the threshold.

    Raises:
        UserError: a mistake in the model or the file's name, or the file would say otherwise than the model.
    """
    refuse_bad_file(out, WRITERS, overwrite)
    saved = load_model(model)
    classifier = Classifier(saved)
    try:
        content = WRITERS[out.suffix.lower()](trace(classifier), described(saved.description))
    except Exception as error:  # no common base: whatever a model does that has no graph, or a file above 2 GB
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise UserError(f"{model}: torch cannot write it as {out.suffix} ({first_line(cause)})") from None
    said = compare(READERS[out.suffix.lower()](content), saved)
    try:
        write_atomic(out, content)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from None
    log.info(f"{out}: {len(content) / 1e6:.1f} MB; {said}")


def described(known: Description) -> dict[str, str]:
    """What stands in the file beside the graph; values are JSON. Of an ensemble, temperature, bias and architecture are
    those of its members."""
    members = [*known.members.values()] or [known]
    values = {
        "skindist": known.version,
        "class_names": known.classes,
        "threshold": known.frozen.threshold.value,
        "temperature": [member.frozen.calibration.temperature for member in members],
        "bias": [member.frozen.calibration.bias for member in members],
        "architecture": [member.architecture for member in members],
        "image_size": known.image_size,
        "views": [member.views for member in members],
    }
    return {name: json.dumps(value) for name, value in values.items()}


def trace(classifier: Classifier) -> ExportedProgram:
    """The whole computation as a graph, for any number of pictures of any size. It names no local file."""
    example = torch.zeros(2, 40, 50, 3, dtype=torch.uint8)
    with torch.no_grad():
        classifier.eval().requires_grad_(False)  # else whoever loads the file gets answers with gradients
        program = torch.export.export(classifier, (example,), dynamic_shapes={"images": FREE})
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)  # it would be saved, with the paths of this machine
    return program


def to_onnx(program: ExportedProgram, metadata: dict[str, str]) -> bytes:
    """The bytes of an ONNX file."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        written = torch.onnx.export(
            program, input_names=["images"], output_names=["probability", "decision"], opset_version=OPSET,
            dynamic_shapes={"images": FREE}, dynamo=True, verbose=False,
        )  # fmt: skip
    assert written is not None
    proto = written.model_proto
    for name, value in metadata.items():
        proto.metadata_props.add(key=name, value=value)
    content: bytes = proto.SerializeToString()
    return content


def to_pt2(program: ExportedProgram, metadata: dict[str, str]) -> bytes:
    """The bytes of a file for torch.export.load."""
    content = io.BytesIO()
    torch.export.save(program, content, extra_files=metadata)
    return content.getvalue()


def onnx_answers(content: bytes) -> Answer:
    """What onnxruntime makes of an ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images_NHWC: session.run(["probability", "decision"], {"images": images_NHWC})


def pt2_answers(content: bytes) -> Answer:
    """What torch makes of a .pt2 file."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")  # torch 2.11, of its own buffer
        module = torch.export.load(io.BytesIO(content)).module()
    return lambda images_NHWC: [found.numpy() for found in module(torch.from_numpy(images_NHWC))]


WRITERS = {".onnx": to_onnx, ".pt2": to_pt2}
READERS = {".onnx": onnx_answers, ".pt2": pt2_answers}


def compare(answer: Answer, saved: SavedModel) -> str:
    """How far the file's probabilities are from the model's own, in words.

    Raises:
        UserError: too far, or a picture of the model's own size gets another decision, and no close one.
    """
    own, threshold = saved.description.image_size, saved.description.frozen.threshold.value
    worst = {OWN_SIZE: 0.0, RESIZED: 0.0}
    for images in trials(own):
        pictures = [Image.fromarray(image) for image in images]
        wanted = probabilities(saved, pictures)
        probability, decision = answer(images)
        height, width = images.shape[1:3]
        allowed, found = OWN_SIZE if own == height == width else RESIZED, float(np.abs(probability - wanted).max())
        worst[allowed] = max(worst[allowed], found)
        if not found <= allowed:  # NaN is refused, too
            raise UserError(
                f"nothing is written: at {width} x {height} pixels the exported probabilities are up to {found:.2g} "
                f"off, and {allowed:g} is allowed"
            )
        close = np.isclose(logit(wanted), logit(threshold), rtol=OWN_SIZE, atol=4 * OWN_SIZE)  # as that of 0.5
        if allowed == OWN_SIZE and ((wanted >= threshold) != decision)[~close].any():
            raise UserError("nothing is written: the exported decisions are not those of the model")
    return (
        f"probabilities are at most {worst[OWN_SIZE]:.1g} off at {own} x {own} pixels, {worst[RESIZED]:.1g} elsewhere"
    )


def trials(size: int) -> list[Pixels]:
    """Drawn lesions (N, H, W, 3) to compare on: eight of the model's own size, and some of other sizes and shapes."""
    shapes = [
        (8, size, size),
        (3, size * 3 // 2, size * 2),
        (2, size * 2, size + 1),
        (1, size * 5 // 8, size),
        (1, 2000, 3000),
    ]
    return [np.stack([drawn(number, height, width) for number in range(count)]) for count, height, width in shapes]


def drawn(number: int, height: int, width: int) -> Pixels:
    """A lesion (H, W, 3), malignant for odd numbers: large ones are drawn small and enlarged, which is fast."""
    side = min(max(height, width), 512)
    picture = draw_lesion(np.random.default_rng([number, height, width]), bool(number % 2), side)
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
