"""The grades of the lessons, and the images: what is read, from where, and what is refused."""

import gzip
import hashlib
import struct
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import IPython
import pytest
import torch

from bnlib import GRADES, data, load_images, selfcheck

REAL = Path(__file__).parents[2] / "shared" / "data"
IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def idx(*shape, numbers=None):
    """Return a gzipped IDX file of `shape` whose bytes are `numbers`, or drawn."""
    if numbers is None:
        top = 10 if len(shape) == 1 else 256
        numbers = torch.randint(top, shape, generator=torch.Generator().manual_seed(0)).flatten().tolist()
    return gzip.compress(struct.pack(f">I{len(shape)}I", 0x0800 + len(shape), *shape) + bytes(numbers), mtime=0)


def plant(folder, monkeypatch, **changes):
    """Write four small files into `folder` and declare them the official ones; `changes` replace "train_labels" etc."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "t10k-labels-idx1-ubyte.gz": changes.get("test_labels", idx(20)),
        LABELS: changes.get("train_labels", idx(100)),
        "t10k-images-idx3-ubyte.gz": idx(20, 28, 28),
        IMAGES: changes.get("train_images", idx(100, 28, 28)),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    facts = {
        name: data.File(len(content), hashlib.sha256(content).hexdigest(), 1 if "labels" in name else 3)
        for name, content in files.items()
    }
    monkeypatch.setattr(data, "FILES", facts)


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch, tmp_path):
    for name in ("BNLIB_DATA", "BNLIB_OFFLINE"):
        monkeypatch.setenv(name, "")  # which counts as not set
    monkeypatch.setenv("BNLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "MIRRORS", ())  # no test of this file goes to the network


def test_the_grades_have_the_means_and_biased_variances_of_the_lesson():
    assert GRADES.dtype == torch.float32
    assert GRADES.mean(0).tolist() == [89.5, 65, 77.5]
    assert GRADES.var(0, correction=0).tolist() == [13.25, 125, 31.25]
    assert len(data.SUBJECTS) == GRADES.shape[1]


def test_a_school_has_the_means_and_spreads_it_promises_and_a_seed_repeats_it():
    grades = data.school(100_000, seed=3)
    assert grades.shape == (100_000, 3)
    assert torch.allclose(grades.mean(0), torch.tensor([90.0, 60, 75]), atol=0.3)
    assert torch.allclose(grades.std(0), torch.tensor([5.0, 20, 10]), rtol=0.02)
    assert torch.equal(grades, data.school(100_000, seed=3))
    assert not torch.equal(data.school(4), data.school(4, seed=1))


def assert_well_formed(images, train, test):
    assert images.train_images.shape == (train, 1, 28, 28)
    assert images.test_images.shape == (test, 1, 28, 28)
    for pixels, labels in ((images.train_images, images.train_labels), (images.test_images, images.test_labels)):
        assert pixels.dtype == torch.float32
        assert (pixels.min(), pixels.max()) == (0, 1)
        assert labels.dtype == torch.int64
        assert labels.shape == pixels.shape[:1]
        assert labels.unique().tolist() == list(range(10))
    assert len(images.class_names) == 10


def test_the_digits_are_all_there_and_split_the_same_way_every_time(capsys):
    images = load_images("digits")
    assert_well_formed(images, 1437, 360)
    assert capsys.readouterr().out == "Data: scikit-learn's handwritten digits, as asked.\n"
    assert images.name == "digits"
    assert repr(images) == "Images(digits: 1,437 for training, 360 for testing, 1 × 28 × 28, 10 classes)"
    counts = torch.cat([images.train_labels, images.test_labels]).bincount().tolist()
    assert counts == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as scikit-learn documents them
    assert images.train_labels[:10].tolist() == [6, 5, 5, 7, 9, 9, 8, 4, 6, 8]
    assert torch.equal(images.test_images, load_images("digits").test_images)
    assert images.test_images.unique().numel() > 17  # resized smoothly: values between the 17 greys of the 8 × 8 images


@pytest.mark.skipif(not REAL.exists(), reason="the official Fashion-MNIST files do not lie beside the project")
def test_the_official_fashion_mnist_is_read_whole(monkeypatch, capsys):
    monkeypatch.setenv("BNLIB_DATA", str(REAL))
    images = load_images()
    assert capsys.readouterr().out == "Data: Fashion-MNIST, from the folder given by BNLIB_DATA.\n"
    assert_well_formed(images, 60_000, 10_000)
    assert images.train_labels.bincount().tolist() == [6000] * 10
    assert round(images.train_images.mean().item(), 4) == 0.2860  # the mean and deviation everyone normalises with
    assert round(images.train_images.std().item(), 4) == 0.3530
    assert images.class_names[images.train_labels[0]] == "Ankle boot"


@pytest.mark.parametrize("below", [".", "fashion-mnist", "FashionMNIST/raw"])
@pytest.mark.parametrize("name", ["auto", "fashion-mnist"])
def test_a_folder_of_the_users_is_read_in_each_known_layout(below, name, monkeypatch, tmp_path, capsys):
    plant(tmp_path / "mine" / below, monkeypatch)
    by_argument = load_images(name, root=tmp_path / "mine")
    monkeypatch.setenv("BNLIB_DATA", str(tmp_path / "mine"))
    by_variable = load_images(name)
    assert by_argument.name == by_variable.name == "fashion-mnist"
    assert torch.equal(by_argument.train_images, by_variable.train_images)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "Data: Fashion-MNIST, from the folder given by root=."
    assert second == "Data: Fashion-MNIST, from the folder given by BNLIB_DATA."
    assert not (tmp_path / "cache").exists()


def test_pixels_are_scaled_and_labels_kept(monkeypatch, tmp_path):
    pixels = [0, 51, 255] + [0] * (28 * 28 - 3)
    plant(tmp_path, monkeypatch, train_images=idx(1, 28, 28, numbers=pixels), train_labels=idx(1, numbers=[9]))
    images = load_images(root=tmp_path)
    assert torch.equal(images.train_images[0, 0, 0, :4], torch.tensor([0, 0.2, 1, 0]))
    assert images.train_labels.tolist() == [9]


def test_an_unknown_name_is_refused_with_the_choice():
    with pytest.raises(ValueError, match="unknown data set 'mnist'; expected 'auto', 'fashion-mnist' or 'digits'"):
        load_images("mnist")


@pytest.mark.parametrize("given", ["root=", "BNLIB_DATA"])
@pytest.mark.parametrize("name", ["auto", "fashion-mnist"])
@pytest.mark.parametrize(
    ("harm", "error", "words"),
    [
        (
            lambda folder: (folder / IMAGES).unlink(),
            FileNotFoundError,
            "but train-images-idx3-ubyte.gz cannot be found",
        ),
        (lambda folder: [path.unlink() for path in folder.iterdir()], FileNotFoundError, "add them, or leave"),
        (lambda folder: folder.rename(folder.parent / "moved"), FileNotFoundError, "cannot be found"),
        (
            lambda folder: (folder / LABELS).write_bytes(b""),
            ValueError,
            "train-labels-idx1-ubyte.gz is damaged or foreign: 0 bytes",
        ),
        (
            lambda folder: (folder / IMAGES).write_bytes((folder / IMAGES).read_bytes()[:-100]),
            ValueError,
            "train-images-idx3-ubyte.gz is damaged or foreign.*replace it with the official file",
        ),
        (lambda folder: (folder / LABELS).write_bytes(idx(100, numbers=[3] * 100)), ValueError, "damaged or foreign"),
    ],
    ids=["a file missing", "empty", "no folder", "an empty file", "truncated", "foreign"],
)
def test_a_users_folder_that_is_not_right_is_an_error_and_stays_as_it_is(
    harm, error, words, name, given, monkeypatch, tmp_path, capsys
):
    folder = tmp_path / "mine"
    plant(folder, monkeypatch)
    harm(folder)
    before = {path: path.read_bytes() for path in folder.glob("*")}
    if given == "BNLIB_DATA":
        monkeypatch.setenv("BNLIB_DATA", str(folder))
    with pytest.raises(error, match=words):
        load_images(name, root=folder if given == "root=" else None)
    assert before == {path: path.read_bytes() for path in folder.glob("*")}
    assert capsys.readouterr().out == ""


def test_the_error_for_a_folder_names_the_variable_that_gave_it(monkeypatch, tmp_path):
    monkeypatch.setenv("BNLIB_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="root= names '', but t10k-labels"):
        load_images(root="")
    with pytest.raises(FileNotFoundError, match=r"BNLIB_DATA names '.*nowhere', but t10k-labels"):
        load_images()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "starts with ;"),
        (b"<html>not here</html>", "no whole gzip file"),
        (idx(3, 28, 28)[:-9], "no whole gzip file"),
        (gzip.compress(b"short", mtime=0), "starts with 73 68 6f 72; expected 00 00 08 03"),
        (gzip.compress(bytes([0, 0, 8, 3, 0]), mtime=0), "starts with 00 00 08 03"),
        (idx(3), "starts with 00 00 08 01; expected 00 00 08 03"),
        (idx(2, 28, 28, numbers=[0] * 28 * 28), r"\(2, 28, 28\) and holds 784 bytes"),
        (idx(1, 28, 28, numbers=[0] * 785), r"\(1, 28, 28\) and holds 785 bytes"),
        (idx(2, 32, 32), r"\(2, 32, 32\).*expected \(N, 28, 28\)"),
    ],
    ids=["empty", "web page", "cut", "other bytes", "short header", "labels", "few", "many", "other size"],
)
def test_a_file_in_another_format_is_refused_by_name(content, words):
    with pytest.raises(ValueError, match=f"{IMAGES}.*{words}"):
        data.read_idx(IMAGES, content)


def test_labels_that_do_not_fit_the_images_are_refused(monkeypatch, tmp_path):
    plant(tmp_path, monkeypatch, train_labels=idx(99))
    with pytest.raises(ValueError, match="train: 100 images but 99 labels"):
        load_images(root=tmp_path)
    plant(tmp_path, monkeypatch, test_labels=idx(20, numbers=[10] * 20))
    with pytest.raises(ValueError, match="t10k: a label is 10; expected 0 to 9"):
        load_images(root=tmp_path)


def test_offline_and_without_a_folder_the_digits_are_taken_without_a_look_at_the_cache(monkeypatch, tmp_path, capsys):
    plant(tmp_path / "cache", monkeypatch)
    monkeypatch.setenv("BNLIB_OFFLINE", "1")
    assert load_images().name == "digits"
    assert capsys.readouterr().out == "Data: scikit-learn's handwritten digits, because BNLIB_OFFLINE is set.\n"
    with pytest.raises(OSError, match="BNLIB_OFFLINE is set; unset it"):
        load_images("fashion-mnist")
    monkeypatch.setenv("BNLIB_DATA", str(tmp_path / "cache"))
    assert load_images().name == "fashion-mnist"
    monkeypatch.delenv("BNLIB_DATA")
    monkeypatch.setenv("BNLIB_OFFLINE", "0")
    assert load_images().name == "fashion-mnist"


def test_where_agrees_with_what_is_loaded(monkeypatch, tmp_path, capsys):
    plant(tmp_path / "mine", monkeypatch)
    assert str(data.where()).startswith("Fashion-MNIST, by download when first loaded (30 MB)")
    assert not (tmp_path / "cache").exists()
    plant(tmp_path / "cache", monkeypatch)
    for name, root in (("auto", tmp_path / "mine"), ("auto", None), ("fashion-mnist", None), ("digits", None)):
        source = data.where(name, root)
        assert load_images(name, root).name == source.name
        assert capsys.readouterr().out == f"Data: {source}.\n"


def test_the_library_loads_neither_downloads_nor_scikit_learn_before_they_are_used():
    code = "import sys, bnlib.data; print(sorted({'pooch', 'requests', 'sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_self_check_says_what_there_is_as_text_and_as_a_table(monkeypatch, tmp_path):
    table = selfcheck()
    assert list(table.rows) == ["Python", "torch", "device", "images", "widgets"]
    assert f"torch    {torch.__version__}" in repr(table).splitlines()
    assert table.rows["images"].startswith("Fashion-MNIST, by download")
    assert "no Jupyter kernel" in table.rows["widgets"]
    assert table._repr_html_().count("<tr>") == 5
    assert not (tmp_path / "cache").exists()
    monkeypatch.setenv("BNLIB_DATA", "<b>&")
    table = selfcheck()
    assert table.rows["images"].startswith("none: BNLIB_DATA names '<b>&'")
    assert "&lt;b&gt;&amp;" in table._repr_html_()
    assert "<b>" not in table._repr_html_()


def test_the_self_check_names_the_device_that_training_takes_and_the_kernel(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert selfcheck().rows["device"].startswith("cpu (")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert selfcheck().rows["device"].startswith("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")
    assert selfcheck().rows["device"] == "cuda (H100)"
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=object()))
    assert selfcheck().rows["widgets"].startswith(f"ipywidgets {version('ipywidgets')} in a Jupyter kernel")
