"""Trained zoo networks, kept between runs: `zoo:NAME@DATA` trains on first use and loads afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from compiler.ir.values import Encoding
from frontends.datasets import Samples, train_and_test
from frontends.recipe import ProgressCallback, Recipe, TrainingResult, bernoulli, recipe_for, train
from frontends.zoo import ZooEntry, build, entry
from hwmodel.errors import CompileError, Loc
from hwmodel.folders import VARIABLE, cache_folder

__all__ = ["CacheWarning", "TrainedInfo", "cache_folder", "trained"]

_TIMESTEPS = 10
RECIPE_VERSION = 1  # raised when training gives other weights for the same recipe


class CacheWarning(UserWarning):
    """A cached network could not be used and is trained again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedInfo:
    """Where a trained network comes from and how good it is."""

    name: str
    data: str
    seed: int
    timesteps: int
    fingerprint: str  # of network, recipe and data; another one means other training
    weights_sha256: str
    accuracy_test: float
    accuracy_train: float
    seconds: float  # that training took
    path: str
    from_cache: bool


def trained(
    name: str,
    data: str,
    *,
    seed: int = 0,
    timesteps: int | None = None,
    recipe: Recipe | None = None,
    progress: ProgressCallback | None = None,
) -> tuple[nn.Module, TrainedInfo]:
    """The zoo network trained on `data` by its recipe, from the cache if a sound copy is there.

    timesteps: as many as events have, else 10, unless given.

    A copy whose hash is wrong is replaced, with a CacheWarning. Processes may train at once: each writes a
    file of its own and moves it into place whole.
    Raises: CompileError for an unknown network or data set, one that does not fit the other, a cache folder
    that cannot be written, or training that diverges.
    """
    network = entry(name)
    sets = train_and_test(data)
    if timesteps is None:
        timesteps = sets[0].x.shape[1] if sets[0].has_time else _TIMESTEPS
    module = build(name, seed=seed, timesteps=timesteps)
    chosen = recipe or recipe_for(name)
    for samples in sets:
        _check_fit(network, samples, timesteps, _classes(module))
    fingerprint = _fingerprint(network, chosen, sets, module, f"{seed} {timesteps}")
    path = cache_folder() / "trained" / f"{_file_stem(name, data)}-{fingerprint[:16]}.safetensors"
    stored = _read(path, fingerprint, module)
    if stored is not None:
        return module, stored
    result = _train(module, network, chosen, sets, seed=seed, timesteps=timesteps, progress=progress)
    info = TrainedInfo(
        name=name,
        data=data,
        seed=seed,
        timesteps=timesteps,
        fingerprint=fingerprint,
        weights_sha256=_tensors_sha256(module.state_dict()),
        accuracy_test=result.accuracy_test,
        accuracy_train=result.accuracy_train,
        seconds=result.seconds,
        path=str(path),
        from_cache=False,
    )
    _write(path, module.state_dict(), info)
    return module, info


def _check_fit(network: ZooEntry, samples: Samples, timesteps: int, classes: int) -> None:
    loc = Loc(f"zoo:{network.name}@{samples.name}")
    if samples.x.shape[-3:] != network.input_shape:
        raise CompileError(f"samples are {samples.x.shape[-3:]}, the network takes {network.input_shape}", loc)
    if samples.has_time and network.coding is Encoding.DIRECT:
        raise CompileError("samples have a time axis, the network takes images", loc)
    if samples.has_time and samples.x.shape[1] != timesteps:
        raise CompileError(f"samples have {samples.x.shape[1]} time steps, the network {timesteps}", loc)
    if not samples.has_time and network.coding is None:
        raise CompileError("samples are images, the network takes events", loc)
    if samples.y.max() >= classes:
        raise CompileError(f"a label is {samples.y.max()}, the network has {classes} classes", loc)


def _classes(module: nn.Module) -> int:
    return [part.out_features for part in module.modules() if isinstance(part, nn.Linear)][-1]


def _train(
    module: nn.Module,
    network: ZooEntry,
    recipe: Recipe,
    sets: tuple[Samples, Samples],
    *,
    seed: int,
    timesteps: int,
    progress: ProgressCallback | None,
) -> TrainingResult:
    encodes = network.coding is Encoding.BERNOULLI and not sets[0].has_time
    return train(
        module,
        *sets,
        epochs=recipe.epochs,
        batch=recipe.batch,
        lr=recipe.lr,
        seed=seed,
        shift=recipe.shift,
        loss=recipe.loss,
        threads=recipe.threads,
        encode=bernoulli(timesteps) if encodes else None,
        progress=progress,
    )


def _fingerprint(network: ZooEntry, recipe: Recipe, sets: tuple[Samples, Samples], fresh: nn.Module, draw: str) -> str:
    """Of all that decides the trained weights; `fresh` stands for how networks are built and initialised."""
    parts = (
        f"{network!r}",
        f"{recipe!r}",
        *(samples.digest() for samples in sets),
        _tensors_sha256(fresh.state_dict()),
        f"{RECIPE_VERSION} {draw}",
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _file_stem(name: str, data: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", f"{name}@{data}")[-100:]


def _tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    state = hashlib.sha256()
    for key in sorted(tensors):
        array = tensors[key].detach().contiguous().numpy()
        state.update(f"{key} {array.dtype} {array.shape}\n".encode())
        state.update(array.tobytes())
    return state.hexdigest()


def _seal(info: str, tensors: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(f"{info}\n{_tensors_sha256(tensors)}".encode()).hexdigest()


def _read(path: Path, fingerprint: str, module: nn.Module) -> TrainedInfo | None:
    """The stored network loaded into `module`, or None with `module` untouched."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
        text = metadata.get("info", "")
        if metadata.get("sha256") != _seal(text, tensors):
            raise ValueError("its hash is wrong")
        info = replace(TrainedInfo(**json.loads(text)), path=str(path), from_cache=True)
        if info.fingerprint != fingerprint or not _same_shapes(tensors, module.state_dict()):
            raise ValueError("it holds another network")
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        warnings.warn(f"{path}: {error}; training again", CacheWarning, stacklevel=3)
        return None
    module.load_state_dict(tensors)
    return info


def _same_shapes(stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    return {key: (value.shape, value.dtype) for key, value in stored.items()} == {
        key: (value.shape, value.dtype) for key, value in wanted.items()
    }


def _write(path: Path, tensors: Mapping[str, Tensor], info: TrainedInfo) -> None:
    text = json.dumps(asdict(info), sort_keys=True)
    content = save(
        {key: value.contiguous() for key, value in tensors.items()},
        {"info": text, "sha256": _seal(text, tensors)},
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(beside, path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CompileError(
            f"cannot keep the trained network: {error}",
            Loc(str(path.parent)),
            hint=f"set ${VARIABLE} to a folder that can be written",
        ) from error
