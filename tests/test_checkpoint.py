"""A training that dies can go on, and a file that is not a checkpoint is left alone."""

import os
import pickle

import pytest
import torch

import bnlib

FAST = {"batch_size": 64, "lr": 0.5, "progress": False}


def test_a_continued_training_equals_an_uninterrupted_one(images, tmp_path):
    path = tmp_path / "run.pt"
    whole, parts = bnlib.lenet(), bnlib.lenet()
    expected = bnlib.fit(whole, images, epochs=3, **FAST)
    bnlib.fit(parts, images, epochs=1, checkpoint=path, **FAST)
    continued = bnlib.lenet(seed=5)  # its weights come from the file
    history = bnlib.fit(continued, images, epochs=3, checkpoint=path, **FAST)
    assert history.points == expected.points
    assert history.train_loss == expected.train_loss
    assert history.test_accuracy == expected.test_accuracy
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, continued.state_dict()[name]), name
    assert os.listdir(tmp_path) == ["run.pt"]


def test_a_finished_training_is_not_done_again(images, tmp_path):
    path = tmp_path / "run.pt"
    expected = bnlib.fit(bnlib.lenet(), images, epochs=2, checkpoint=path, **FAST)
    steps = []
    history = bnlib.fit(bnlib.lenet(), images, epochs=2, checkpoint=path, on_step=steps.append, **FAST)
    assert steps == []
    assert history.points == expected.points


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("planted",)


@pytest.mark.parametrize("content", ["empty", "text", "cut", "foreign", "pickle"])
def test_a_damaged_or_foreign_file_gives_an_error_and_is_left_as_it_is(images, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.pt"
    bnlib.fit(bnlib.lenet(), images, epochs=1, checkpoint=path, **FAST)
    if content == "foreign":
        torch.save({"weights": torch.ones(3)}, path)
    elif content == "pickle":
        path.write_bytes(pickle.dumps(Hostile()))
    else:
        path.write_bytes({"empty": b"", "text": b"not a checkpoint", "cut": path.read_bytes()[:-100]}[content])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"run\.pt is damaged or not a checkpoint"):
        bnlib.fit(bnlib.lenet(), images, epochs=1, checkpoint=path, **FAST)
    assert path.read_bytes() == before
    assert not (tmp_path / "planted").exists()


def test_a_checkpoint_of_other_settings_or_another_network_is_refused(images, tmp_path):
    path = tmp_path / "run.pt"
    bnlib.fit(bnlib.lenet(), images, epochs=1, checkpoint=path, **FAST)
    with pytest.raises(ValueError, match=r"other settings: it has lr 0\.5, now 0\.25"):
        bnlib.fit(bnlib.lenet(), images, epochs=2, checkpoint=path, **FAST | {"lr": 0.25})
    with pytest.raises(ValueError, match="another network"):
        bnlib.fit(bnlib.lenet("none"), images, epochs=2, checkpoint=path, **FAST)


def test_a_write_that_fails_leaves_the_last_checkpoint_and_nothing_half_written(images, tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    bnlib.fit(bnlib.lenet(), images, epochs=1, checkpoint=path, **FAST)
    before = path.read_bytes()

    def disk_full(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError, match="No space left"):
        bnlib.fit(bnlib.lenet(), images, epochs=2, checkpoint=path, **FAST)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["run.pt"]
