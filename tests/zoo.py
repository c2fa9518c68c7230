"""Networks small enough to be read, healthy and broken, for `test_examine.py`: families as people write them."""

import copy

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import bnlib
from bnlib.models import deep_convnet


def conv(i, o, k=3, stride=1, groups=1, norm=nn.BatchNorm2d, act=nn.ReLU):
    return nn.Sequential(nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False), norm(o), act())


def head(c):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 10))


class Residual(nn.Module):
    def __init__(self, i, o, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.short = nn.Sequential()
        if i != o:
            self.short = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.short(x))


class PreActivation(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(c), nn.Conv2d(c, c, 3, padding=1, bias=False)

    def forward(self, x):
        return x + self.conv(F.relu(self.bn(x)))


class Bottleneck(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.body = nn.Sequential(
            conv(c, c // 2, 1), conv(c // 2, c // 2), nn.Conv2d(c // 2, c, 1, bias=False), nn.BatchNorm2d(c)
        )

    def forward(self, x):
        return F.relu(x + self.body(x))


class Dense(nn.Module):
    def __init__(self, c, growth):
        super().__init__()
        self.body = nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, growth, 3, padding=1, bias=False))

    def forward(self, x):
        return torch.cat([x, self.body(x)], 1)


class SqueezeExcite(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = conv(c, c)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, c // 2, 1), nn.ReLU(), nn.Conv2d(c // 2, c, 1), nn.Sigmoid()
        )

    def forward(self, x):
        y = self.conv(x)
        return y * self.gate(y)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.bn, self.out = nn.GRU(28, 24, batch_first=True), nn.BatchNorm1d(24), nn.Linear(24, 10)

    def forward(self, x):
        return self.out(self.bn(self.rnn(x[:, 0])[0][:, -1]))


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(conv(1, 8, stride=2), conv(8, 8, stride=2))
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(8, 8, 4, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 1, 4, 2, 1),
        )

    def forward(self, x):
        return {"image": self.decoder(self.encoder(x))}


class Book(nn.Module):
    """A layer of a reader's own; `flaw` names what is wrong with it."""

    def __init__(self, c, flaw=""):
        super().__init__()
        self.flaw = flaw
        self.gamma, self.beta = nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(c))
        for name, start in (("moving_mean", torch.zeros(c)), ("moving_var", torch.ones(c))):
            if flaw == "attributes":
                setattr(self, name, start)
            else:
                self.register_buffer(name, start)

    def forward(self, x):
        dims, shape = [d for d in range(x.dim()) if d != 1], [1, -1] + [1] * (x.dim() - 2)
        learns = {"grad mode": torch.is_grad_enabled(), "always": True}.get(self.flaw, self.training)
        if learns or self.flaw == "updates in eval":
            mean, var = x.mean(dims), x.var(dims, correction=0)
            n = x.numel() / len(mean)
            stored = var if self.flaw == "biased" else var * n / (n - 1)
            stored = stored.sqrt() if self.flaw == "stores the root" else stored
            if self.flaw == "graph":
                self.moving_mean, self.moving_var = (
                    0.9 * self.moving_mean + 0.1 * mean,
                    0.9 * self.moving_var + 0.1 * stored,
                )
            else:
                with torch.no_grad():
                    self.moving_mean.mul_(0.9).add_(mean, alpha=0.1)
                    self.moving_var.mul_(0.9).add_(stored, alpha=0.1)
        if not learns:
            mean, var = self.moving_mean, self.moving_var
        return (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt() * self.gamma.view(shape) + self.beta.view(shape)


class Functional(nn.Module):
    """Calls `F.batch_norm` itself."""

    def __init__(self, always=False):
        super().__init__()
        self.always = always
        self.conv, self.out = nn.Conv2d(1, 8, 5, 2, bias=False), nn.Linear(8 * 144, 10)
        self.weight, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))

    def forward(self, x):
        x = F.batch_norm(self.conv(x), self.mean, self.var, self.weight, self.bias, self.training or self.always)
        return self.out(F.relu(x).flatten(1))


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body, self.head = conv(1, 8, stride=2), conv(8, 8, stride=2), head(8)

    def forward(self, x):
        return self.head(checkpoint(self.body, self.stem(x), use_reentrant=False))


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower = nn.Sequential(conv(1, 8, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.out = nn.Linear(16, 10)

    def forward(self, x):
        return self.out(torch.cat([self.tower(x), self.tower(x.flip(3))], 1))


def plain(norm=nn.BatchNorm2d):
    return nn.Sequential(conv(1, 8, stride=2, norm=norm), conv(8, 16, stride=2, norm=norm), head(16))


def dense():
    return nn.Sequential(conv(1, 8, stride=2), Dense(8, 8), Dense(16, 8), nn.BatchNorm2d(24), nn.ReLU(), head(24))


def mlp(*middle):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), *middle, nn.Linear(32, 10)
    )


