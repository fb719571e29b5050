"""Baselines that depend on a checkpoint, stored beside it: `<checkpoint>/baselines/<manifest hash>.json.gz`.

What depends on no checkpoint is stored with the manifest instead. A file belongs to one checkpoint hash: when the
weights change, it is ignored.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from worldmodel.errors import ConfigError, DataError, WorldModelError
from worldmodel.evaluation.manifest import Baseline, Manifest

FORMAT = 1
MODEL_BASELINES = ("bc", "idm", "oracle_latent")
"""Behaviour cloning, inverse dynamics on frozen latents, and true dynamics judged by the model's cost."""
_HASH_DIGITS = 16


def stored_path(checkpoint: Path, manifest: Manifest) -> Path:
    """File of the baselines of a checkpoint on a manifest."""
    return checkpoint / "baselines" / f"{manifest.hash[:_HASH_DIGITS]}.json.gz"


def check_storable(checkpoint: Path, manifest: Manifest) -> None:
    """Refuse a checkpoint beside which nothing can be written, before hours are spent on what is to be stored there.

    Args:
        checkpoint: Its folder.
        manifest: The tasks.

    Raises:
        ConfigError: The folder cannot be written to.
    """
    path = stored_path(checkpoint, manifest)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(
            f"baselines are stored beside the checkpoint, and {path.parent} cannot be written ({error.strerror}); copy "
            "the checkpoint's folder and give checkpoint=COPY"
        ) from error


def load_model_baselines(checkpoint: Path, checkpoint_hash: str, manifest: Manifest) -> dict[str, Baseline]:
    """Stored baselines of a checkpoint on a manifest; none when there is no file, or it is of other weights.

    Args:
        checkpoint: Its folder.
        checkpoint_hash: Of its settings and weights.
        manifest: The tasks; a baseline may hold outcomes of the first ones only.

    Raises:
        DataError: The file is corrupt.
    """
    path = stored_path(checkpoint, manifest)
    if not path.is_file():
        return {}
    try:
        record = json.loads(gzip.decompress(path.read_bytes()))
        if record["format"] != FORMAT:
            raise DataError(f"{path} has format {record['format']!r}, this version reads {FORMAT}; delete it")
        if (record["checkpoint_hash"], record["manifest_hash"]) != (checkpoint_hash, manifest.hash):
            return {}
        found = {name: Baseline.from_dict(entry) for name, entry in record["baselines"].items()}
    except WorldModelError:
        raise
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is corrupt ({error}); delete it and run `worldmodel baselines` again") from error
    for name, baseline in found.items():
        if [row.episode for row in baseline.rows] != list(range(len(baseline.rows))):
            raise DataError(f"{path}: rows of {name!r} are not the first tasks of the manifest in order; delete it")
    return found


def save_model_baselines(
    checkpoint: Path, checkpoint_hash: str, manifest: Manifest, baselines: Mapping[str, Baseline]
) -> Path:
    """Add baselines to those stored for a checkpoint and a manifest; same outcomes, same bytes; never a half file.

    Args:
        checkpoint: Its folder.
        checkpoint_hash: Of its settings and weights.
        manifest: The tasks.
        baselines: By name; replace stored ones of the same name.
    """
    known = {**load_model_baselines(checkpoint, checkpoint_hash, manifest), **baselines}
    record = {
        "format": FORMAT,
        "checkpoint_hash": checkpoint_hash,
        "manifest_hash": manifest.hash,
        "baselines": {name: known[name].to_dict() for name in sorted(known)},
    }
    path = stored_path(checkpoint, manifest)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(gzip.compress(json.dumps(record, allow_nan=False).encode(), mtime=0))
    os.replace(partial, path)
    return path
