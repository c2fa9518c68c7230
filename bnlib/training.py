"""The training loop, evaluation, and running statistics estimated anew.

The data set moves to the device once, batches are index selections there, and sums stay there until they are read,
five times an epoch: no step waits for the host only to print. On a CUDA device a step is recorded once and replayed.
In a process group (`distributed.py`) each process takes its share of every batch: the same figures, from more machines.
"""

import contextlib
import copy
import io
import math
import sys
import time
import warnings
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from .checkpoint import load_checkpoint, save_checkpoint
from .history import History, Point
from .layers import BatchNorm
from .processes import from_first, interrupts_held, send_buffers, share, total, world

SCHEDULES = {  # share of the training done -> factor of the learning rate
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}
PRECISIONS = ("float32", "tf32", "bfloat16")
POINTS_PER_EPOCH = 5
RECORDING = ("cuda",)  # kinds of devices whose work torch can record and replay


class Step(NamedTuple):
    """What `on_step` gets: `epoch`, how many are done (a fraction); `loss` (), on the device; `model`."""

    epoch: float
    loss: Tensor
    model: nn.Module


def fit(
    model: nn.Module,
    images,
    *,
    epochs=10,
    batch_size=256,
    lr=1.0,
    schedule="constant",
    device="auto",
    seed=0,
    checkpoint=None,
    on_step=None,
    on_epoch=None,
    progress=True,
    precision="float32",
    compile=False,
) -> History:
    """Train `model` with stochastic gradient descent on the cross-entropy, in place; return the training's `History`.

    images      what `load_images` returns
    epochs      passes over the training images. A last batch of one image is left out: batch normalization has no
                statistics for it. So is one of which a process would get one image to normalise by itself
    lr          learning rate; schedule "constant", or "cosine", which takes it down to 0
    device      "auto": cuda, else mps, else cpu; or a name that torch knows. The model moves there and stays there; on
                the CPU, unless it holds torch's own BatchNorm2d, its convolutions are then laid out channels last
    seed        shuffles the images, nothing else. The same seed on the same processor gives the same history
    checkpoint  a path, written after each epoch; if it exists, the training goes on from there
    on_step     called with a `Step` after each step; when what it returns is true, the training stops there
    on_epoch    called with the history after each epoch
    progress    show a progress bar
    precision   "float32"; "tf32" and "bfloat16" give up digits for speed where the hardware has them
    compile     run the model through torch.compile, which needs a C++ compiler and a while before the first step

    In a process group, all processes call it alike, with the same images. `batch_size` counts the whole batch, of which
    each process takes a share; weights, shuffling and checkpoint are the first process's, and it alone shows progress,
    calls `on_epoch` and writes. All stop at the same step, whichever was interrupted or had `on_step` return true.

    Interrupted (the kernel's stop button), it returns what there is. Raises ValueError for an argument or a label out
    of range and for a device that is not there, FloatingPointError when loss or weights are no longer finite (the
    checkpoint is then the last good one), RuntimeError where torch.compile does not work.
    """
    rank, processes = world()
    _check_settings(epochs, batch_size, lr, schedule, precision, processes)
    lr, device = float(lr), find_device(device)
    classes = _check_images(images)
    model.to(device)
    if device.type == "cpu":
        torch.empty(7 << 20)  # once so much was taken and freed, glibc keeps what steps free for the steps that follow
    x, y = images.train_images.to(device), images.train_labels.to(device)
    test = images.test_images.to(device), images.test_labels.to(device)
    _check_outputs(model, x[:2], classes)
    if device.type == "cpu":
        _channels_last(model, x[:2])
    rate = torch.tensor(lr, device=device)  # a tensor, because a recorded step cannot see a new number
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, fused=True)
    shuffle = torch.Generator().manual_seed(seed)
    settings = {"batch_size": batch_size, "lr": lr, "schedule": schedule, "seed": seed, "examples": len(x)}
    if schedule != "constant":
        settings["epochs"] = epochs  # a longer training would have had other learning rates from the start

    arguments = settings | {"epochs": epochs}

    def begin():
        history = load_checkpoint(checkpoint, model, shuffle, settings) if checkpoint is not None else None
        return history or History(), shuffle.get_state(), arguments

    history, state, first = from_first(begin, device)
    if total(torch.tensor(float(first != arguments), device=device)):
        raise ValueError(
            f"the processes have different settings: the first trains with {first}, this one ({rank}) with {arguments}"
        )
    shuffle.set_state(state)
    history.device = str(device)
    forward, smallest = model, 2  # images in a batch
    if processes > 1:
        forward = DistributedDataParallel(model, forward_sync_buffers=False)  # sends the first one's weights to all
        alone = [name for name, layer in normalising(model).items() if "forward" not in vars(layer)]
        if alone:
            smallest = 2 * processes
            if rank == 0:
                print(
                    f"Each process normalises its own share of a batch in layer {', '.join(alone)}; the first one's "
                    "running statistics stay. For the whole batch's: bnlib.distributed.synchronise(model)."
                )
    forward = _compiled(forward, device) if compile else forward
    # of losses and of right answers in this process, since they were last read
    sums = torch.zeros(2, device=device, dtype=torch.promote_types(x.dtype, torch.float32))

    def step(indices):
        mine = share(indices)  # may be empty: a mean over it would be nan
        labels = y[mine]
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            logits = forward(x.index_select(0, mine))  # (B, classes); x[mine] would take six times as long
            loss = F.cross_entropy(logits, labels, reduction="sum") / len(indices)
        optimizer.zero_grad()
        (loss * processes).backward()  # DistributedDataParallel divides by the number of processes
        optimizer.step()
        right = (logits.detach().argmax(1) == labels).sum()
        sums.add_(torch.stack([loss.detach() * len(indices), right]))
        return loss.detach()

    def wants_to_stop(epoch, loss):
        try:
            return bool(on_step(Step(epoch, loss, model)))
        except KeyboardInterrupt:
            if processes == 1:
                raise
            return True

    done = len(history.train_loss)
    watched = device.type == "cpu" or on_step is not None  # each step is looked at: the others, only when sums are read
    with (
        contextlib.suppress(KeyboardInterrupt),
        interrupts_held() as interrupts,
        _tf32(precision == "tf32"),
        _bar(epochs, done, progress and not rank) as bar,
    ):
        if device.type in RECORDING and processes == 1:  # torch asks for more before it records a shared step
            model.train()
            changing = [*model.parameters(), *model.buffers(), sums]
            step = replayed(step, torch.arange(min(batch_size, len(x)), device=device), changing)
        for epoch in range(done, epochs):
            model.train()
            batches = torch.randperm(len(x), generator=shuffle).to(device).split(batch_size)
            if len(batches[-1]) < smallest <= batch_size:
                batches = batches[:-1]
            reads = {len(batches) * fifth // POINTS_PER_EPOCH for fifth in range(1, POINTS_PER_EPOCH + 1)}
            seen, parts = 0, []
            start = time.perf_counter()
            for i, indices in enumerate(batches, 1):
                rate.fill_(lr * SCHEDULES[schedule]((epoch + (i - 1) / len(batches)) / epochs))
                loss = step(indices)
                seen += len(indices)
                stop = on_step is not None and wants_to_stop(epoch + i / len(batches), total(loss))
                lost = device.type == "cpu" and not loss.isfinite()
                if processes > 1 and (watched or i in reads):
                    flags = torch.tensor([stop or bool(interrupts), lost], dtype=torch.int32, device=device)
                    stop, lost = total(flags).tolist()
                if i in reads or stop or lost:
                    parts.append((seen, *total(sums).tolist()))
                    sums.zero_()
                    seen = 0
                    history.points.append(_point(epoch + i / len(batches), [parts[-1]]))
                    _check_finite("loss", history.points[-1].loss, epoch, i, lr)
                bar.update(epoch + i / len(batches) - bar.n)
                if stop:
                    send_buffers(model)
                    return history
            mean = _point(epoch + 1, parts)
            seconds = time.perf_counter() - start
            send_buffers(model)
            accuracy = _accuracy(model, *test, together=True)
            history.train_loss.append(mean.loss)
            history.train_accuracy.append(mean.accuracy)
            history.test_accuracy.append(accuracy)
            history.seconds += seconds
            history.examples_per_second = (epoch + 1) * sum(part[0] for part in parts) / history.seconds
            bar.set_postfix_str(f"loss {mean.loss:.3f}, test accuracy {accuracy:.3f}")
            if checkpoint is not None:
                size = sum(parameter.detach().abs().sum() for parameter in model.parameters())
                _check_finite("sum of the weights' sizes", float(size), epoch, len(batches), lr)
                from_first(lambda: save_checkpoint(checkpoint, model, shuffle, history, settings), device)
            if on_epoch is not None and not rank:
                on_epoch(history)
    return history


def replayed(step, example, changing):
    """Return `step`, recorded as a CUDA graph: its hundred kernels are launched as one, which is most of their time.

    step      a function of indices (B,) on the device that returns a tensor
    example   indices (B,); batches of another length are taken by `step` itself
    changing  the tensors that a step changes in place; the steps that torch wants before a recording leave no trace

    A replay sees what has become of these tensors since, but no new values of Python's, such as a layer's momentum.
    Where recording fails, as in a step that waits for the host, one line says so and `step` itself is returned.
    """
    indices = example.clone()  # where the recorded step looks for its batch
    before = [tensor.detach().clone() for tensor in changing]
    waiting = torch.cuda.get_sync_debug_mode()
    try:
        with torch.cuda.device(example.device), warnings.catch_warnings(action="ignore"):  # of a prototype, the mode
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            torch.cuda.set_sync_debug_mode("error")  # a wait for the host comes to light here, not amid the recording
            with torch.cuda.stream(stream):
                for _ in range(3):
                    step(indices)
            torch.cuda.set_sync_debug_mode(waiting)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                result = step(indices)
    except RuntimeError as error:
        print(f"Plain steps, because no CUDA graph could be recorded: {str(error).partition(chr(10))[0]}")
        return step
    finally:
        torch.cuda.set_sync_debug_mode(waiting)
        torch.cuda.synchronize(example.device)  # the other stream may still be at work on these tensors
        with torch.no_grad():
            for tensor, was in zip(changing, before, strict=True):
                tensor.copy_(was)

    def replay(batch):
        if len(batch) != len(indices):
            return step(batch)
        indices.copy_(batch)
        graph.replay()
        return result.clone()  # the next replay writes over it

    return replay


def evaluate(model, images, *, batch_size=256) -> float:
    """Return the share of right answers, 0 to 1, of `model` on the test images, in evaluation mode.

    Runs on the model's device; the model is then in the mode it was in.
    """
    device = _device_of(model)
    return _accuracy(model, images.test_images.to(device), images.test_labels.to(device), batch_size)


def reestimate_statistics(model, images, *, batch_size=256, batches=None):
    """Return `model`, the running statistics of its batch normalization layers estimated anew, all weights frozen.

    Each running mean and variance becomes the cumulative average over batches of training images, in their order, in
    one pass: "precise BN", Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3. Where a forward pass fails,
    they are what they were. In a process group it works in this process alone.

    images    what `load_images` returns, or a tensor (N, ...), either cut into batches of `batch_size`, a last, shorter
              one left out unless it is the only one; or a loader, whose batches are tensors, or begin with one
    batches   how many; None for all
    Raises ValueError if batches or batch_size is not at least 1 or a loader has none, TypeError for other data.
    """
    for name, number in (("batch_size", batch_size), ("batches", 1 if batches is None else batches)):
        _check_count(name, number)
    layers = [module for module in model.modules() if getattr(module, "running_mean", None) is not None]
    momenta = {layer: layer.momentum for layer in layers}
    before = {layer: copy.deepcopy(layer.state_dict()) for layer in layers}
    synchronised = {layer: vars(layer).pop("forward") for layer in layers if "forward" in vars(layer)}
    device = _device_of(model)
    try:
        with evaluating(model), torch.no_grad():
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None
                layer.train()
            for batch in islice(_batches(images, batch_size), batches):
                model(batch.to(device))
    except BaseException:  # interrupted, too
        for layer, state in before.items():
            layer.load_state_dict(state)
        raise
    finally:
        for layer, momentum in momenta.items():
            layer.momentum = momentum
        for layer, forward in synchronised.items():
            layer.forward = forward
    return model


def _batches(images, batch_size):
    """Yield batches of training images, as `reestimate_statistics` takes them."""
    x = getattr(images, "train_images", images)
    if isinstance(x, Tensor):
        yield from x.split(batch_size)[: max(len(x) // batch_size, 1)]
        return
    if not hasattr(x, "__iter__"):
        raise TypeError(f"expected what load_images returns, a tensor or a loader, got {type(images).__name__}")
    batch = None
    for batch in x:
        first = batch[0] if isinstance(batch, list | tuple) else batch
        if not isinstance(first, Tensor):
            raise TypeError(f"expected batches that are tensors, or begin with one; got {type(first).__name__}")
        yield first
    if batch is None:
        raise ValueError("there is no batch to take statistics from")


@contextlib.contextmanager
def evaluating(model):
    """Put `model` into evaluation mode for a while; every module is then in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield model.eval()
    finally:
        for module, mode in modes.items():
            module.training = mode


def find_device(name="auto") -> torch.device:
    """Return the device called `name`; "auto" is cuda if there is one, else mps, else cpu.

    Raises ValueError if torch does not know it or it is not there.
    """
    here = [
        *(f"cuda:{i}" for i in range(torch.cuda.device_count())),
        *(["mps"] if torch.backends.mps.is_available() else []),
        "cpu",
    ]
    if name == "auto":
        return torch.device(here[0].split(":")[0])
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f'device {name!r} is not there; this machine has {", ".join(here)}, and "auto"') from error
    return device


def _accuracy(model, x, y, batch_size=256, together=False):
    """Return the share of right answers; larger batches would scatter the memory that training steps use again."""
    mine = share if together else lambda batch: batch
    with evaluating(model), torch.inference_mode():
        right = sum(
            (model(mine(part)).argmax(1) == mine(labels)).sum()
            for part, labels in zip(x.split(batch_size), y.split(batch_size), strict=True)
        )
        return (total(right) if together else right).item() / len(y)


def normalising(model) -> dict[str, nn.Module]:
    """Return the batch normalization layers of `model` by name, ours and torch's, but those that torch synchronises."""
    kinds = BatchNorm | nn.modules.batchnorm._BatchNorm
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, kinds) and not isinstance(layer, nn.SyncBatchNorm)
    }


def _compiled(model, device):
    """Return torch.compile(model), after a trial on one addition: the model's own failure would come late and long."""
    try:
        torch.compile(lambda x: x + 1)(torch.ones(2, device=device))
    except Exception as error:  # torch names no class for it
        raise RuntimeError(
            "compile=True needs what torch.compile needs: a C++ compiler such as g++, on a GPU Triton, too. "
            f"Install it or leave compile out; here torch says: {str(error).partition(chr(10))[0]}"
        ) from error
    return torch.compile(model)


def _device_of(model):
    return next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))


