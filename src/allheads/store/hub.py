"""Saved twins on the Hugging Face Hub: pushed there, and found there.

Whatever the hub or the network says is told in words of our own: answers of servers may repeat what they were sent, and
that has a token in it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from http import HTTPStatus
from pathlib import Path

from allheads.disk import named_path
from allheads.errors import AllHeadsError
from allheads.models.names import hub_id, require_reachable
from allheads.models.sources import commit_of
from allheads.store.folder import check
from allheads.store.record import CARD, FILE, read_record
from allheads.store.save import save
from allheads.twin.twin import TwinBridge

_MEANINGS = {
    401: ("a token that it does not know, or none", "Log in with `hf auth login`, or set HF_TOKEN."),
    403: ("a token that may not do that", "Make one that may write at your settings on the hub, and log in with it."),
    404: ("a name that it does not have", "Check the spelling; private ones need a token that may read them."),
}


def push_to_hub(twin: TwinBridge | str | Path, name: str, *, private: bool = True, standalone: bool = False) -> str:
    """Put a twin, or a folder that `ah.save` wrote, on the Hugging Face Hub, for ``ah.load("org/name")``.

    Args:
        twin: the twin, or the folder.
        name: ``"org/name"``: a new repository, or one that holds a saved twin.
        private: a new repository is for you alone, or for your organisation; one that is there stays as it is.
        standalone: as in `ah.save`, for a twin.

    Returns:
        Where it can be seen.

    Raises:
        AllHeadsError: no such name; nothing that `ah.save` could write, or wrote; a hub that does not answer; a token
            that may not write; or a repository with something else in it.

    >>> import allheads as ah
    >>> ah.formats.push_to_hub(twin, "my twin")
    Traceback (most recent call last):
    ...
    allheads.errors.AllHeadsError: Expected a name on the hub, "org/name", got 'my twin'. Write your name on the hub \
before it.
    """
    if not isinstance(name, str) or hub_id(name) != name or "/" not in name:
        raise AllHeadsError('a name on the hub, "org/name"', repr(name), "Write your name on the hub before it.")
    if isinstance(twin, TwinBridge):
        with tempfile.TemporaryDirectory() as scratch:
            return _push(save(twin, Path(scratch) / "twin", standalone=standalone), name, private)
    if standalone:
        raise AllHeadsError(
            "a twin, to save it standalone", "a folder", "Save it so: ah.save(twin, ..., standalone=True)."
        )
    folder = named_path(twin)
    check(folder, read_record(folder))
    return _push(folder, name, private)


def twin_of_hub(name: str) -> Path | None:
    """The folder in the Hugging Face cache with a twin of the hub; None if ``name`` is no twin there, or cannot be had.

    Raises `AllHeadsError` for a hub that does not answer while nothing of the name is in the cache.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    require_reachable(name)
    with _in_our_words(name):
        try:
            found = Path(hf_hub_download(name, FILE))
        except (EntryNotFoundError, HfHubHTTPError):  # `ah.load` goes on, and says what is wrong
            return None
        # What a file of others names is no pattern.
        files = [FILE, *map(escape, read_record(found.parent).files)]
        return Path(snapshot_download(name, revision=commit_of(found.parent), allow_patterns=files))


def _push(folder: Path, name: str, private: bool) -> str:
    from huggingface_hub import HfApi

    files = [FILE, CARD, *map(escape, read_record(folder).files)]
    api = HfApi()
    with _in_our_words(name):
        api.create_repo(name, private=private, exist_ok=True)
        there = set(api.list_repo_files(name)) - {".gitattributes"}
        if there and FILE not in there:
            raise AllHeadsError(
                "a new repository, or one with a saved twin to replace",
                f"{name} with {', '.join(sorted(there)[:3])}",
                "Take another name.",
            )
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=files,
            delete_patterns=["twin*.safetensors"],
            commit_message="An attention-only twin, saved with allheads",
        )
    return f"{api.endpoint}/{name}"


@contextmanager
def _in_our_words(name: str) -> Iterator[None]:
    """Tell of what the hub and the network say without repeating it."""
    try:
        yield
    except (AllHeadsError, MemoryError):
        raise
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is None:
            network = isinstance(error, OSError) or type(error).__module__.startswith("httpx")
            answer = "no answer" if network else "an answer that its client cannot read"
            got, remedy = f"{answer} ({type(error).__name__})", "Check the network, and HF_ENDPOINT."
        else:
            phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "unknown"
            meaning, remedy = _MEANINGS.get(status, ("an answer that says no more", "Try again later."))
            got = f"{status} {phrase}: {meaning}"
        raise AllHeadsError(f"a hub that serves {name}", got, remedy) from None
