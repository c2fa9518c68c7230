"""Real gloo processes against one process with the whole batch; torchrun, with processes killed in the middle."""

import contextlib
import dataclasses
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from multiprocessing import connection
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from small_images import rows
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import bnlib
from bnlib import batch_norm, workers
from bnlib.distributed import batch_norm_sync, main, run, synchronise
from bnlib.exercises import bugs
from bnlib.explore.lesson08 import messages
from bnlib.processes import share

BOUND = dict(rtol=1e-9, atol=1e-9)
STEPS, BATCH = 20, 24


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# ---- any split of a batch: each of 20 steps has other shares, some of them empty


def network(package, momentum):
    """Return a small network with the layers of `package`; the second one has neither γ, β nor running statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3),
            package.BatchNorm2d(3, momentum=momentum),
            nn.Sigmoid(),
            nn.Conv2d(3, 2, 2),
            package.BatchNorm2d(2, affine=False, track_running_stats=False),
            nn.Flatten(),
            nn.Linear(8, 4),
            package.BatchNorm1d(4, momentum=momentum),
        ).double()


def splits(processes, seed):
    """Return for each step how many images each process gets: drawn at random, and the extremes."""
    generator = seeded(seed)
    drawn = [torch.randint(processes, (BATCH,), generator=generator).bincount(minlength=processes)]
    for _ in range(STEPS - 4):
        edges = torch.randint(BATCH + 1, (processes - 1,), generator=generator).sort().values.tolist()
        drawn.append(torch.tensor([0, *edges, BATCH]).diff())
    most, none = torch.zeros(2, processes, dtype=torch.long)
    most[:2] = torch.tensor([BATCH - 1, 1])
    none[-1] = BATCH
    return [split.tolist() for split in (most, none, *drawn, none.flip(0))]


def steps(package, momentum, processes, rank=None):
    """Return outputs, gradients and buffers of 20 steps, in one process (rank None) or in this one of several."""
    model = network(package, momentum)
    forward = model if rank is None else DistributedDataParallel(synchronise(model), forward_sync_buffers=False)
    optimizer, generator, found = torch.optim.SGD(model.parameters(), lr=0.1), seeded(0), []
    for k, split in enumerate(splits(processes, 0)):
        x = torch.randn(BATCH, 1, 5, 5, generator=generator, dtype=torch.float64) * (1 + k) + 3 * k
        weights = torch.randn(BATCH, 4, generator=generator, dtype=torch.float64)
        here = slice(None) if rank is None else slice(sum(split[:rank]), sum(split[: rank + 1]))
        y = forward(x[here])
        optimizer.zero_grad()
        ((y.sin() * weights[here]).sum() * (1 if rank is None else processes)).backward()
        model[1].eval(), model[-1].eval()  # the layer without running statistics takes the batch's here, too
        evaluated = model(x[here]).detach()
        model.train()
        gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        found.append(
            {"y": y.detach(), "evaluated": evaluated, **gradients, **{k: v.clone() for k, v in model.named_buffers()}}
        )
        optimizer.step()
    return found


# ---- what else the processes of one group are asked; one start of them serves many tests


def accumulated(rank=None):
    """Return gradients and buffers after two unequal micro-batches, the first without a message about gradients."""
    model = network(bnlib, 0.1)
    forward = model if rank is None else DistributedDataParallel(synchronise(model), forward_sync_buffers=False)
    x = torch.randn(BATCH, 1, 5, 5, generator=seeded(1), dtype=torch.float64)
    processes = 1 if rank is None else dist.get_world_size()
    for k, micro in enumerate((x[:7], x[7:])):
        with contextlib.nullcontext() if rank is None or k else forward.no_sync():
            (forward(share(micro) if rank is not None else micro).sin().sum() * processes).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()} | dict(model.named_buffers())


def grouped(rank):
    """Return output, gradient and running mean of a layer in a group of two processes of four, and an error."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    layer = synchronise(bnlib.BatchNorm1d(3).double(), groups[rank // 2])
    x = share(torch.randn(10, 3, generator=seeded(2), dtype=torch.float64)).requires_grad_()
    y = layer(x)
    (y.sin() * y.detach()).sum().backward()
    try:
        synchronise(bnlib.BatchNorm1d(3).double(), groups[1 - rank // 2])(x)
    except ValueError as error:
        return {"y": y.detach(), "x": x.grad, "mean": layer.running_mean, "error": str(error)}


def said_of(work):
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def one_value():
    batch_norm_sync(torch.ones(1 - min(dist.get_rank(), 1), 3), None, None, training=True)


def halves(rank):
    """Return float16 values, normalised in float32 as the whole batch is."""
    x = torch.randn(9, 3, generator=seeded(3)).mul(300).half()
    return batch_norm_sync(share(x), torch.zeros(3), torch.ones(3), training=True)


def layer_h(rank=None):
    """Return the output of the layer with the bug H on its share of a batch, and the gradient of its input."""
    x = torch.randn(12, 3, 2, 2, generator=seeded(4), dtype=torch.float64)
    x = (x if rank is None else share(x)).requires_grad_()
    y = (bnlib.BatchNorm2d(3) if rank is None else bugs["H"].layer(3)).double()(x)
    (y.sin() * y.detach()).sum().backward()
    return {"y": y.detach(), "x": x.grad}


def asked(rank):
    processes = dist.get_world_size()
    return {
        "ours": steps(bnlib, 0.3, processes, rank),
        "ours, cumulative": steps(bnlib, None, processes, rank),
        "torch's": steps(nn, None, processes, rank),
        "accumulated": accumulated(rank),
        "halves": halves(rank),
        "one value": said_of(one_value),
        "means": workers.running_means(rank, torch.arange(24.0).view(4, 2, 3)),
        "layer H": layer_h(rank),
        "messages": workers.messages(rank, torch.rand(8, 1, 28, 28, generator=seeded(5)), torch.arange(8)),
        "grouped": grouped(rank) if processes == 4 else None,
    }


# ---- fit, in several processes


def double(images):
    return dataclasses.replace(
        images, train_images=images.train_images.double(), test_images=images.test_images.double()
    )


def small():
    """Return images for three batches of 24 and a last one of two, in float64."""
    images, cut = double(rows()), {"train": 74, "test": 41}
    return dataclasses.replace(
        images,
        **{
            f"{which}_{what}": getattr(images, f"{which}_{what}")[:n]
            for which, n in cut.items()
            for what in ("images", "labels")
        },
    )


def trained(images=None, *, norm="scratch", momentum=0.1, forgetful=False, **options):
    """Return all that a training leaves behind; a forgetful network keeps no running statistics."""
    model = synchronise(bnlib.lenet(norm, momentum=momentum).double())
    for layer in model if forgetful else ():
        if hasattr(layer, "running_mean"):
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
            layer.track_running_stats = False
    settings = {"epochs": 2, "batch_size": 24, "lr": 0.5} | options
    return figures(model, bnlib.fit(model, images or small(), progress=False, **settings))


def figures(model, history):
    epochs = [history.train_loss, history.train_accuracy, history.test_accuracy]
    points = torch.tensor(history.points, dtype=torch.float64)
    return dict(model.state_dict()) | {"epochs": torch.tensor(epochs, dtype=torch.float64), "points": points}


def stopping(rank, how):
    """Stop a training in its 5th step, in the last process alone: three ways to do it."""
    steps, last, model = [], dist.get_world_size() - 1, bnlib.lenet().double()

    def asked(step):
        steps.append(step.loss.item())
        if rank == last and len(steps) == 5:
            if how == "raised":
                raise KeyboardInterrupt
            return how == "returned"

    def pressed(layer, x):
        if layer.training and rank == last:
            steps.append(1)
            if len(steps) == 5:
                os.kill(os.getpid(), signal.SIGINT)

    options = {} if how == "pressed" else {"on_step": asked}
    if how == "pressed":
        model[0].register_forward_pre_hook(pressed)
    before = signal.getsignal(signal.SIGINT)
    history = bnlib.fit(synchronise(model), small(), epochs=9, batch_size=24, lr=0.5, progress=False, **options)
    assert signal.getsignal(signal.SIGINT) is before
    return figures(model, history) | ({"losses": torch.tensor(steps)} if options else {})


def lost(rank):
    """Return what is said when one image of one share is not a number, in a network that mixes no images."""
    images = small()
    images.train_images[7] = torch.nan
    return said_of(lambda: trained(images=images, norm="none"))


def plain(rank):
    """Return what a network with torch's layers says and becomes: each share has its own statistics."""
    calls, model, said = [], bnlib.lenet("torch").double(), io.StringIO()
    with contextlib.redirect_stdout(said):
        history = bnlib.fit(model, small(), epochs=2, batch_size=24, progress=True, on_epoch=lambda h: calls.append(1))
    return figures(model, history) | {"said": said.getvalue(), "calls": len(calls)}


def alone_in_the_first(rank):
    """Return what the first process measures by itself on a synchronised network; the others take no part."""
    model = synchronise(bnlib.lenet().double())
    if rank == 0:
        bnlib.reestimate_statistics(model, small(), batch_size=24)
        return {"accuracy": bnlib.evaluate(model, small())} | dict(model.state_dict())
    return {}


SETTINGS = {
    "as it is": {},
    "cumulative": {"momentum": None, "batch_size": 36, "schedule": "cosine"},
    "forgetful": {"forgetful": True},
}


def fitted(rank, folder):
    """Return, by what was tried, what came of it in this process."""
    processes = dist.get_world_size()
    trained(checkpoint=Path(folder) / f"of {processes}.pt", epochs=1)
    return {
        **{name: trained(**settings) for name, settings in SETTINGS.items()},
        **{how: stopping(rank, how) for how in ("returned", "raised", "pressed")},
        "resumed": trained(checkpoint=Path(folder) / "of 1.pt"),
        "lost": lost(rank),
        "plain": plain(rank),
        "first alone": alone_in_the_first(rank),
        "too small": said_of(lambda: trained(batch_size=processes - 1)),
        "other settings": said_of(lambda: trained(lr=0.5 + rank)),
        "damaged": said_of(lambda: trained(checkpoint=Path(folder) / "damaged.pt")),
        "nowhere": said_of(lambda: trained(checkpoint=Path(folder) / "nowhere" / "run.pt")),
    }


def everything(rank, folder):
    return asked(rank) | fitted(rank, folder)


@pytest.fixture(scope="module", params=[2, 4])
def together(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    (folder / "damaged.pt").write_bytes(b"not a checkpoint")
    trained(checkpoint=folder / "of 1.pt", epochs=1)
    return folder, run(everything, folder, processes=request.param)


@pytest.fixture
def answers(together):
    return together[1]


@pytest.mark.parametrize(
    ("name", "package", "momentum"),
    [("ours", bnlib, 0.3), ("ours, cumulative", bnlib, None), ("torch's", nn, None)],
)
def test_shares_of_any_size_give_what_one_process_gives_for_the_whole_batch(answers, name, package, momentum):
    processes = len(answers)
    for k, (split, whole) in enumerate(zip(splits(processes, 0), steps(package, momentum, processes), strict=True)):
        found = [answer[name][k] for answer in answers]
        pieces = {key: torch.cat([process[key] for process in found]) for key in ("y", "evaluated")}
        for rank, process in enumerate(found):
            for key, expected in whole.items():
                far = (pieces.get(key, process[key]) - expected).abs().max().item()
                assert far <= 1e-9 * expected.abs().max().clamp_min(1), f"{key}, step {k}, shares {split}: {far} apart"
                same = key in pieces or torch.equal(process[key], found[0][key])
                assert same, f"processes 0 and {rank} disagree about {key} in step {k}"


def test_accumulation_without_gradient_messages_equals_one_process_that_accumulates(answers):
    whole = accumulated()
    for answer in answers:
        torch.testing.assert_close(answer["accumulated"], whole, **BOUND)


def test_half_precision_is_averaged_in_float32(answers):
    x = torch.randn(9, 3, generator=seeded(3)).mul(300).half()
    found = torch.cat([answer["halves"] for answer in answers])
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, batch_norm(x, None, None, training=True))


def test_one_value_in_all_processes_together_is_refused_by_all(answers):
    for answer in answers:
        assert answer["one value"].startswith(
            "ValueError: Expected more than 1 value per channel when training, got 1 "
        )


@pytest.mark.parametrize("together", [4], indirect=True)
def test_a_group_is_a_batch_of_its_own_and_refuses_who_is_not_in_it(answers):
    whole = torch.randn(10, 3, generator=seeded(2), dtype=torch.float64)
    pairs = [[answer["grouped"] for answer in answers[i : i + 2]] for i in (0, 2)]
    for x, pair in zip((whole[:6], whole[6:]), pairs, strict=True):  # four processes have 3, 3, 2 and 2
        x = x.requires_grad_() if x.is_leaf else x.clone().requires_grad_()
        layer = bnlib.BatchNorm1d(3).double()
        y = layer(x)
        (y.sin() * y.detach()).sum().backward()
        torch.testing.assert_close(torch.cat([member["y"] for member in pair]), y.detach(), **BOUND)
        torch.testing.assert_close(torch.cat([member["x"] for member in pair]), x.grad, **BOUND)
        for member in pair:
            torch.testing.assert_close(member["mean"], layer.running_mean, **BOUND)
    for rank, answer in enumerate(answers):
        assert f"process {rank} is not in `group`" in answer["grouped"]["error"]


@pytest.mark.parametrize("together", [2], indirect=True)
def test_plain_statistics_are_each_process_its_own_and_synchronised_ones_are_the_batchs(answers):
    x = torch.arange(24.0).view(4, 2, 3)
    for half, answer in zip(x.chunk(2), answers, strict=True):
        plain, synchronised = answer["means"]
        torch.testing.assert_close(plain, half.mean([0, 2]))
        torch.testing.assert_close(synchronised, x.mean([0, 2]))


def agree(found, expected):
    """Check that every process has what one process has, and that they have it to the last bit."""
    for process in found:
        torch.testing.assert_close(process, expected, **BOUND)
        for name, value in process.items():
            assert torch.equal(value, found[0][name]), f"the processes disagree about {name}"


@pytest.mark.parametrize("name", SETTINGS)
def test_fit_in_several_processes_is_fit_in_one(together, name):
    agree([process[name] for process in together[1]], trained(**SETTINGS[name]))


@pytest.mark.parametrize("how", ["returned", "raised", "pressed"])
def test_all_stop_at_the_step_at_which_one_is_stopped(together, how):
    losses, model = [], bnlib.lenet().double()
    options = {"epochs": 9, "batch_size": 24, "lr": 0.5, "progress": False}
    history = bnlib.fit(model, small(), on_step=lambda s: losses.append(s.loss.item()) or len(losses) == 5, **options)
    expected = figures(model, history) | ({} if how == "pressed" else {"losses": torch.tensor(losses)})
    agree([process[how] for process in together[1]], expected)


def test_a_checkpoint_goes_on_in_any_number_of_processes(together):
    folder, found = together
    whole = trained()
    agree([process["resumed"] for process in found], whole)
    torch.testing.assert_close(trained(checkpoint=folder / f"of {len(found)}.pt"), whole, **BOUND)


def test_a_loss_that_is_lost_in_one_process_ends_all_of_them_with_one_message(together):
    _, found = together
    assert found[0]["lost"].startswith("FloatingPointError: the loss is nan in epoch 1, step ")
    assert {process["lost"] for process in found} == {found[0]["lost"]}


def test_plain_layers_are_named_once_and_leave_the_first_ones_statistics_to_all(together):
    _, found = together
    first, *others = [process["plain"] for process in found]
    assert first["said"].startswith("Each process normalises its own share of a batch in layer 1, 5, 10, 13; ")
    assert first["said"].count("\n") == 1
    assert first["calls"] == 2
    for other in others:
        assert other["said"] == ""
        assert other["calls"] == 0
        for name in first.keys() - {"said", "calls"}:
            assert torch.equal(first[name], other[name]), name
    assert first["points"][-1, 0] == 2


def test_the_first_process_measures_alone_while_the_others_do_something_else(together):
    _, found = together
    model = bnlib.reestimate_statistics(bnlib.lenet().double(), small(), batch_size=24)
    expected = {"accuracy": bnlib.evaluate(model, small())} | dict(model.state_dict())
    torch.testing.assert_close(found[0]["first alone"], expected, **BOUND)


def test_what_does_not_fit_is_said_by_all_processes(together):
    _, found = together
    for rank, process in enumerate(found):
        assert process["too small"].startswith(f"ValueError: batch_size must be {len(found)} or more, ")
        assert f"this one ({rank}) with" in process["other settings"]
        assert process["damaged"].startswith("ValueError: ")
        assert "damaged.pt is damaged" in process["damaged"]
        assert "make the folder" in process["nowhere"]


def test_layer_h_is_right_forth_and_wrong_back(answers):
    whole, found = layer_h(), [answer["layer H"] for answer in answers]
    torch.testing.assert_close(torch.cat([process["y"] for process in found]), whole["y"], **BOUND)
    gap = torch.cat([process["x"] for process in found]) - whole["x"]
    assert gap.norm() > 0.01 * whole["x"].norm()


def test_a_layer_sends_as_many_numbers_as_the_explorer_says(answers):
    sent = [messages(channels) for channels in (6, 16, 120, 84)]
    forth, back = [size for each in sent for size in each[:2]], [size for each in sent[::-1] for size in each[2:]]
    for answer in answers:
        assert answer["messages"] == [forth, back]


def test_without_other_processes_a_synchronised_network_is_the_network():
    x = torch.randn(8, 1, 5, 5, dtype=torch.float64)
    for momentum in (0.3, None):
        assert torch.equal(synchronise(network(bnlib, momentum))(x), network(bnlib, momentum)(x))


def second_fails(rank):
    if rank == 1:
        raise ArithmeticError("only the second process")
    return torch.zeros(1)


def second_is_killed(rank):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def both_fail(rank):
    if rank == 1:
        raise ArithmeticError("only the second process")
    dist.barrier()


@pytest.fixture(params=["at once", "late"])
def heard(request, monkeypatch):
    """Processes that end are heard of at once, or so late that those that failed of the first have ended, too."""
    wait, seconds = connection.wait, 2 * (request.param == "late")

    def wait_later(processes, timeout=None):
        time.sleep(seconds * (len(processes) > 1))
        return wait(processes, timeout)

    monkeypatch.setattr(connection, "wait", wait_later)


@pytest.mark.parametrize("worker", [second_fails, both_fail])
def test_an_error_in_one_process_is_raised_with_its_own_words(worker, heard):
    with pytest.raises(Exception, match="only the second process"):
        run(worker)


def test_a_killed_process_ends_the_others_and_is_named(heard):
    with pytest.raises(Exception, match="process 1 terminated with signal SIGKILL"):
        run(second_is_killed)


def two_passes(rank):
    x = torch.randn(2, 8, 1, 5, 5, generator=seeded(rank), dtype=torch.float64)
    gradients = []
    for package in (bnlib, nn):
        ddp = DistributedDataParallel(network(package, 0.3))
        (ddp(x[0]) * ddp(x[1])).sum().backward()  # the second one overwrites the buffers
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in ddp.parameters()]))
    return gradients