def _point(epoch, parts):
    """Return the averages over `parts`, each (examples, sum of losses, right answers)."""
    examples, loss, right = (sum(column) for column in zip(*parts, strict=True))
    return Point(epoch, loss / examples, right / examples)


@contextlib.contextmanager
def _tf32(allowed):
    """Allow or forbid TensorFloat-32, which torch takes in convolutions unasked; afterwards, as it was."""
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = allowed
        yield
    finally:
        for place, was in zip(places, before, strict=True):
            place.allow_tf32 = was


class _NotebookBar(tqdm):
    """tqdm as one line of text in a notebook's output, empty when it is done, so that nothing of it is stored."""

    def display(self, msg=None, pos=None):
        text = {"text/plain": str(self) if msg is None else msg}
        if not hasattr(self, "handle"):
            from IPython.display import display  # only a notebook needs it

            self.handle = display(text, raw=True, display_id=True)
        else:
            self.handle.update(text, raw=True)


def _bar(epochs, done, progress):
    """Return a progress bar over `epochs`, `done` of them behind it: for a notebook, for a terminal, elsewhere none."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    notebook = hasattr(shell, "kernel")
    return (_NotebookBar if notebook else tqdm)(
        total=epochs,
        initial=done,
        unit="epoch",
        mininterval=0.5,
        bar_format="{percentage:3.0f} %|{bar:20}| epoch {n:.1f} of {total} [{elapsed}<{remaining}] {postfix}",
        file=io.StringIO() if notebook else None,
        leave=not notebook,
        disable=not progress or (False if notebook else None),  # None: unless it is a terminal
    )


def _check_settings(epochs, batch_size, lr, schedule, precision, processes):
    _check_count("epochs", epochs)
    _check_count("batch_size", batch_size)
    if batch_size < processes:
        raise ValueError(
            f"batch_size must be {processes} or more, an image for each of the {processes} processes, got {batch_size}"
        )
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be a positive number, got {lr!r}")
    for name, value, known in (("schedule", schedule, SCHEDULES), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def _check_count(name, number):
    if not isinstance(number, int) or number < 1:
        raise ValueError(f"{name} must be a whole number, 1 or more, got {number!r}")


def _check_images(images):
    """Return the number of classes, once the labels are known to lie in them."""
    classes = len(images.class_names)
    for name in ("train", "test"):
        x, y = getattr(images, f"{name}_images"), getattr(images, f"{name}_labels")
        if len(x) != len(y) or not len(x):
            raise ValueError(f"expected one label for each {name} image, got {len(x)} images and {len(y)} labels")
        if y.min() < 0 or y.max() >= classes:
            raise ValueError(
                f"{name} labels must lie in 0 to {classes - 1}, one for each of the {classes} class names; "
                f"got {y.min().item()} to {y.max().item()}"
            )
    return classes


def _check_outputs(model, x, classes):
    """Raise ValueError unless `model` turns x (B, ...) into one number for each class."""
    with evaluating(model), torch.no_grad():  # not inference_mode, in which a lazy layer would make what cannot train
        shape = tuple(model(x).shape)
    if shape != (len(x), classes):
        raise ValueError(
            f"the model must return (B, {classes}), one number for each class; for {len(x)} images it gave {shape}"
        )


def _channels_last(model, x):
    """Lay the convolutions out channels last, where they are faster on a CPU, if `model` then still takes x."""
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):  # torch's own is slower there
        return
    try:
        with evaluating(model.to(memory_format=torch.channels_last)), torch.no_grad():
            model(x)
    except RuntimeError:  # weights with five axes, or a `view` in its forward pass
        model.to(memory_format=torch.contiguous_format)


def _check_finite(name, value, epoch, step, lr):
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the {name} is {value} in epoch {epoch + 1}, step {step}: the weights have run away. "
            f"Try a learning rate below {lr}, or batch normalization."
        )
