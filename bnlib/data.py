"""The data of the lessons: a grade book to follow by hand, and images to train on.

The images are Fashion-MNIST (Xiao, Rasul & Vollgraf 2017), from a folder of the user's, the cache or a download; where
it cannot be had, scikit-learn's handwritten digits (Alpaydin & Kaynak 1998), which are installed with it.
"""

import gzip
import hashlib
import io
import math
import os
import struct
import threading
import time
import zlib
from collections import deque
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

import torch
from torch import Tensor

SUBJECTS = ("mathematics", "language", "English")
GRADES = torch.tensor([[85.0, 60, 70], [90, 80, 75], [95, 50, 80], [88, 70, 85]])  # (students, subjects) = (N, C)


def school(students, seed=0) -> Tensor:
    """Return grades (students, 3), normal (not cut at 100) with means 90, 60, 75 and standard deviations 5, 20, 10."""
    draw = torch.randn(students, 3, generator=torch.Generator().manual_seed(seed))
    return torch.tensor([90.0, 60, 75]) + torch.tensor([5.0, 20, 10]) * draw


CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


class File(NamedTuple):
    """What the official file of that name is: bytes and SHA-256 of the .gz, dimensions of what it holds."""

    size: int
    sha256: str
    dims: int


FILES = {  # small ones first: what is going to fail, fails after kilobytes
    "t10k-labels-idx1-ubyte.gz": File(5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5", 1),
    "train-labels-idx1-ubyte.gz": File(29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845", 1),
    "t10k-images-idx3-ubyte.gz": File(4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073", 3),
    "train-images-idx3-ubyte.gz": File(26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84", 3),
}
MIRRORS = (  # the authors' bucket, Keras's copy, the authors' repository
    "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
)
PATIENCE = 5.0  # seconds in which a mirror must send PATIENCE * SLOWEST bytes, or the rest of the file
SLOWEST = 50_000  # bytes per second; at this pace the files take ten minutes


@dataclass(repr=False, eq=False)
class Images:
    """Images and their labels, for training and for testing.

    train_images, test_images  (N, 1, 28, 28) float32 in [0, 1]
    train_labels, test_labels  (N,) int64, indices into `class_names`
    name                       "fashion-mnist" or "digits"
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    name: str

    def __repr__(self):
        size = " × ".join(map(str, self.train_images.shape[1:]))
        return (
            f"Images({self.name}: {len(self.train_images):,} for training, {len(self.test_images):,} for testing, "
            f"{size}, {len(self.class_names)} classes)"
        )


class Source(NamedTuple):
    """Where images come from: which data set, the user's folder if it is one, and why, in words."""

    name: str
    folder: Path | None
    why: str

    def __str__(self):
        title = {"fashion-mnist": "Fashion-MNIST", "digits": "scikit-learn's handwritten digits"}[self.name]
        return f"{title}, {self.why}"


def where(name="auto", root=None) -> Source:
    """Return the source that `load_images` would turn to first, by a look at what is there; nothing is read or fetched.

    Arguments and errors as in `load_images`, except for files that are there but damaged.
    """
    if name not in ("auto", "fashion-mnist", "digits"):
        raise ValueError(f"unknown data set {name!r}; expected 'auto', 'fashion-mnist' or 'digits'")
    if name == "digits":
        return Source("digits", None, "as asked")
    user, given = (os.environ.get("BNLIB_DATA") or None, "BNLIB_DATA") if root is None else (root, "root=")
    if user is not None:
        top = Path(user).expanduser()
        folders = (top, top / "fashion-mnist", top / "FashionMNIST" / "raw")
        lacking = {folder: [file for file in FILES if not os.path.isfile(folder / file)] for folder in folders}
        folder = min(folders, key=lambda folder: len(lacking[folder]))
        if lacking[folder]:
            raise FileNotFoundError(
                f"{given} names {str(user)!r}, but {', '.join(lacking[folder])} cannot be found; expected the four "
                "official Fashion-MNIST files there, or in its fashion-mnist or FashionMNIST/raw; add them, "
                f"or leave {given} out"
            )
        return Source("fashion-mnist", folder, f"from the folder given by {given}")
    if os.environ.get("BNLIB_OFFLINE", "0") not in ("", "0"):
        if name == "fashion-mnist":
            raise OSError("Fashion-MNIST asked for, but BNLIB_OFFLINE is set; unset it, or load 'auto' or 'digits'")
        return Source("digits", None, "because BNLIB_OFFLINE is set")
    if all(os.path.isfile(cache_folder() / file) for file in FILES):
        return Source("fashion-mnist", None, "from the cache")
    return Source("fashion-mnist", None, "by download when first loaded (30 MB); if that fails, the digits")


def load_images(name="auto", root=None) -> Images:
    """Return images to train on, and print one line that says which and why.

    name  "fashion-mnist": 60,000 + 10,000 images of clothes; "digits": 1,437 + 360 of handwritten digits, resized from
          8 × 8; "auto": the first, or the second where the first cannot be had
    root  folder with the four official .gz files, in it, in its fashion-mnist or in its FashionMNIST/raw ("digits" need
          none); else the environment variable BNLIB_DATA, else the cache (BNLIB_CACHE moves it), else a download.
          With BNLIB_OFFLINE=1 and no folder, "auto" is "digits" at once

    Raises ValueError for an unknown name and for a file in the user's folder that is not the official one,
    FileNotFoundError for one that is missing there, OSError if "fashion-mnist" cannot be had.
    """
    source = where(name, root)
    if source.name == "digits":
        images = digits()
    elif source.folder:
        images = fashion_mnist(lambda file: official(file, (source.folder / file).read_bytes()))
    else:
        cache = Cache()
        try:
            images = fashion_mnist(cache.read)
            source = source._replace(why=f"{'downloaded to' if cache.fetched else 'from'} the cache{cache.damage()}")
        except OSError as error:
            reason = f"cache: {error.strerror}" if error.strerror else error  # without the path that str(error) names
            why = f"Fashion-MNIST could not be had ({reason}){cache.damage()}"
            if name == "fashion-mnist":
                raise OSError(
                    f"{why}; expected it in the cache or from a mirror: connect to the network, "
                    "point BNLIB_DATA at a folder with the four files, or load 'auto' or 'digits'"
                ) from error
            images, source = digits(), Source("digits", None, f"because {why}")
    print(f"Data: {source}.")
    return images


def digits() -> Images:
    """Return scikit-learn's 1,797 digits, resized from (8, 8) to (28, 28) and split by a shuffle with seed 0."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.from_numpy(bunch.images).float()[:, None] / 16  # (1797, 1, 8, 8)
    images = torch.nn.functional.interpolate(small, size=(28, 28), mode="bilinear")
    labels = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return Images(images[train], labels[train], images[test], labels[test], tuple("0123456789"), "digits")


def fashion_mnist(read) -> Images:
    """Return Fashion-MNIST; `read(file)` gives the bytes of one of `FILES`."""
    arrays = {file: read_idx(file, read(file)) for file in FILES}
    parts = []
    for part in ("train", "t10k"):
        images, labels = (arrays.pop(f"{part}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
        if len(images) != len(labels):
            raise ValueError(
                f"{part}: {len(images)} images but {len(labels)} labels; expected one label for each image"
            )
        if len(labels) and labels.max() >= len(CLOTHES):
            raise ValueError(f"{part}: a label is {labels.max()}; expected 0 to {len(CLOTHES) - 1}")
        parts += [images[:, None].float().div_(255), labels.long()]
    return Images(*parts, CLOTHES, "fashion-mnist")


def read_idx(file, content) -> Tensor:
    """Return the uint8 tensor that the bytes of `file` hold: (N,) labels or (N, 28, 28) images, as `FILES` says.

    IDX (LeCun, Cortes & Burges): bytes 0, 0, 8 (for uint8), dims; dims sizes, big-endian uint32; the data.
    Raises ValueError naming the file for any other content.
    """
    dims = FILES[file].dims
    start = 4 + 4 * dims
    try:
        raw = bytearray(gzip.decompress(content))  # frombuffer wants memory it may write to
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file} is no whole gzip file ({error}); expected the official file") from error
    if raw[:4] != bytes([0, 0, 8, dims]) or len(raw) < start:
        raise ValueError(f"{file} starts with {bytes(raw[:4]).hex(' ')}; expected 00 00 08 {dims:02x}, then its sizes")
    shape = struct.unpack_from(f">{dims}I", raw, 4)
    if len(raw) - start != math.prod(shape) or (dims == 3 and shape[1:] != (28, 28)):
        wanted = "(N,)" if dims == 1 else "(N, 28, 28)"
        raise ValueError(
            f"{file} announces {shape} and holds {len(raw) - start} bytes of data; expected {wanted}, a byte each"
        )
    return torch.frombuffer(raw, dtype=torch.uint8, offset=start).view(shape)


def official(file, content) -> bytes:
    """Return `content`, or raise ValueError if it is not, to the byte, the official file of that name."""
    digest = hashlib.sha256(content).hexdigest()
    if digest != FILES[file].sha256:
        raise ValueError(
            f"{file} is damaged or foreign: {len(content):,} bytes with SHA-256 {digest}; "
            f"expected {FILES[file].size:,} bytes with {FILES[file].sha256}; replace it with the official file"
        )
    return content


def cache_folder() -> Path:
    """Return the folder in which downloads are kept: BNLIB_CACHE, or the system's place for such files."""
    import pooch

    return Path(os.environ.get("BNLIB_CACHE") or pooch.os_cache("bnlib"))


class Cache:
    """The official files in the user's cache: what is missing or damaged is fetched, checked and moved in whole."""

    def __init__(self):
        self.folder = cache_folder()
        self.mirrors = deque(MIRRORS)  # the one that served last comes first
        self.damaged, self.fetched = [], False

    def read(self, file) -> bytes:
        """Return the bytes of the official `file`; OSError if they cannot be had, or not be kept."""
        path = self.folder / file
        try:
            return official(file, path.read_bytes())
        except FileNotFoundError:
            self.folder.mkdir(parents=True, exist_ok=True)
        except ValueError:
            path.unlink(missing_ok=True)  # another process may have been faster
            self.damaged.append(file)
        content = self.download(file)
        scratch = self.folder / f"{uuid4().hex}.part"
        try:
            scratch.write_bytes(content)
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
        self.fetched = True
        return content

    def download(self, file) -> bytes:
        """Return the official file from the first mirror that gives it; ConnectionError with each one's failure."""
        failures = []
        for _ in MIRRORS:
            try:
                return official(file, fetch(self.mirrors[0] + file, FILES[file].size))
            except ValueError:
                failure = "not the official file"
            except ConnectionError as error:
                failure = error
            failures.append(f"{urlsplit(self.mirrors[0]).netloc}: {failure}")
            self.mirrors.rotate(-1)
        raise ConnectionError("; ".join(failures))

    def damage(self) -> str:
        """Return what there is to add about damaged files, in words."""
        return f"; damaged in the cache, so deleted: {', '.join(self.damaged)}" if self.damaged else ""


def fetch(url, size) -> bytes:
    """Return what `url` sends; ConnectionError, soon, if it is unreachable, slow or sends more than `size` bytes.

    A time-out on the socket starts anew with every byte, and none covers the look-up of the name. So a thread reads
    into memory while this one watches the pace. Abandoned, it does no harm: it holds no file, its next write ends it.
    """
    import requests
    from tqdm.auto import tqdm

    buffer, result = io.BytesIO(), Future()

    def read():
        identity = {"Accept-Encoding": "identity"}  # the .gz itself is wanted, not its content
        try:
            # A redirect, which might leave TLS, is not followed.
            with requests.get(url, stream=True, timeout=PATIENCE, allow_redirects=False, headers=identity) as response:
                response.raise_for_status()
                for chunk in response.iter_content(2**14):
                    buffer.write(chunk)
            result.set_result(buffer.getvalue())
        except Exception as error:  # requests, urllib3, ssl, http.client and sockets have no base in common
            result.set_exception(error)

    threading.Thread(target=read, daemon=True).start()
    seen, due = 0, time.monotonic() + PATIENCE
    try:
        with tqdm(
            desc=Path(url).name, total=size, unit="B", unit_scale=True, leave=False, disable=None, delay=1
        ) as bar:
            while not result.done():
                wait([result], timeout=0.1)
                bar.update(buffer.tell() - bar.n)
                if buffer.tell() > size:
                    raise ConnectionError(f"sent more than {size:,} bytes")
                if time.monotonic() > due:
                    if buffer.tell() - seen < PATIENCE * SLOWEST:
                        raise ConnectionError(f"too slow, {buffer.tell():,} of {size:,} bytes came")
                    seen, due = buffer.tell(), due + PATIENCE
        error = result.exception()
        if isinstance(error, requests.HTTPError):
            raise ConnectionError(f"status {error.response.status_code}") from error
        if error:
            raise ConnectionError(type(error).__name__) from error
        return result.result()
    finally:
        buffer.close()