def test_a_second_pass_before_backward_does_not_disturb_the_first():
    (ours, torchs), others = run(two_passes)
    assert torch.equal(ours, others[0])
    assert torch.allclose(ours, torchs, **BOUND)


# ---- torchrun


def python(*arguments):
    """Run Python with these arguments, its processes with one thread each and without a network."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "BNLIB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def torchrun(*arguments, restarts=0):
    """Run a module or script in two processes on this machine."""
    command = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", f"--max-restarts={restarts}"
    return python(*command, *arguments)


KILLED = Path(__file__).with_name("killed.py")
TRAINING = ["--epochs=2", "--batch-size=16"]  # of 320 images: ten steps an epoch


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed") / "run.pt"
    result = python(KILLED, "", *TRAINING, f"--checkpoint={path}")
    assert result.returncode == 0, result.stderr
    return torch.load(path, weights_only=True)


def test_torchrun_starts_the_same_training_and_one_process_speaks():
    said = torchrun("-m", "bnlib.distributed", "--data=digits", "--epochs=1", "--batch-size=64").stdout
    alone = bnlib.fit(bnlib.lenet(), bnlib.load_images("digits"), epochs=1, batch_size=128, progress=False)
    assert said.count("Data: ") == said.count("epoch 1") == 1
    loss, speed = re.search(r"epoch 1: train loss ([\d.]+), .*; ([\d,]+) examples/s on cpu", said).groups()
    assert float(loss) == pytest.approx(alone.train_loss[0], abs=2e-3)
    assert int(speed.replace(",", "")) > 0


MANY = [
    "0:1:message:5",  # before there is any checkpoint
    "1:0:half written:1",
    "2:0:renamed:1",
    "3:1:step:5",  # in the middle of the second epoch, after one checkpoint
    "4:1:evaluation:1",
]


@pytest.mark.parametrize(
    ("start", "kills"),
    [(python, MANY), (partial(torchrun, restarts=1), ["0:1:step:15"])],  # torchrun as lesson 08 calls it
    ids=["many times", "once, by torchrun"],
)
def test_a_training_whose_processes_are_killed_ends_as_an_undisturbed_one(undisturbed, tmp_path, start, kills):
    path = tmp_path / "run.pt"
    result = start(KILLED, ";".join(kills), *TRAINING, f"--checkpoint={path}")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("KILLED") == len(kills), result.stderr
    found, expected = torch.load(path, weights_only=True), undisturbed
    for name in ("train_loss", "train_accuracy", "test_accuracy", "points"):
        assert found["history"][name] == expected["history"][name], name
    for name, tensor in expected["model"].items():
        assert torch.equal(found["model"][name], tensor), name
    assert list(tmp_path.iterdir()) == [path], "something half-written was left behind"


def test_without_restarts_the_others_end_and_torchrun_says_who_died(tmp_path):
    result = torchrun(KILLED, "0:1:step:5", *TRAINING, f"--checkpoint={tmp_path / 'run.pt'}")
    assert result.returncode == 1
    assert re.search(r"Root Cause.*rank +: 1 .*Signal 9 \(SIGKILL\)", result.stderr, re.S), result.stderr


def test_processes_that_do_not_meet_say_where_and_for_how_long_they_waited():
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        ports = [server.getsockname()[1] for server in (taken, free)]
        free.close()
        troubles = {
            "port taken": ("127.0.0.1", ports[0], 0),
            "one process too few": ("127.0.0.1", ports[1], 0),
            "no such address": ("nowhere.invalid", ports[1], 1),
        }
        started = {
            trouble: subprocess.Popen(
                [sys.executable, "-m", "bnlib.distributed", "--device=cpu", "--timeout=1"],
                env=os.environ
                | {"MASTER_ADDR": address, "MASTER_PORT": f"{port}", "RANK": f"{rank}", "WORLD_SIZE": "2"},
                stderr=subprocess.PIPE,
                text=True,
            )
            for trouble, (address, port, rank) in troubles.items()
        }
        said = {
            trouble: (*process.communicate(timeout=120), process.returncode) for trouble, process in started.items()
        }
    for trouble, (_, words, code) in said.items():
        address, port, rank = troubles[trouble]
        assert code == 2, (trouble, words)
        assert (
            f"process {rank} of 2 did not meet the others at {address}:{port} (1 seconds is the most it waits): "
            in words
        )
        assert words.splitlines()[-1].startswith("Does the first process run there"), trouble


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs=0"], "epochs must be a whole number, 1 or more, got 0"),
        (["--batch-size=many"], "argument --batch-size: invalid int value: 'many'"),
        (["--data=cifar"], "unknown data set 'cifar'"),
        (["--checkpoint=nowhere/run.pt"], "make the folder nowhere first"),
    ],
)
def test_the_script_says_what_is_wrong_in_a_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--device=cpu", "--data=digits", *arguments])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_checkpoint_of_another_whole_batch_is_refused_with_how_it_comes_about(tmp_path, capsys):
    arguments = ["--device=cpu", "--data=digits", "--epochs=1", f"--checkpoint={tmp_path / 'run.pt'}"]
    main([*arguments, "--batch-size=512"])
    with pytest.raises(SystemExit):
        main([*arguments, "--batch-size=256"])
    assert "it has batch_size 512, now 256 (1 processes of 256)" in capsys.readouterr().err
