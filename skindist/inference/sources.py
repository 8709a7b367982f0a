"""Where a model is: a run, a model's own folder, or a repository on the Hugging Face Hub."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_url, snapshot_download

from skindist.downloads import HUB_ID, NETWORK_SECONDS, within
from skindist.errors import UserError, first_line
from skindist.files import expanded
from skindist.inference.description import DESCRIPTION, read_description
from skindist.inference.saved_model import WEIGHTS, SavedModel, build_module, load_weights
from skindist.run.folder import Run


@dataclass(frozen=True)
class Source:
    """The folder of a model, and the run that it is of, if that is here."""

    folder: Path
    run: Run | None = None


def load_model(model: str | Path, views: int | None = None) -> SavedModel:
    """Read a saved model.

    Args:
        model: a run folder, its `model/` folder, or the id of a repository on the Hugging Face Hub.
        views: positions in which it sees each image; None: those that it was judged with.

    Raises:
        UserError: there is none, it is damaged, or of another kind or a newer skindist; not so many views.
    """
    folder = find_model(str(model)).folder
    description = read_description(folder).seen_in(views)
    module = build_module(description)
    load_weights(folder, module)
    return SavedModel(module.eval(), description)


def find_model(model: str) -> Source:
    """Where a model is; one on the Hub is fetched into its cache, if it is not there as it is now.

    Raises:
        UserError: there is none.
    """
    path = expanded(model)
    if path.is_dir():
        run = Run(path)
        if (run.model / DESCRIPTION).is_file():
            return Source(run.model, run if run.exists else None)
        if (path / DESCRIPTION).is_file():
            parent = Run(path.resolve().parent)
            return Source(path, parent if parent.exists and parent.model.samefile(path) else None)
        if run.exists:
            raise UserError(f"{path}: holds no model: if it is a run, let it go on to its end")
        if (Run(path / "ensemble").model / DESCRIPTION).is_file():
            raise UserError(f"{path}: holds the runs of a cross-validation: give {path / 'ensemble'}")
        raise UserError(f"{path}: holds neither a run nor a model: give a run folder, its model/, or a Hub id")
    if path.exists():
        raise UserError(f"{path}: is a file: give a run folder, its model/ folder, or a Hub id")
    if not HUB_ID.fullmatch(model):
        raise UserError(f"{model}: no such folder: give a run folder, its model/ folder, or a Hub id like name/model")
    return Source(_from_hub(model))


def _from_hub(repo: str) -> Path:
    """The newest version there is on the Hub; without a network, what was fetched before."""
    why = ""
    try:  # the Hub's own client would wait and try again for much longer
        ask = partial(get_hf_file_metadata, hf_hub_url(repo, DESCRIPTION), timeout=NETWORK_SECONDS)
        within(NETWORK_SECONDS, ask)
    except Exception as error:  # no common base: HTTP client, proxy, TLS, Hub
        why = first_line(error)
    try:
        files = [place + name for name in (DESCRIPTION, WEIGHTS) for place in ("", "member-*/")]
        return Path(snapshot_download(repo, allow_patterns=files, local_files_only=bool(why)))
    except Exception as error:
        why = why or first_line(error)
        raise UserError(f"{repo}: no such folder here, and no model on the Hub or in its cache ({why})") from None
