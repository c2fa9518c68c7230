"""Our layers in torch's tools, as `layers` says, and `to_torch`, after which the tools know every one of them."""

import copy
import pickle
from itertools import product

import pytest
import torch
from torch import nn
from torch.ao import quantization
from torch.ao.quantization.quantize_fx import prepare_fx
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import fusion, parametrize
from torch.optim.swa_utils import AveragedModel, update_bn

import bnlib
from bnlib import layers, to_torch
from bnlib.distributed import run, synchronise

PAIRS = [(getattr(bnlib, f"BatchNorm{d}d"), getattr(nn, f"BatchNorm{d}d")) for d in (1, 2, 3)]
SHAPES = {1: (6, 3), 2: (4, 3, 2, 2), 3: (4, 3, 2, 2, 2)}
BOUND = dict(rtol=1e-9, atol=1e-9)


def network(package):
    """Return a small network with the package's layers, the same numbers each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3),
            package.BatchNorm2d(3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(12, 4),
            package.BatchNorm1d(4),
        ).double()


def images(n=8, seed=0):
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 1


def trained(model):
    for seed in range(3):
        model(images(seed=seed))
    return model


# ---- torch's tools: each returns tensors, and ours have the same, or others, or get an error


def averaged(model):
    average = AveragedModel(model, use_buffers=True)
    for seed in range(3):
        model(images(seed=seed))
        average.update_parameters(model)
    return average.module[1].running_mean


def updated(model):
    update_bn([images()], model)
    return model[1].running_mean


def fused(model):
    return fusion.fuse_conv_bn_eval(*trained(model).eval()[:2])(images())


def linear_fused(model):
    return fusion.fuse_linear_bn_eval(*trained(model).eval()[4:])(torch.ones(2, 12).double())


def without_statistics(model):
    torch.func.replace_all_batch_norm_modules_(model)
    return torch.tensor(model[1].running_mean is None)


def mapped(model):
    return torch.func.vmap(trained(model).eval())(torch.stack([images(seed=1), images(seed=2)]))


def exported(model):
    graph = torch.export.export(trained(model).eval(), (images(),))
    return graph.module()(images())


def exported_node(model):
    graph = torch.export.export(model.eval(), (images(),)).graph
    return torch.tensor([node.target is torch.ops.aten.batch_norm.default for node in graph.nodes].count(True))


QCONFIG = quantization.get_default_qconfig_mapping()
TOOLS = {
    "known": {
        "nn.utils.fusion: conv": fused,
        "nn.utils.fusion: linear": linear_fused,
        "AveragedModel": averaged,
        "torch.compile": lambda model: torch.compile(model, backend="aot_eager", fullgraph=True)(images()),
        "torch.jit.trace": lambda model: torch.jit.trace(trained(model).eval(), images())(images()),
        "torch.func: vmap": mapped,
        "torch.export": exported,
    },
    "passed by": {
        "node `batch_norm`": exported_node,
        "swa_utils.update_bn": updated,
        "convert_sync_batchnorm": lambda model: torch.tensor(
            isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(model)[1], nn.SyncBatchNorm)
        ),
        "replace_all_batch_norm_modules_": without_statistics,
        "_BatchNorm": lambda model: torch.tensor(isinstance(model[1], nn.modules.batchnorm._BatchNorm)),
    },
    "refused": {
        "fuse_modules": lambda model: quantization.fuse_modules(trained(model).eval(), [["0", "1", "2"]])(images()),
        "prepare_fx": lambda model: prepare_fx(model.eval().float(), QCONFIG, (images().float(),))(images().float()),
        "torch.fx.symbolic_trace": lambda model: torch.fx.symbolic_trace(model)(images()),
        "torch.jit.script": lambda model: torch.jit.script(model)(images()),
    },
}


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:UserWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("fate", "tool"), [(fate, tool) for fate, tools in TOOLS.items() for tool in tools])
def test_torchs_tools_treat_our_layers_as_their_docstring_says_and_converted_ones_as_torchs(fate, tool):
    use = TOOLS[fate][tool]
    theirs = use(network(nn))
    torch.testing.assert_close(use(to_torch(network(bnlib))), theirs, **BOUND)
    if fate == "refused":
        with pytest.raises((AssertionError, TypeError, torch.fx.proxy.TraceError)):
            use(network(bnlib))
    elif fate == "passed by":
        assert not torch.equal(use(network(bnlib)), theirs)
    else:
        torch.testing.assert_close(use(network(bnlib)), theirs, **BOUND)


def test_the_docstring_names_them_all():
    for tool in (tool for tools in TOOLS.values() for tool in tools):
        assert tool.split(":")[0] in layers.__doc__, tool


def in_parallel(rank):
    """Return the running means of process `rank` after two training steps on its own batches, torch's and ours."""
    means = []
    for package in (nn, bnlib):
        model = DistributedDataParallel(network(package))
        for step in range(2):
            model(images(seed=2 * step + rank))
        means.append(model.module[1].running_mean.detach())
    return means


def test_data_parallel_training_sends_our_buffers_round_as_it_sends_torchs():
    for theirs, ours in run(in_parallel):
        torch.testing.assert_close(ours, theirs, **BOUND)


# ---- the copy


