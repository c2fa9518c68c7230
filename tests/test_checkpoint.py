"""A training that dies can go on, and a file that is not a checkpoint is left alone."""

import multiprocessing
import os
import pickle
import signal
import time

import pytest
import torch
from small_images import rows

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


@pytest.mark.parametrize("content", ["empty", "text", "cut", "one bit", "foreign", "pickle"])
def test_a_damaged_or_foreign_file_gives_an_error_and_is_left_as_it_is(images, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.pt"
    bnlib.fit(bnlib.lenet(), images, epochs=1, checkpoint=path, **FAST)
    if content == "foreign":
        torch.save({"weights": torch.ones(3)}, path)
    elif content == "pickle":
        path.write_bytes(pickle.dumps(Hostile()))
    else:
        saved = path.read_bytes()
        half = len(saved) // 2
        path.write_bytes(
            {
                "empty": b"",
                "text": b"not a checkpoint",
                "cut": saved[:-100],
                "one bit": saved[:half] + bytes([saved[half] ^ 1]) + saved[half + 1 :],  # torch.load would take it
            }[content]
        )
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


def test_a_folder_that_is_not_there_is_said_before_the_training(images, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"make the folder .*nowhere first"):
        bnlib.fit(bnlib.lenet(), images, checkpoint=tmp_path / "nowhere" / "run.pt", on_step=pytest.fail, **FAST)


@pytest.mark.parametrize("poison", [1, 2])
def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(images, tmp_path, poison):
    """The weights are spoilt after the epoch's checkpoint, or by its last step, when its loss is still finite."""
    path = tmp_path / "run.pt"
    model, expected = bnlib.lenet(), bnlib.lenet()

    def spoil(_):
        with torch.no_grad():
            model[-1].bias[0] = torch.nan

    when = {1: {"on_epoch": spoil}, 2: {"on_step": lambda step: spoil(step) if step.epoch == 2 else None}}[poison]
    with pytest.raises(FloatingPointError, match=r"in epoch 2, step . *: the weights have run away. Try a learning"):
        bnlib.fit(model, images, epochs=3, checkpoint=path, **when, **FAST)
    bnlib.fit(expected, images, epochs=1, **FAST)
    saved = torch.load(path)
    assert len(saved["history"]["train_loss"]) == 1
    torch.testing.assert_close(saved["model"], expected.state_dict(), rtol=0, atol=0)


EPOCHS = 4
DEADLY = {  # moment -> what dies, and at which call; an epoch has five steps and one write
    "first step": ("step", 1),
    "between two checkpoints": ("step", 8),
    "half of the first file": ("half", 1),
    "half of a file": ("half", 2),
    "before the rename": ("rename", 3),
    "after the rename": ("renamed", 2),
}


def train(path, what=None, call=None):
    """Train in this process, which kills itself where `what` happens for the `call`-th time; True when it did not."""
    torch.set_num_threads(1)
    save, rename, calls = torch.save, os.replace, 0

    def now(here):
        nonlocal calls
        calls += here == what
        if here == what and calls == call:
            os.kill(os.getpid(), signal.SIGKILL)

    def half_first(state, file):
        save(state, file)
        file.flush()
        file.truncate(file.tell() // 2)
        now("half")
        file.seek(0)
        save(state, file)

    def watched(*paths):
        now("rename")
        rename(*paths)
        now("renamed")

    torch.save, os.replace = half_first, watched
    bnlib.fit(
        bnlib.lenet(),
        rows(),
        epochs=EPOCHS,
        checkpoint=path,
        schedule="cosine",
        on_step=lambda step: now("step"),
        **FAST,
    )


@pytest.fixture(scope="module")
def start():
    """A function that starts `train` in a process forked from one that has torch, all of it, but no thread, in it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "bnlib.training", "pytest"])

    def start(*arguments):
        process = context.Process(target=train, args=arguments)
        process.start()
        return process

    return start


@pytest.fixture(scope="module")
def uninterrupted(start, tmp_path_factory):
    path = tmp_path_factory.mktemp("uninterrupted") / "run.pt"
    start(path).join()
    return outcome(path)


def outcome(path):
    state = torch.load(path)
    assert state["history"].pop("seconds") > 0
    assert state["history"].pop("examples_per_second") > 0
    return state


def resume_and_compare(start, path, uninterrupted):
    survivor = start(path)
    survivor.join()
    assert survivor.exitcode == 0
    assert os.listdir(path.parent) == ["run.pt"]
    found = outcome(path)
    assert found["history"] == uninterrupted["history"]
    for key in ("model", "shuffle"):
        torch.testing.assert_close(found[key], uninterrupted[key], rtol=0, atol=0)


@pytest.mark.parametrize("moment", DEADLY)
def test_a_killed_training_goes_on_as_if_nothing_had_been(start, uninterrupted, tmp_path, moment):
    path = tmp_path / "run.pt"
    what, call = DEADLY[moment]
    victim = start(path, what, call)
    victim.join()
    assert victim.exitcode == -signal.SIGKILL
    done = {"step": call // 5, "half": call - 1, "rename": call - 1, "renamed": call}[what]
    assert path.exists() == (done > 0)
    if done:
        assert len(torch.load(path)["history"]["train_loss"]) == done
    resume_and_compare(start, path, uninterrupted)


def test_a_training_killed_from_outside_again_and_again_arrives(start, uninterrupted, tmp_path):
    path = tmp_path / "run.pt"
    for patience in (0.03, 0.3, 0.1):  # seconds after the last sign of life
        before = path.stat().st_mtime_ns if path.exists() else 0
        victim = start(path)
        while victim.is_alive() and (not path.exists() or path.stat().st_mtime_ns == before):
            time.sleep(0.005)
        time.sleep(patience)
        victim.kill()
        victim.join()
    resume_and_compare(start, path, uninterrupted)


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