FAMILIES = {
    "lenet": bnlib.lenet,
    "lenet of torch": lambda: bnlib.lenet("torch"),
    "lenet without": lambda: bnlib.lenet("none"),
    "lenet, cumulative": lambda: bnlib.lenet("torch", momentum=None),
    "deep convnet": lambda: deep_convnet(depth=4),
    "plain": plain,
    "residual": lambda: nn.Sequential(conv(1, 8, stride=2), Residual(8, 8), Residual(8, 16, 2), head(16)),
    "pre-activation": lambda: nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), PreActivation(8), PreActivation(8), nn.BatchNorm2d(8), nn.ReLU(), head(8)
    ),
    "bottleneck": lambda: nn.Sequential(conv(1, 16, stride=2), Bottleneck(16), Bottleneck(16), head(16)),
    "depthwise": lambda: nn.Sequential(conv(1, 8, stride=2), conv(8, 8, groups=8), conv(8, 16, 1), head(16)),
    "dense": dense,
    "squeeze and excite": lambda: nn.Sequential(conv(1, 8, stride=2), SqueezeExcite(8), head(8)),
    "recurrent": Recurrent,
    "a book's layer": lambda: plain(Book),
    "functional": Functional,
    "siamese": Siamese,
    "mlp": mlp,
    "group norm": lambda: plain(lambda c: nn.GroupNorm(4, c)),
    "instance norm": lambda: plain(lambda c: nn.InstanceNorm2d(c, affine=True)),
    "layer norm": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(784, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 10)
    ),
}


def trained(name, images, epochs=4):
    """Return a network of a family, trained on the digits, its statistics as good as its weights."""
    torch.manual_seed(0)
    model = FAMILIES[name]()
    bnlib.fit(model, images, epochs=epochs, batch_size=64, lr=0.3, device="cpu", progress=False)
    model.train()
    with torch.no_grad():  # as a layer of any make follows: weights stand still, and its averages arrive
        for i in range(60):
            model(images.train_images[i % 20 * 64 :][:64])
    return model


def norms(model):
    return [
        m
        for m in model.modules()
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | bnlib.BatchNorm1d | bnlib.BatchNorm2d)
    ]


def instead(model, make):
    """Put `make(layer)` in the place of each of the model's BN layers."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in norms(model):
                setattr(parent, name, make(child))
    return model


def booked(model, flaw):
    """Return the model with a reader's own layers, which hold what its own have learned."""

    def make(layer):
        book = Book(layer.num_features, flaw)
        with torch.no_grad():
            pairs = (book.gamma, layer.weight), (book.beta, layer.bias), (book.moving_mean, layer.running_mean)
            for new, old in (*pairs, (book.moving_var, layer.running_var)):
                new.copy_(old)
        return book

    return instead(model, make)


# ---- faults: each changes a trained model in place, or returns another


def each(change):
    def fault(model):
        for layer in norms(model):
            change(layer)
        return model

    return fault


