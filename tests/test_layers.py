"""The three layers against `torch.nn`: PyTorch's own samples, and everything a layer does beside its forward pass."""

import copy
import pickle
import re
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn.functional import batch_norm as torchs_batch_norm
from torch.testing._internal.common_methods_invocations import sample_inputs_batch_norm
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

import bnlib
from bnlib.compare import BOUNDS

torch.backends.m.__allow_nonbracketed_mutation_flag = True  # importing torch's samples forbids the flags that fit sets

RANKS = {1: (4, 3, 5), 2: (4, 3, 5, 6), 3: (4, 3, 2, 3, 2)}
LAYERS = [(getattr(bnlib, f"BatchNorm{d}d"), getattr(nn, f"BatchNorm{d}d"), shape) for d, shape in RANKS.items()]
EVERY_LAYER = pytest.mark.parametrize(("ours", "theirs", "shape"), LAYERS, ids=["1d", "2d", "3d"])
EVERY_DTYPE = pytest.mark.parametrize("dtype", list(BOUNDS), ids=lambda dtype: str(dtype).removeprefix("torch."))
SAMPLES = {info.name: info for info in module_db if info.name.startswith("nn.BatchNorm")}


def assert_close(ours, theirs):
    relative, absolute = BOUNDS.get(ours.dtype, (0, 0))
    torch.testing.assert_close(ours, theirs, rtol=relative, atol=absolute, equal_nan=True)


def assert_all_close(ours, theirs):
    """Outputs and buffers within their bounds, and gradients, whose values are compared in float64."""
    for a, b in zip(ours[0], theirs[0], strict=True):
        assert_close(a, b)
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if a.dtype == torch.float64:
            assert_close(a, b)


def ours_for(theirs, *args, **kwargs):
    return getattr(bnlib, theirs.__name__)(*args, **kwargs)


@EVERY_DTYPE
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", SAMPLES)
def test_pytorchs_own_module_samples(name, dtype, training):
    torch.manual_seed(0)  # the samples are drawn at random
    info = SAMPLES[name]
    samples = info.module_inputs_func(info, "cpu", dtype, requires_grad=True, training=training)
    assert samples
    for sample in samples:
        made, call = sample.constructor_input, sample.forward_input
        theirs = info.module_cls(*made.args, **made.kwargs).to(dtype).train(training)
        ours = ours_for(info.module_cls, *made.args, **made.kwargs).to(dtype).train(training)
        for _ in range(2):
            results = []
            for layer in (ours, theirs):
                x = call.args[0].detach().clone().requires_grad_()
                y = layer(x, **call.kwargs)
                w = torch.linspace(-1, 2, y.numel(), dtype=dtype).view(y.shape)
                gradients = torch.autograd.grad((y * w).sum(), [x, *layer.parameters()])
                results.append(([y, *layer.buffers()], gradients))
            assert_all_close(*results)


@pytest.mark.parametrize("name", SAMPLES)
def test_pytorchs_own_module_error_samples(name):
    info = SAMPLES[name]
    samples = info.module_error_inputs_func(info, "cpu", torch.float64, requires_grad=False, training=True)
    assert samples
    for sample in samples:
        assert sample.error_on == ModuleErrorEnum.FORWARD_ERROR
        made, call = sample.module_error_input.constructor_input, sample.module_error_input.forward_input
        layer = ours_for(info.module_cls, *made.args, **made.kwargs)
        with pytest.raises(sample.error_type, match=sample.error_regex):
            layer(*call.args, **call.kwargs)


@EVERY_DTYPE
@pytest.mark.parametrize("norm", [bnlib.batch_norm, bnlib.batch_norm_loops])
def test_pytorchs_own_operator_samples(norm, dtype):
    torch.manual_seed(0)
    samples = list(sample_inputs_batch_norm(None, "cpu", dtype, requires_grad=True))
    assert samples
    for sample in samples:
        results = []
        for function in (norm, torchs_batch_norm):
            tensors = [
                None if t is None else t.detach().clone().requires_grad_(t.requires_grad)
                for t in (sample.input, *sample.args)
            ]
            y = function(*tensors, **sample.kwargs)
            asked = [t for t in tensors if t is not None and t.requires_grad]
            w = torch.linspace(-1, 2, y.numel(), dtype=dtype).view(y.shape)
            running = [t for t in tensors[1:3] if t is not None]
            results.append(([y, *running], torch.autograd.grad((y * w).sum(), asked)))
        assert_all_close(*results)


