"""Downloads published weights by name from the Hugging Face hub, as safetensors only.

A name is hf:OWNER/NAME or hf:OWNER/NAME@REVISION. huggingface_hub keeps what it has downloaded, and
which commit a branch was at; as long as the commit of a name is known here, nothing is asked of the
network but files that are missing.
"""

import contextlib
import hashlib
import os
import pathlib
import re
from typing import Any, NamedTuple

from resnet_jax.errors import UserError, reason
from resnet_jax.weights import beside

PREFIX = 'hf:'
FILE = 'model.safetensors'
# What the conversion makes of the same files; weights of another version are converted again.
VERSION = 1
_NAME = re.compile(r'hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+(?:/[\w.-]+)*))?')
_SHA256 = re.compile(r'[0-9a-f]{64}')


class _Name(NamedTuple):
    """A repository, and a branch, tag or commit of it."""

    repo: str
    revision: str


def is_name(path: str | os.PathLike) -> bool:
    """Whether this names weights of the hub instead of a file or folder."""
    return str(path).startswith(PREFIX)


def converted(name: str | os.PathLike) -> pathlib.Path | None:
    """The folder for the converted weights of a name; None if its commit is not known here.

    It is `~/.cache/resnet_jax/hub/OWNER--NAME/COMMIT-vVERSION`, or in XDG_CACHE_HOME.
    """
    commit = _known_commit(name)
    if commit is None:
        return None
    cache = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser()
    repo = _parsed(name).repo.replace('/', '--')
    return cache / 'resnet_jax' / 'hub' / repo / f'{commit}-v{VERSION}'


def download(name: str | os.PathLike) -> pathlib.Path:
    """Downloads the weights of a name, with the files that describe them in the same folder.

    Returns:
      The file of weights.

    Raises:
      UserError: there is no such repository or revision, it has no weights in safetensors, it says
        that its network is none of the project's, or the network fails.
    """
    revision = _known_commit(name) or _parsed(name).revision
    missing = next((file for file in ('config.json', FILE)
                    if not isinstance(_cached(name, file, revision), str)), None)
    if missing:
        _check_reachable(name, missing, revision)
    config = _file(name, 'config.json', revision)
    commit, told = config.parent.name, beside.read(config.with_name(FILE))
    if told.mean is None:  # Hugging Face's own networks have it in a file that timm's do not have
        _file(name, 'preprocessor_config.json', commit, is_needed=False)
    if told.problem:
        raise UserError(f'{name} cannot be used: its architecture is {told.architecture}, which '
                        f'{told.problem}.')
    file = _file(name, FILE, commit)
    _check_digest(name, file)
    return file


def _parsed(name: str | os.PathLike) -> _Name:
    found = _NAME.fullmatch(str(name))
    if not found or '..' in str(name):
        raise UserError(f'{name} is not a name of weights; it must have the form hf:OWNER/NAME or '
                        'hf:OWNER/NAME@REVISION, such as hf:timm/resnet50.a1_in1k.')
    return _Name(found['repo'], found['revision'] or 'main')


def _library(name: str | os.PathLike) -> Any:
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors  # noqa: F401  (it imports them lazily)
        from huggingface_hub.utils import logging
    except ImportError as error:
        raise UserError(f"{name} needs huggingface_hub to be downloaded: pip install -e '.[hub]'"
                        ) from error
    # It prints its messages itself; a logger above it, such as absl's, would print them again.
    logging.disable_propagation()
    return huggingface_hub


def _known_commit(name: str | os.PathLike) -> str | None:
    """The commit of a name, if its config.json has been downloaded."""
    file = _cached(name, 'config.json', _parsed(name).revision)
    return pathlib.Path(file).parent.name if isinstance(file, str) else None


def _cached(name: str | os.PathLike, file: str, revision: str) -> Any:
    """The path of a downloaded file; _CACHED_NO_EXIST if the hub has none, None if not known."""
    return _library(name).try_to_load_from_cache(_parsed(name).repo, file, revision=revision)


def _file(name: str | os.PathLike, file: str, revision: str,
          is_needed: bool = True) -> pathlib.Path | None:
    """A file of a repository; None if it has none of this name and it is not needed."""
    hub, repo = _library(name), _parsed(name).repo
    errors, endpoint = hub.errors, hub.constants.ENDPOINT
    if not is_needed:
        cached = _cached(name, file, revision)
        if cached is hub._CACHED_NO_EXIST:
            return None
        if cached is None:  # other programs may have downloaded the files that are needed
            _check_reachable(name, file, revision)
    try:
        return pathlib.Path(hub.hf_hub_download(repo, file, revision=revision))
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        why = ('HF_HUB_OFFLINE is set' if hub.constants.HF_HUB_OFFLINE else
               f'{endpoint} cannot be reached')
        raise UserError(f'{name}: {file} has not been downloaded yet, and {why}.') from error
    except errors.EntryNotFoundError as error:
        if not is_needed:
            return None
        raise UserError(f'{name} has no file {file}; weights are downloaded only from repositories '
                        f'with config.json and {FILE}, since other formats can run code.'
                        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f'{name}: the repository {repo} has no revision {revision}.') from error
    except errors.GatedRepoError as error:
        raise UserError(f'{name}: the owner of {repo} has to grant access first; ask for it at '
                        f'{endpoint}/{repo}, then log in with `hf auth login`.') from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f'{name}: there is no repository {repo} at {endpoint}, or it is private; '
                        'for a private one, log in with `hf auth login`.') from error
    except Exception as error:  # the network can fail in many ways
        raise UserError(f'{name}: {file} could not be downloaded from {endpoint} '
                        f'({reason(error)}); run the same command again to retry.') from error


def _check_reachable(name: str | os.PathLike, file: str, revision: str) -> None:
    """Raises UserError if nothing answers a request for a file within HF_HUB_ETAG_TIMEOUT seconds.

    The one request that this takes is repeated by the download itself, but that would go on for
    23 s, and for minutes where a firewall drops it. Once the hub has answered, such repetitions are
    welcome.
    """
    hub = _library(name)
    url = hub.hf_hub_url(_parsed(name).repo, file, revision=revision)
    answers = hub.errors.HfHubHTTPError, hub.errors.OfflineModeIsEnabled  # of the download too
    try:
        with contextlib.suppress(*answers):
            hub.get_hf_file_metadata(url, timeout=hub.constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # of the HTTP library, which differs between versions
        raise UserError(
            f'{name}: {file} has not been downloaded yet, and {hub.constants.ENDPOINT} cannot be '
            f'reached ({reason(error)}).') from error


def _check_digest(name: str | os.PathLike, file: pathlib.Path) -> None:
    """Deletes a file, and raises UserError, if it is not what its repository has.

    The hub's cache calls large files after their SHA-256, where file systems know links.
    """
    stored = file.resolve()
    if not _SHA256.fullmatch(stored.name):
        return
    with stored.open('rb') as content:
        digest = hashlib.file_digest(content, 'sha256').hexdigest()
    if digest != stored.name:
        file.unlink()
        stored.unlink()
        raise UserError(f'{name}: {file.name} was damaged on its way or on the disk, and has been '
                        'deleted; run the same command again to download it once more.')
