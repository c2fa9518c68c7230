"""Our functions and layers against `torch.nn` on whatever hypothesis can think of. BNLIB_STRESS=1 thinks longer.

Left out, because torch's own answer is an accident of its implementation:
- inputs without values that have channels and a weight: torch multiplies by weight[0] and adds bias[0], so that a
  gradient is zero where it exists, and IndexError where there is no channel; the values (none) and buffers are compared
- gradients in float32 and half precision: compared in float64, where a difference is a mistake and not rounding
"""

import copy
import os
import pickle

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import bnlib
from bnlib.compare import BOUNDS

STRESS = os.environ.get("BNLIB_STRESS") == "1"
DTYPES = list(BOUNDS)


def examples(count):
    """`count` examples, the same on every run; under stress ten times as many, and, but in CI, others each time."""
    return settings(
        max_examples=count * 10 if STRESS else count,
        derandomize=not STRESS or "CI" in os.environ,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def shapes(draw, smallest=0):
    rank = draw(st.integers(2, 5))
    return tuple(draw(st.integers(smallest, 4)) for _ in range(rank))


@st.composite
def inputs(draw, dtype=None, smallest=0, kinds=("plain", "offset", "tiny", "constant", "inf", "nan")):
    """A tensor (N, C, *): ordinary, far from zero, of tiny or no spread, or with infinities and NaN; any layout."""
    shape, kind = draw(shapes(smallest)), draw(st.sampled_from(kinds))
    x = torch.randn(
        shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1))), dtype=torch.float64
    )
    if kind == "offset":
        x = x + 50
    elif kind == "tiny":
        x = x * 1e-6
    elif kind == "constant":
        x = torch.full_like(x, 3.0)
    elif kind in ("inf", "nan") and x.numel():
        for _ in range(draw(st.integers(1, 2))):
            value = draw(st.sampled_from([float("inf"), -float("inf")])) if kind == "inf" else float("nan")
            x.view(-1)[draw(st.integers(0, x.numel() - 1))] = value
    x = x.to(dtype or draw(st.sampled_from(DTYPES)))
    layout = draw(st.sampled_from(["contiguous", "channels last", "transposed", "every other", "expanded"]))
    event(f"{kind}, {layout}")
    if layout == "channels last" and x.dim() in (4, 5):
        x = x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    elif layout == "transposed":
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    elif layout == "every other":
        x = torch.stack([x, x + 1], -1)[..., 0]
    elif layout == "expanded" and len(x):
        x = x[:1].expand(x.shape)
    return x