FLAGS = [
    dict(zip(("momentum", "affine", "bias", "track_running_stats", "eps"), values, strict=True))
    for values in product((0.1, 1.0, None), (True, False), (True, False), (True, False), (1e-5, 0.3))
]


@EVERY_LAYER
@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: "-".join(map(str, flags.values())))
def test_every_combination_of_flags_through_training_and_evaluation(ours, theirs, shape, flags):
    generator = torch.Generator().manual_seed(0)
    a, b = ours(3, **flags, dtype=torch.float64), theirs(3, **flags, dtype=torch.float64)
    assert repr(a) == repr(b)
    assert [name for name, _ in a.named_parameters()] == [name for name, _ in b.named_parameters()]
    for parameter in b.parameters():
        parameter.data.normal_(generator=generator)
    a.load_state_dict(b.state_dict())
    for training in (True, True, True, False, True, False):
        x = torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + 1
        results = []
        for layer in (a.train(training), b.train(training)):
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            results.append(([y, *layer.buffers()], torch.autograd.grad((y * x).sum(), [leaf, *layer.parameters()])))
        assert_all_close(*results)
    a.reset_parameters()
    b.reset_parameters()
    assert_same_state(a, b)


def assert_same_state(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    assert list(ours) == list(theirs)
    assert ours._metadata == theirs._metadata
    for name, tensor in theirs.items():
        assert_close(ours[name], tensor)
        assert ours[name].dtype == tensor.dtype


@EVERY_LAYER
def test_state_dicts_go_both_ways(ours, theirs, shape):
    for first, second in ((ours(3), theirs(3)), (theirs(3), ours(3))):
        first(torch.randn(shape) * 3 + 1)
        first.weight.data.normal_()
        second.load_state_dict(first.state_dict())
        assert_same_state(first, second)


@EVERY_LAYER
@pytest.mark.parametrize("version", [None, 1])
def test_a_state_dict_from_before_the_batches_were_counted(ours, theirs, shape, version):
    layers = ours(3), theirs(3)
    for layer in layers:
        layer(torch.zeros(shape))
        old = theirs(3).state_dict()
        del old["num_batches_tracked"]
        if version is None:
            old._metadata = {}
        else:
            old._metadata[""]["version"] = version
        layer.load_state_dict(old)
    assert_same_state(*layers)
    new = theirs(3).state_dict()
    del new["num_batches_tracked"]
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        layers[0].load_state_dict(new)


@EVERY_LAYER
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_is_equal_and_independent(ours, theirs, shape, copied):
    layer = ours(3, momentum=None)
    layer(torch.randn(shape))
    twin = copied(layer)
    assert_same_state(layer, twin)
    before = copy.deepcopy(layer.state_dict())
    twin(torch.randn(shape) + 5)
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())


@EVERY_LAYER
def test_to_moves_parameters_and_statistics_and_leaves_the_count_an_integer(ours, theirs, shape):
    for move in (lambda m: m.to(torch.float16), lambda m: m.half(), lambda m: m.double(), lambda m: m.to("meta")):
        a, b = move(ours(3)), move(theirs(3))
        for name, tensor in b.state_dict().items():
            assert a.state_dict()[name].dtype == tensor.dtype
            assert a.state_dict()[name].device == tensor.device
    x = torch.empty(shape, device="meta")
    assert a(x).shape == b(x).shape == shape
    assert a(x).device.type == "meta"
    on_meta = ours(3, device="meta", dtype=torch.float64)
    assert {t.device.type for t in on_meta.state_dict().values()} == {"meta"}
    assert on_meta.weight.dtype == torch.float64


@EVERY_LAYER
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_what_follows_may_write_into_the_output(ours, theirs, shape, training, last):
    values = torch.randn(shape)
    if last:
        values = values.movedim(1, -1).contiguous().movedim(-1, 1)
    results = []
    for make in (ours, theirs):
        layer, x = make(shape[1]).train(training), values.clone().requires_grad_()
        y = layer(x)
        y += 2 * x
        y.relu_()
        (y * torch.arange(y.numel()).view(y.shape)).sum().backward()
        results.append((y, x.grad, layer.weight.grad))
    assert_all_close(*results)