def some(change, which=-1):
    def fault(model):
        change(norms(model)[which])
        return model

    return fault


def put(name, value):
    return lambda layer: getattr(layer, name).fill_(value)


def frozen(layer):
    layer.weight.requires_grad_(False)
    layer.bias.requires_grad_(False)


def lagging(model):
    for layer in norms(model):
        layer.running_mean.add_(1.5 * layer.running_var.sqrt())
        layer.running_var.mul_(4)
    return model


def untracked(layer):
    layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None


def after(kind, make):
    """Put a module behind each layer of a kind."""

    def fault(model):
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, kind):
                    setattr(parent, name, nn.Sequential(child, make(child)))
        return model

    return fault


def biased(model):
    for parent in list(model.modules()):
        if isinstance(parent, nn.Sequential) and len(parent) == 3 and isinstance(parent[0], nn.Conv2d):
            parent[0].bias = nn.Parameter(torch.zeros(parent[0].out_channels))
    return model


def once_more(model):  # BN, then BN
    return instead(model, lambda layer: nn.Sequential(layer, copy.deepcopy(layer)))


def shared(model):  # one layer for all places of its width
    return instead(model, lambda layer, seen={}: seen.setdefault(id(model), {}).setdefault(layer.num_features, layer))


def dead(layer):
    with torch.no_grad():
        layer.weight[:3] = 0


FAULTS = {  # name -> (code, what it does to a trained network, the mode in which it is then given)
    "always training": ("BN101", lambda m: booked(m, "always"), False),
    "mode from grad": ("BN101", lambda m: booked(m, "grad mode"), False),
    "tracking off": ("BN101", each(untracked), False),
    "left in train()": ("BN109", some(lambda layer: layer.train()), False),
    "updates in eval": ("BN102", lambda m: booked(m, "updates in eval"), False),
    "plain attributes": ("BN103", lambda m: booked(m, "attributes"), True),
    "lag": ("BN104", lagging, True),
    "frozen, yet moving": ("BN106", each(frozen), True),
    "some frozen by eval": ("BN109", some(lambda layer: layer.eval(), 0), True),
    "never updated": ("BN110", each(lambda layer: layer.reset_running_stats()), False),
    "one never updated": ("BN110", some(lambda layer: layer.reset_running_stats()), True),
    "NaN": ("BN111", some(put("running_mean", float("nan"))), True),
    "infinite": ("BN111", some(put("running_var", float("inf"))), True),
    "negative": ("BN111", some(put("running_var", -0.5)), True),
    "zero": ("BN111", some(put("running_var", 0.0)), True),
    "half statistics": ("BN112", lambda m: m.to(torch.bfloat16), True),
    "graph": ("BN115", lambda m: booked(m, "graph"), True),
    "root stored": ("BN114", lambda m: booked(m, "stores the root"), True),
    "biased variance": ("BN210", lambda m: booked(m, "biased"), True),
    "bias": ("BN201", biased, True),
    "twice": ("BN202", once_more, True),
    "at the end": ("BN203", lambda m: nn.Sequential(m, nn.BatchNorm1d(10)), True),
    "dropout before": ("BN204", after(nn.ReLU, lambda _: nn.Dropout(0.5)), True),
    "dead": ("BN205", some(dead), True),
    "epsilon": ("BN206", each(lambda layer: setattr(layer, "eps", 100.0)), True),
    "momentum": ("BN207", each(lambda layer: setattr(layer, "momentum", 0.9)), True),
}
PAIRS = [
    ("lag", "momentum"),
    ("bias", "dropout before"),
    ("NaN", "bias"),
    ("frozen, yet moving", "epsilon"),
    ("dead", "momentum"),
    ("bias", "half statistics"),
    ("tracking off", "bias"),
    ("lag", "frozen, yet moving"),
    ("at the end", "bias"),
    ("one never updated", "bias"),
    ("some frozen by eval", "lag"),
    ("graph", "bias"),
]