FLAGS = [
    dict(zip(("momentum", "affine", "bias", "track_running_stats", "eps"), values, strict=True))
    for values in product((0.3, None), (True, False), (True, False), (True, False), (1e-5, 0.3))
]


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: "-".join(map(str, flags.values())))
@pytest.mark.parametrize("dims", SHAPES)
def test_a_converted_layer_is_torchs_and_goes_on_with_the_same_numbers(dims, flags):
    ours, theirs = PAIRS[dims - 1]
    generator = torch.Generator().manual_seed(0)
    layer = ours(3, **flags, dtype=torch.float64)
    for parameter in layer.parameters():
        parameter.data.normal_(generator=generator)
    layer(torch.randn(SHAPES[dims], generator=generator, dtype=torch.float64) * 3 + 1)
    twin = to_torch(layer)
    assert type(twin) is theirs
    assert type(layer) is ours
    assert repr(twin) == repr(layer)
    assert vars(twin).keys() == vars(theirs(3, **flags)).keys()
    for training in (True, True, False, True):
        x = torch.randn(SHAPES[dims], generator=generator, dtype=torch.float64)
        results = []
        for one in (layer, twin):
            leaf = x.clone().requires_grad_()
            y = one.train(training)(leaf)
            results.append([y, *torch.autograd.grad((y * x).sum(), [leaf, *one.parameters()]), *one.buffers()])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, **BOUND)
    for first, second in ((layer, theirs(3, **flags).double()), (twin, ours(3, **flags).double())):
        second.load_state_dict(first.state_dict())
        assert first.state_dict()._metadata == second.state_dict()._metadata


def test_every_state_of_every_layer_is_kept_and_the_model_is_left_as_it_was():
    model = trained(network(bnlib))
    model[1].eval().to(torch.float32).weight.requires_grad_(False)
    model[5].to("meta")
    before = copy.deepcopy(model)
    twin = to_torch(model)
    assert [type(layer) for layer in twin.modules()] == [type(layer) for layer in network(nn).modules()]
    for one in (model, twin):
        assert [type(layer).__name__ for layer in one.modules()] == [type(layer).__name__ for layer in before.modules()]
        assert [layer.training for layer in one.modules()] == [layer.training for layer in before.modules()]
        assert [p.requires_grad for p in one.parameters()] == [p.requires_grad for p in before.parameters()]
        for (name, mine), (other, expected) in zip(one.state_dict().items(), before.state_dict().items(), strict=True):
            assert (name, mine.dtype, mine.device) == (other, expected.dtype, expected.device)
            assert mine.is_meta or torch.equal(mine, expected)
    assert type(model[1]) is bnlib.BatchNorm2d
    assert not {t.data_ptr() for t in model[:5].parameters()} & {t.data_ptr() for t in twin[:5].parameters()}


def test_what_is_used_in_two_places_stays_one():
    model = nn.ModuleDict({"a": bnlib.BatchNorm2d(3), "b": nn.Sequential(bnlib.BatchNorm2d(3)), "c": nn.BatchNorm2d(3)})
    model["again"] = model["a"]
    model["b"][0].weight = model["a"].weight
    model.plain = [model["a"]]  # no module of it for torch, but the same object
    twin = to_torch(model)
    assert twin["again"] is twin["a"] is twin.plain[0]
    assert twin["b"][0].weight is twin["a"].weight is not model["a"].weight
    assert {type(layer) for layer in (twin["a"], twin["b"][0], twin["c"])} == {nn.BatchNorm2d}


def test_hooks_and_parametrizations_are_kept_on_the_copy():
    class Positive(nn.Module):
        def forward(self, weight):
            return weight.exp()

    seen = []
    layer = bnlib.BatchNorm1d(3, dtype=torch.float64)
    layer.register_forward_hook(lambda module, arguments, output: seen.append(type(module)))
    parametrize.register_parametrization(layer, "weight", Positive())
    twin = to_torch(layer)
    x = torch.randn(6, 3, dtype=torch.float64)
    torch.testing.assert_close(twin(x), layer(x), **BOUND)
    assert [issubclass(kind, nn.BatchNorm1d) for kind in seen] == [True, False]
    assert isinstance(twin, nn.BatchNorm1d)
    assert not isinstance(twin, bnlib.BatchNorm1d)
    assert twin.state_dict().keys() == layer.state_dict().keys()
    for one, kind in ((layer, bnlib.BatchNorm1d), (twin, nn.BatchNorm1d)):
        parametrize.remove_parametrizations(one, "weight")
        assert type(one) is kind
    torch.testing.assert_close(twin.weight, layer.weight)


def test_a_converted_model_can_be_saved_and_a_compiled_one_converted():
    twin = to_torch(trained(network(bnlib)))
    again = pickle.loads(pickle.dumps(twin))
    torch.testing.assert_close(again.eval()(images()), twin.eval()(images()))
    assert b"bnlib" not in pickle.dumps(twin)
    compiled = torch.compile(network(bnlib), backend="aot_eager")
    assert type(to_torch(compiled)._orig_mod[1]) is nn.BatchNorm2d
    torch.testing.assert_close(to_torch(compiled)(images()), network(nn)(images()), **BOUND)


def test_the_lessons_lenet_becomes_the_one_with_torchs_layers():
    ours, theirs = to_torch(bnlib.lenet()), bnlib.lenet("torch")
    assert repr(ours) == repr(theirs)
    for (name, a), (other, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b)


class Doubled(bnlib.BatchNorm2d):
    def forward(self, input):
        return 2 * super().forward(input)


def test_what_torch_has_no_layer_for_is_refused_by_its_place():
    for model, place in (
        (nn.Sequential(nn.Identity(), nn.Sequential(Doubled(3))), "layer '1.0'"),
        (Doubled(3), "the model"),
        (synchronise(network(bnlib)), "layer '1'"),
    ):
        with pytest.raises(TypeError, match=f"torch has no layer that does what {place} does: "):
            to_torch(model)
    for nothing in (bnlib.BatchNorm2d, network(bnlib).state_dict(), None):
        with pytest.raises(TypeError, match=f"model must be a torch.nn.Module, got {type(nothing).__name__}"):
            to_torch(nothing)