@pytest.mark.parametrize(
    ("ours", "shape", "memory_format"),
    [
        (bnlib.BatchNorm2d, (2, 3, 4, 5), torch.channels_last),
        (bnlib.BatchNorm3d, (2, 3, 4, 5, 2), torch.channels_last_3d),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_channels_last_stays_channels_last(ours, shape, memory_format, training):
    layer = ours(3).train(training)
    x = torch.randn(shape).contiguous(memory_format=memory_format).requires_grad_()
    y = layer(x)
    assert y.is_contiguous(memory_format=memory_format)
    y.backward(torch.ones_like(y))
    assert x.grad.is_contiguous(memory_format=memory_format)
    assert_close(y, layer.train(training)(x.contiguous()))


@EVERY_LAYER
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_half_precision_loses_no_more_than_one_rounding(ours, theirs, shape, dtype, training):
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 1).to(dtype)
    layer, exact = ours(3, dtype=dtype, momentum=0.3).train(training), theirs(3, dtype=torch.float64, momentum=0.3)
    layer.running_var.fill_(3)
    layer.running_mean.fill_(1)
    exact.load_state_dict(layer.state_dict())
    y, truth = layer(x), exact.train(training)(x.double())
    rounding = dict(rtol=torch.finfo(dtype).eps / 2 + 1e-6, atol=1e-6)
    torch.testing.assert_close(y.double(), truth, **rounding)
    torch.testing.assert_close(layer.running_mean.double(), exact.running_mean, **rounding)
    torch.testing.assert_close(layer.running_var.double(), exact.running_var, **rounding)


@EVERY_LAYER
def test_a_wrong_rank_gets_torchs_sentence_the_shapes_taken_and_the_layer_that_takes_it(ours, theirs, shape):
    for rank in range(1, 7):
        x = torch.ones((2, 3, 2, 2, 2, 2)[:rank])
        try:
            theirs(3)(x)
        except ValueError as error:
            with pytest.raises(ValueError, match=re.escape(str(error))) as caught:
                ours(3)(x)
            assert "takes (N, C" in str(caught.value)
            if 2 <= rank <= 5:
                assert f"use BatchNorm{max(rank - 2, 1)}d" in str(caught.value)
        else:
            assert ours(3)(x).shape == x.shape


EITHER = "x[None] if it is one (C, H, W), or BatchNorm1d if it is (N, C, L)"
MAY_BE = [  # BatchNorm…d, its channels, the shape it gets, what it says after its first sentence
    (2, 3, (3, 8, 8), "use x[None] if it is one (C, H, W)"),
    (2, 3, (5, 3, 8), "use BatchNorm1d if it is (N, C, L)"),
    (2, 3, (3, 3, 8), f"use {EITHER}"),
    (2, 7, (3, 8, 8), f"use {EITHER}; no axis has 7, the layer's channels"),
    (2, 3, (8, 8, 3), "use x.movedim(-1, 0)[None] if it is one (H, W, C)"),
    (2, 1, (8, 5, 5), "use x[:, None] if it is (N, H, W)"),
    (2, 1, (1, 5, 5), "use x[None] if it is one (C, H, W)"),
    (2, 1, (5, 5), "use x[None, None] if it is one (H, W)"),
    (2, 3, (8, 3), "use BatchNorm1d if it is (N, C)"),
    (2, 3, (2, 4, 3, 5, 5), "use x.flatten(0, 1) if it is (N, T, C, H, W)"),
    (2, 3, (2, 3, 4, 5, 5), "use BatchNorm3d if it is (N, C, D, H, W)"),
    (3, 3, (3, 4, 5, 5), "use x[None] if it is one (C, D, H, W)"),
    (3, 3, (2, 3, 5, 5), "use BatchNorm2d if it is (N, C, H, W)"),
    (3, 1, (4, 5, 5), "use x[None, None] if it is one (D, H, W)"),
    (3, 3, (3, 5, 5), ""),
    (1, 5, (5,), "use x[None] if it is one (C,)"),
    (1, 1, (7,), "use x[:, None] if it is (N,), or x[None, None] if it is one (L,)"),
    (1, 1, (), ""),
    (1, 32, (8, 2, 4, 4), "use x.flatten(1) if all but N are features"),
    (1, 5, (8, 5, 4, 4), "use BatchNorm2d if it is (N, C, H, W)"),
    (1, 5, (2, 3, 4, 6, 7, 8), "no axis has 5, the layer's channels"),
    (1, 5, (5, 7), "use x[None] if it is one sample, or x.movedim(0, 1) if they are on axis 0"),
    (1, 5, (8, 7, 5), "use x.movedim(2, 1) if they are on axis 2"),
    (1, 1, (8, 7), "use x[:, None] if it has no axis for its one channel"),
    (2, 3, (3, 8, 5, 5), "use x.movedim(0, 1) if they are on axis 0"),
    (1, 5, (3, 4), ""),
]


@pytest.mark.parametrize(("dims", "channels", "shape", "advice"), MAY_BE)
def test_what_an_input_may_be_is_said_as_far_as_its_sizes_tell(dims, channels, shape, advice):
    with pytest.raises((ValueError, RuntimeError)) as caught:
        getattr(bnlib, f"BatchNorm{dims}d")(channels)(torch.ones(shape))
    assert str(caught.value).partition("; ")[2] == advice


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_an_input_that_follows_the_advice_is_taken(channels):
    followed = 0
    for ours, theirs, _ in LAYERS:
        for shape in (shape for rank in range(6) for shape in product((1, 2, 3), repeat=rank)):
            x = torch.ones(shape)
            try:
                theirs(channels).eval()(x)
            except (ValueError, RuntimeError) as error:
                layer = ours(channels).eval()
                with pytest.raises(type(error), match=re.escape(str(error))) as caught:
                    layer(x)
                if isinstance(error, ValueError) and "no axis has" not in str(caught.value):
                    for code in re.findall(r"(?:use|or) (x\S.*?) if", str(caught.value)):
                        assert layer(eval(code)).numel() == x.numel(), f"{shape}: {caught.value}"
                        followed += 1
                    for name in re.findall(r"(?:use|or) (BatchNorm\dd) if", str(caught.value)):
                        assert getattr(bnlib, name)(channels).eval()(x).shape == shape
                        followed += 1
            else:
                assert ours(channels).eval()(x).shape == shape
    assert followed


@EVERY_LAYER
def test_one_value_per_channel_is_refused_in_training_only(ours, theirs, shape):
    one = torch.ones((1, 3, *(1 for _ in shape[2:])))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        ours(3)(one)
    assert ours(3).eval()(one).shape == one.shape


@EVERY_LAYER
def test_the_statistics_still_move_under_no_grad_and_with_frozen_parameters(ours, theirs, shape):
    layer = ours(3).requires_grad_(False)
    with torch.no_grad():
        layer(torch.ones(shape))
    assert layer.running_mean.tolist() == pytest.approx([0.1] * 3)
    assert layer.num_batches_tracked == 1


@EVERY_LAYER
def test_statistics_switched_on_or_off_afterwards_are_taken_as_torch_takes_them(ours, theirs, shape):
    x = torch.randn(shape) * 2 + 1
    for change in (
        {"track_running_stats": False},
        {"running_mean": None, "running_var": None},
        {"num_batches_tracked": None, "momentum": None},
    ):
        for training in (True, False):
            layers = ours(3), theirs(3)
            for layer in layers:
                for name, value in change.items():
                    setattr(layer, name, value)
            assert_close(*(layer.train(training)(x) for layer in layers))
            assert_same_state(*layers)
    for layer in (ours(3).eval(), theirs(3).eval()):
        layer.running_var = None
        with pytest.raises(RuntimeError, match="running_var must be defined in evaluation mode"):
            layer(x)


def test_the_layers_are_modules_with_one_shared_book_keeping():
    """A model converted by name finds them: same class names, same attributes as torch.nn's."""
    for ours, theirs, _ in LAYERS:
        assert ours.__name__ == theirs.__name__
        missing = set(vars(theirs(3))) - set(vars(ours(3)))
        assert not missing
