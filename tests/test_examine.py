"""The examination: every fault of a zoo is found and named, nothing is called wrong in what is healthy."""

import copy
from functools import cache

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from zoo import FAMILIES, FAULTS, PAIRS, Autoencoder, Checkpointed, Functional, norms, plain, trained

import bnlib
from bnlib.examine import CODES, PAGES


@cache
def digits():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BNLIB_OFFLINE", "1")
        patch.delenv("BNLIB_DATA", raising=False)
        return bnlib.load_images()


@cache
def ready(name):
    return trained(name, digits())


def model_of(name):
    return copy.deepcopy(ready(name))


def examined(model, **more):
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    chance = torch.get_rng_state()
    found = bnlib.examine(model, digits(), **more)
    assert torch.equal(chance, torch.get_rng_state())
    assert modes == [m.training for m in model.modules()]
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)
    return found


def with_faults(base, *faults):
    model = model_of(base)
    training = all(FAULTS[fault][2] for fault in faults)
    model.train(training)
    for fault in faults:
        model = FAULTS[fault][1](model)
        if isinstance(model, nn.Sequential) and model.training != training:
            model.training = training
    return model


@pytest.mark.parametrize("base", ["plain", "residual"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_alone_is_named(fault, base):
    if base == "residual" and fault in ("bias", "dropout before"):
        base = "bottleneck"
    found = examined(with_faults(base, fault))
    assert FAULTS[fault][0] in found.codes, found
    assert "BN302" not in found.codes, found


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_of_two_faults_both_are_named(one, other):
    found = examined(with_faults("plain", one, other))
    assert {FAULTS[one][0], FAULTS[other][0]} <= found.codes, found


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_is_wrong_with_a_healthy_network(name, training):
    found = examined(model_of(name).train(training))
    assert found.ok, found
    assert "BN302" not in found.codes, found
    assert bool(found.layers) == (name not in ("lenet without", "group norm", "instance norm", "layer norm")), found


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.to(torch.bfloat16),
        lambda m: m.to(memory_format=torch.channels_last),
        lambda m: [layer.eval() for layer in norms(m)],
        lambda m: m.requires_grad_(False).eval(),
        lambda m: m.double(),
    ],
    ids=["bfloat16", "channels last", "frozen on purpose", "no gradients", "float64"],
)
def test_nothing_is_wrong_with_a_healthy_network_in_another_state(change):
    model = model_of("residual")
    change(model)
    found = examined(model)
    assert found.ok, found


@pytest.mark.parametrize(
    "make",
    [plain, Autoencoder, Functional, bnlib.lenet, lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.LazyBatchNorm2d())],
)
def test_nothing_is_wrong_with_a_new_network(make):
    torch.manual_seed(0)
    found = bnlib.examine(make(), digits())
    assert found.ok, found
    assert "BN302" not in found.codes, found


def test_checkpointing_updates_twice_and_is_named():
    torch.manual_seed(0)
    assert "BN107" in bnlib.examine(Checkpointed(), digits()).codes


def test_a_functional_call_that_always_trains_is_a_leak_and_a_change_in_evaluation():
    torch.manual_seed(0)
    found = bnlib.examine(Functional(always=True).eval(), digits())
    assert {"BN101", "BN102"} <= found.codes, found


def test_one_layer_at_two_places_is_named():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.bn = nn.Linear(784, 32), nn.Linear(32, 32), nn.BatchNorm1d(32)

        def forward(self, x):
            return self.bn(self.b(self.bn(self.a(x.flatten(1))).relu())).relu()

    assert "BN108" in bnlib.examine(Twice(), digits()).codes


def test_weight_decay_is_seen_in_the_optimizer_and_a_group_of_its_own_is_not():
    model = model_of("plain")
    assert (
        "BN208"
        in bnlib.examine(model, digits(), optimizer=torch.optim.SGD(model.parameters(), 0.1, weight_decay=1e-4)).codes
    )
    own = [p for layer in norms(model) for p in layer.parameters()]
    rest = [p for p in model.parameters() if all(p is not q for q in own)]
    groups = [{"params": own, "weight_decay": 0.0}, {"params": rest}]
    assert (
        "BN208" not in bnlib.examine(model, digits(), optimizer=torch.optim.SGD(groups, 0.1, weight_decay=1e-4)).codes
    )


def test_small_batches_are_named_at_the_batch_size_given():
    assert "BN113" in bnlib.examine(model_of("mlp"), digits(), batch_size=2).codes
    assert "BN113" not in bnlib.examine(model_of("mlp"), digits(), batch_size=64).codes


def test_darker_images_are_another_domain_and_no_advice_is_given_without_care():
    found = bnlib.examine(model_of("plain").eval(), digits(), target=digits().test_images * 0.25 + 0.3)
    assert "BN105" in found.codes, found
    assert found.ok
    assert "labelled" in next(f for f in found.findings if f.code == "BN105").advice
    same = bnlib.examine(model_of("plain").eval(), digits(), target=digits().test_images)
    assert "BN105" not in same.codes, same


def test_data_may_be_a_loader_a_batch_or_a_pair():
    model, images = model_of("mlp"), digits()
    x, y = images.train_images[:200], images.train_labels[:200]
    for data in (DataLoader(TensorDataset(x, y), 50), x, (x, y), [(x[:100], y[:100]), (x[100:], y[100:])]):
        found = bnlib.examine(model, data)
        assert found.layers == ["2"], found


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (3, TypeError, "got int"),
        (torch.zeros(0, 1, 28, 28), ValueError, "not one example"),
        ([], ValueError, "not one"),
    ],
)
def test_data_that_say_nothing_are_refused(data, error, words):
    with pytest.raises(error, match=words):
        bnlib.examine(plain(), data)


def test_a_model_that_does_not_run_on_the_data_is_told_so():
    found = bnlib.examine(plain(), torch.zeros(8, 5, 28, 28))
    assert found.codes == {"BN301"}
    assert "channels" in str(found)


def test_one_image_is_examined_as_far_as_it_goes():
    found = bnlib.examine(model_of("plain"), digits().train_images[:1])
    assert found.ok, found


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got function"):
        bnlib.examine(lambda x: x, digits())


def test_scripted_networks_are_examined_as_far_as_they_let_themselves():
    found = bnlib.examine(torch.jit.trace(model_of("plain").eval(), digits().train_images[:4]), digits())
    assert found.ok, found


def test_findings_are_shown_with_code_measurement_advice_and_a_link():
    found = examined(with_faults("plain", "lag"))
    page = found._repr_html_()
    for text in ("BN104", "wrong", "accuracy", "reestimate_statistics", "05_lenet_gpu.ipynb#7.-The-riddle"):
        assert text in page
    assert "BN104 wrong: running statistics lag" in repr(found)
    assert not found.ok
    assert "σ" in found.picture().caption


def test_every_code_leads_to_a_page_that_is_known():
    assert {lesson for *_, lesson, _ in CODES.values()} <= PAGES.keys()
