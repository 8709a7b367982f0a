"""`skindist push`: a saved model and its card to the Hugging Face Hub, private unless told, shown before it is sent."""

import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from skindist.downloads import HUB_ID, NETWORK_SECONDS, within
from skindist.errors import UserError, first_line
from skindist.inference.description import DESCRIPTION, read_description
from skindist.inference.saved_model import CARD, WEIGHTS
from skindist.inference.sources import find_model, load_model

T = TypeVar("T")
log = logging.getLogger("skindist")


def push_model(model: str, repository: str, public: bool = False, yes: bool = False) -> None:
    """Send the three files of a model to a repository, which is made if there is none; of an ensemble, those of each
    member, and its own config.json and README.md.

    Args:
        model: a run folder or its `model/` folder.
        repository: OWNER/NAME.
        public: whether everybody may see it, if it is new.
        yes: do not ask.

    Raises:
        UserError: a mistake in the model or the name, no token, no network, no permission, or nobody has said yes.
    """
    if not HUB_ID.fullmatch(repository):
        raise UserError(f"{repository}: not the name of a repository; give OWNER/NAME")
    folder = checked(model)
    api, account = HfApi(), sign_in(repository)
    there = asked(repository, partial(visibility, api, repository))
    if there == "public" and not public:
        raise UserError(f"{repository}: is there already, and public; give --public, or another name")
    if there == "private" and public:
        raise UserError(f"{repository}: is there already, and private; leave out --public, or give another name")
    seen_by = "public: everybody can see it" if public else "private"
    log.info(f"to {api.endpoint}/{repository} ({'there already' if there else 'new'}, {seen_by}), as {account}:")
    for name in sent(folder):
        log.info(
            f"  {name}  {(folder / name).stat().st_size / 1e6:.3f} MB{'  replaced if it is there' if there else ''}"
        )
    if not yes and not agreed():
        raise UserError("nothing was sent")
    if not there:
        asked(repository, partial(api.create_repo, repository, private=not public))
    files = [CommitOperationAdd(name, folder / name) for name in sent(folder)]
    done = asked(repository, partial(api.create_commit, repository, files, commit_message="Model saved by skindist"))
    log.info(f"sent: {done.commit_url}")


def sent(folder: Path) -> list[str]:
    """The files to send, and nothing else, whatever lies beside them."""
    members = [f"{name}/" for name in read_description(folder).members]
    kept = [DESCRIPTION, CARD] if members else [DESCRIPTION, WEIGHTS, CARD]
    return kept + [place + name for place in members for name in (DESCRIPTION, WEIGHTS, CARD)]


def checked(model: str) -> Path:
    """The folder of a model that is whole.

    Raises:
        UserError: it is not, it is not on this machine, or has no card.
    """
    if HUB_ID.fullmatch(model) and not Path(model).exists():
        raise UserError(f"{model}: no such folder; give a run folder or its model/ folder")
    folder = find_model(model).folder
    load_model(folder)
    if not (folder / CARD).is_file():
        raise UserError(f"{folder}: has no {CARD}, the model card, without which nothing is sent")
    return folder


def sign_in(repository: str) -> str:
    """The name of the account.

    Raises:
        UserError: there is no token, it is not accepted, or nobody answers.
    """
    if is_offline_mode():
        raise UserError("HF_HUB_OFFLINE is set, so nothing can be sent: unset it")
    if get_token() is None:
        raise UserError("no token of the Hugging Face Hub: run `hf auth login`, or set HF_TOKEN")
    return asked(repository, lambda: within(NETWORK_SECONDS, lambda: str(HfApi().whoami()["name"])))


def visibility(api: HfApi, repository: str) -> str:
    """What a repository is: "private", "public", or "" if there is none that this account can see."""
    try:
        return "private" if api.model_info(repository).private else "public"
    except RepositoryNotFoundError:
        return ""


def asked(repository: str, question: Callable[[], T]) -> T:
    """What the Hub answers.

    Raises:
        UserError: it does not, or it refuses.
    """
    try:
        return question()
    except HfHubHTTPError as error:
        status = error.response.status_code
        why = {
            401: "the Hub does not know this token; run `hf auth login` again",
            403: "this token may not write there; make one that may, at https://huggingface.co/settings/tokens",
        }.get(status, f"the Hub answers {status}: {error.server_message or first_line(error)}")
        raise UserError(f"{repository}: {why}") from None
    except Exception as error:  # no common base: HTTP client, proxy, TLS, time limit
        raise UserError(f"{repository}: the Hub cannot be reached ({first_line(error)}); try again") from None


def agreed() -> bool:
    """Whether somebody at the terminal says yes.

    Raises:
        UserError: there is no terminal.
    """
    if not sys.stdin.isatty():
        raise UserError(
            "nobody can be asked without a terminal, so nothing was sent: look at the list, then give --yes"
        )
    try:
        return input("Send these files? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # ctrl-D
        return False