def per_channel(channels, dtype, seed, positive=False):
    values = torch.randn(channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((values.abs() + 0.1) if positive else values).to(dtype)


def assert_close(ours, theirs, scale=1.0, bounds=None):
    """Within the bounds of the dtype, the absolute one times `scale`, with infinities and NaN at the same places."""
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    relative, absolute = (bounds or BOUNDS[ours.dtype]) if ours.is_floating_point() else (0, 0)
    torch.testing.assert_close(ours, theirs, rtol=relative, atol=absolute * scale, equal_nan=True)


def amplification(x):
    """How much larger than in x a rounding error can be in y: the largest |x| over the smallest spread of a channel.

    Where a channel's spread is rounding noise, no two orders of summation agree; eps limits the damage.
    """
    table = x.detach().double().transpose(0, 1).flatten(1)
    finite = table[table.isfinite().all(1)] if table.numel() else table
    if not finite.numel():
        return 1.0
    return max(1.0, (finite.abs().amax(1) / (finite.var(1, correction=0) + 1e-5).sqrt()).max().item())


def outcome(function, *arguments, **options):
    """Return (result, None), or (None, the exception's class) when it raises."""
    try:
        return function(*arguments, **options), None
    except (ValueError, RuntimeError, IndexError, TypeError, NotImplementedError) as error:
        return None, NotImplementedError if isinstance(error, NotImplementedError) else type(error)


@given(
    x=inputs(),
    norm=st.sampled_from([bnlib.batch_norm, bnlib.batch_norm_loops]),
    options=st.fixed_dictionaries(
        {
            "training": st.booleans(),
            "momentum": st.sampled_from([0.0, 0.1, 0.5, 1.0, -1.0]),
            "eps": st.sampled_from([1e-5, 1e-3, 0.6, 0.0, -1.0]),
        }
    ),
    have=st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    float32_parameters=st.booleans(),
    seed=st.integers(0, 9),
)
@examples(400)
def test_the_functions_do_what_torchs_does(x, norm, options, have, float32_parameters, seed):
    dtype = torch.float32 if float32_parameters and x.dtype.itemsize == 2 else x.dtype
    made = [per_channel(x.shape[1], dtype, seed + i, positive=i == 1) for i in range(4)]
    made = [tensor if wanted else None for tensor, wanted in zip(made, have, strict=True)]
    assume(x.shape[1] > 0 or made[2] is made[3] is None)
    results = []
    for function in (norm, F.batch_norm):
        tensors = [x.detach().clone(memory_format=torch.preserve_format), *[copy.deepcopy(t) for t in made]]
        for tensor in (tensors[0], *tensors[3:]):
            if tensor is not None:
                tensor.requires_grad_()
        y, error = outcome(function, *tensors, **options)
        results.append((y, error, tensors))
    (y, error, ours), (expected, expected_error, theirs) = results
    assert error == expected_error
    if error:
        return
    noise = amplification(x) if options["training"] else 1.0
    assert_close(y, expected, noise)
    statistics = theirs[1:3]
    if x.dtype.itemsize == 2:  # torch measures the variance from a rounded mean, and is off by the rounding squared
        exact = [None if tensor is None else tensor.double() for tensor in (x, *made)]
        F.batch_norm(*exact, **options)
        statistics = [None if tensor is None else tensor.to(dtype) for tensor in exact[1:3]]
    for a, b in zip(ours[1:3], statistics, strict=True):
        if a is not None:
            assert_close(a, b, max(1.0, b.abs().max().item()) if b.numel() else 1.0)
    if x.dtype == torch.float64 and x.numel() and x.isfinite().all():
        w = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
        leaves = [[t for t in (tensors[0], *tensors[3:]) if t is not None] for tensors in (ours, theirs)]
        for a, b in zip(
            torch.autograd.grad((y * w).sum(), leaves[0]),
            torch.autograd.grad((expected * w).sum(), leaves[1]),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * noise * max(1.0, b.abs().max().item()))


@given(
    x=inputs(),
    training=st.lists(st.booleans(), min_size=1, max_size=3),
    options=st.fixed_dictionaries(
        {
            "momentum": st.sampled_from([None, 0.1, 1.0]),
            "affine": st.booleans(),
            "bias": st.booleans(),
            "track_running_stats": st.booleans(),
            "eps": st.sampled_from([1e-5, 0.6]),
        }
    ),
    rank=st.integers(1, 3),
    features=st.integers(0, 4),
    own_rank=st.booleans(),
)
@examples(400)
def test_the_layers_do_what_torchs_do(x, training, options, rank, features, own_rank):
    if own_rank:
        rank, features = max(x.dim() - 2, 1), x.shape[1]
    ours = getattr(bnlib, f"BatchNorm{rank}d")(features, **options, dtype=x.dtype)
    theirs = getattr(nn, f"BatchNorm{rank}d")(features, **options, dtype=x.dtype)
    assume(x.numel() or features)
    for step, mode in enumerate(training):
        y, error = outcome(ours.train(mode), x)
        expected, expected_error = outcome(theirs.train(mode), x)
        assert error == expected_error
        assert ours.num_batches_tracked == theirs.num_batches_tracked
        if error:
            continue
        from_x = any(training[: step + 1]) or not options["track_running_stats"]  # the statistics in use
        noise = amplification(x) if from_x else 1.0
        assert_close(y, expected, noise)
        for (name, a), b in zip(ours.named_buffers(), theirs.buffers(), strict=True):
            if a.is_floating_point():
                scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
                if name == "running_var" and x.dtype.itemsize == 2:  # torch takes it about a mean that it has rounded
                    largest = max(x.detach().double().nan_to_num(0, 0, 0).abs().flatten().tolist(), default=0.0)
                    scale = max(scale, (torch.finfo(x.dtype).eps * largest) ** 2 / BOUNDS[a.dtype][1])
                assert_close(a, b, scale)


@given(
    x=inputs(dtype=torch.float64, smallest=1, kinds=("plain", "offset")), training=st.booleans(), affine=st.booleans()
)
@examples(25)
def test_finite_differences_agree_twice(x, training, affine):
    assume(x.numel() > x.shape[1] * 2)
    x = x.detach() + torch.linspace(0, 1, x.numel(), dtype=x.dtype).view(x.shape)  # expanded inputs have no spread
    rank = max(x.dim() - 2, 1)
    layer = getattr(bnlib, f"BatchNorm{rank}d")(x.shape[1], affine=affine, dtype=torch.float64).train(training)
    parameters = dict(layer.named_parameters())

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    arguments = (x.requires_grad_(), *[p.detach().clone().requires_grad_() for p in parameters.values()])
    assert gradcheck(call, arguments)
    assert gradgradcheck(call, arguments)


class Lives(RuleBasedStateMachine):
    """Two layers led through the same life: after each step they agree in everything that can be seen of them."""

    @initialize(
        rank=st.integers(1, 3),
        dtype=st.sampled_from([torch.float64, torch.float32]),
        options=st.fixed_dictionaries(
            {
                "momentum": st.sampled_from([None, 0.1, 0.7]),
                "affine": st.booleans(),
                "bias": st.booleans(),
                "track_running_stats": st.booleans(),
            }
        ),
    )
    def born(self, rank, dtype, options):
        self.make = [
            lambda module=module: getattr(module, f"BatchNorm{rank}d")(3, **options, dtype=dtype)
            for module in (bnlib, nn)
        ]
        self.layers = [make() for make in self.make]
        self.rank = rank
        self.bounds = BOUNDS[dtype]  # of the coarsest dtype so far: a rounding that differed stays

    @rule(seed=st.integers(0, 99), n=st.integers(0, 4), size=st.integers(1, 3))
    def forward(self, seed, n, size):
        shape = (n, 3) + (size,) * self.rank if self.rank > 1 or size > 1 else (n, 3)
        dtype = next((t.dtype for t in self.layers[1].state_dict().values() if t.is_floating_point()), torch.float64)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 1
        x = x.to(dtype)
        leaves = [x.clone().requires_grad_() for _ in self.layers]
        (y, error), (expected, expected_error) = (
            outcome(layer, leaf) for layer, leaf in zip(self.layers, leaves, strict=True)
        )
        assert error == expected_error
        if error:
            return
        assert_close(y, expected, 4 * amplification(x), self.bounds)
        if x.numel() and self.bounds == BOUNDS[torch.float64]:
            w = torch.linspace(-1, 2, y.numel(), dtype=dtype).view(y.shape)
            for layer, out in zip(self.layers, (y, expected), strict=True):
                layer.zero_grad()
                (out * w).sum().backward()
            torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-8, atol=1e-8)
            for a, b in zip(*(layer.parameters() for layer in self.layers), strict=True):
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-8)

    @rule(mode=st.booleans())
    def train(self, mode):
        for layer in self.layers:
            layer.train(mode)

    @rule()
    def reset_running_stats(self):
        for layer in self.layers:
            layer.reset_running_stats()

    @rule(seed=st.integers(0, 99))
    def learn(self, seed):
        for layer in self.layers:
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for parameter in layer.parameters():
                    parameter.copy_(torch.randn(3, generator=generator, dtype=torch.float64))

    @rule(dtype=st.sampled_from(DTYPES))
    def to(self, dtype):
        self.layers = [layer.to(dtype) for layer in self.layers]
        self.bounds = max(self.bounds, BOUNDS[dtype])

    @rule()
    def deepcopy(self):
        self.layers = [copy.deepcopy(layer) for layer in self.layers]

    @rule()
    def pickle(self):
        self.layers = [pickle.loads(pickle.dumps(layer)) for layer in self.layers]

    @rule()
    def exchange_state(self):
        """Each goes on from a fresh layer with the other's state, as a checkpoint of one is loaded into the other."""
        ours, theirs = (layer.state_dict() for layer in self.layers)
        training = self.layers[1].training
        self.layers = [make().train(training) for make in self.make]
        self.layers[0].load_state_dict(theirs)
        self.layers[1].load_state_dict(ours)

    @invariant()
    def they_look_the_same(self):
        if not hasattr(self, "layers"):
            return
        ours, theirs = self.layers
        assert repr(ours) == repr(theirs)
        assert ours.training == theirs.training
        ours, theirs = ours.state_dict(), theirs.state_dict()
        assert list(ours) == list(theirs)
        for name, tensor in theirs.items():
            assert_close(ours[name], tensor, 16, self.bounds)


def test_a_life_of_our_layer_is_a_life_of_torchs():
    run_state_machine_as_test(Lives, settings=settings(examples(40), stateful_step_count=20))
