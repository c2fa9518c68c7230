"""A third set of networks, written after `examine` was mended for the second: (broken with their codes, healthy)."""

import copy
from collections import namedtuple

import torch
from torch import nn
from torch.nn import functional as F
from zoo_second import bns, change, fit, frozen

Out = namedtuple("Out", "logits aux")


class Norm3(nn.Module):  # BN over (N, L, C), channels last, by hand; ε outside the root where asked
    def __init__(self, c, flaw=""):
        super().__init__()
        self.flaw, self.scale, self.shift = flaw, nn.Parameter(torch.ones(1, c, 1)), nn.Parameter(torch.zeros(1, c, 1))
        self.register_buffer("avg", torch.zeros(1, c, 1), persistent=flaw != "not persistent")
        self.register_buffer("spread", torch.ones(1, c, 1), persistent=flaw != "not persistent")

    def forward(self, x):
        if self.training:
            m, v = x.mean((0, 2), True), x.var((0, 2), False, keepdim=True)
            rate = 0.9 if self.flaw == "reversed" else 0.1
            self.avg = (1 - rate) * self.avg + rate * m.detach()
            self.spread = (1 - rate) * self.spread + rate * v.detach()
        else:
            m, v = self.avg, self.spread
            if self.flaw == "no root in eval":
                v = v**2
        return (x - m) * torch.rsqrt(v + 1e-5) * self.scale + self.shift


class Conv1d(nn.Module):
    def __init__(self, norm=nn.BatchNorm1d, **more):
        super().__init__()
        self.c1, self.n1 = nn.Conv1d(16, 12, 3, padding=1, bias=False), norm(12, **more)
        self.c2, self.n2 = nn.Conv1d(12, 12, 3, padding=1, bias=False), norm(12, **more)
        self.fc = nn.Linear(12, 4)

    def forward(self, x):
        x = F.relu(self.n1(self.c1(x[:, 0])))
        x = x + F.relu(self.n2(self.c2(x)))
        return Out(self.fc(x.mean(2)), x)


class Vae(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc = nn.Sequential(nn.Flatten(), nn.Linear(256, 32, bias=False), nn.BatchNorm1d(32), nn.ELU())
        self.mu, self.log = nn.Linear(32, 4), nn.Linear(32, 4)
        self.dec = nn.Sequential(nn.Linear(4, 32, bias=False), nn.BatchNorm1d(32), nn.ELU(), nn.Linear(32, 256))

    def forward(self, x):
        h = self.enc(x)
        mu = self.mu(h)
        z = mu + torch.randn_like(mu) * (0.5 * self.log(h)).exp()
        return self.dec(z).view_as(x), mu


class Mobile(nn.Module):
    def __init__(self, momentum=0.1):
        super().__init__()

        def cbr(i, o, k, s, g=1):
            return [
                nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False),
                nn.BatchNorm2d(o, momentum=momentum),
                nn.ReLU6(),
            ]

        self.features = nn.Sequential(
            *cbr(1, 8, 3, 2), *cbr(8, 24, 1, 1), *cbr(24, 24, 3, 1, 24), *cbr(24, 8, 1, 1)[:2]
        )
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, 4))

    def forward(self, x):
        return self.classifier(self.features(x))


class Aux(nn.Module):  # a part that runs in training alone
    def __init__(self):
        super().__init__()
        self.body = Mobile()
        self.aux = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))

    def forward(self, x):
        return (self.body(x), self.aux(x)) if self.training else self.body(x)


class Depth(nn.Module):  # stochastic depth
    def __init__(self):
        super().__init__()
        self.stem, self.block = (
            nn.Conv2d(1, 8, 3, 2, 1),
            nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1)),
        )
        self.end = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4))

    def forward(self, x):
        x = self.stem(x)
        if not self.training or torch.rand(()) < 0.8:
            x = x + self.block(x)
        return self.end(x)


class Forgets(nn.Module):  # F.batch_norm on buffers, whose call says momentum=1 and training=True
    def __init__(self):
        super().__init__()
        self.lin, self.out = nn.Linear(256, 16), nn.Linear(16, 4)
        self.register_buffer("m", torch.zeros(16))
        self.register_buffer("v", torch.ones(16))

    def forward(self, x):
        return self.out(
            F.relu(F.batch_norm(self.lin(x.flatten(1)), self.m, self.v, training=self.training, momentum=1.0))
        )


class Untouched(nn.Module):  # a hand-made EMA of the whole network
    def __init__(self):
        super().__init__()
        self.student, self.teacher = Mobile(), Mobile().requires_grad_(False)
        self.use = "student"

    def forward(self, x):
        return getattr(self, self.use)(x)


def ema():
    both = Untouched()
    fit(both)
    with torch.no_grad():
        for a, b in zip(both.teacher.parameters(), both.student.parameters(), strict=True):
            a.copy_(b)
    both.use = "teacher"
    return both.eval()


def with_bias(model):
    for name in ("c1", "c2"):
        old = getattr(model, name)
        setattr(model, name, nn.Conv1d(old.in_channels, old.out_channels, 3, padding=1))
    return model


def broken():
    return {
        "not persistent": (fit(Conv1d(lambda c: Norm3(c, "not persistent"))), "BN103"),
        "reversed": (fit(Conv1d(lambda c: Norm3(c, "reversed"))), "BN207"),
        "no root in eval": (fit(Conv1d(lambda c: Norm3(c, "no root in eval"))), "BN114"),
        "momentum 1": (fit(Forgets()), "BN207"),
        "vae, lag": (
            change(fit(Vae()), lambda m: [b.running_mean.sub_(2 * b.running_var.sqrt()) for b in bns(m)]),
            "BN104",
        ),
        "vae, inf": (change(fit(Vae()), lambda m: m.dec[1].running_var.fill_(float("inf"))), "BN111"),
        "mobile, negative": (change(fit(Mobile()), lambda m: m.features[4].running_var[:3].fill_(-1)), "BN111"),
        "mobile, ema": (ema(), "BN110"),
        "mobile, halved": (fit(Mobile()).half().float().to(torch.bfloat16).eval(), "BN112"),
        "tuple, bias": (fit(with_bias(Conv1d())), "BN201"),
        "tuple, eps": (fit(Conv1d(eps=10.0)), "BN206"),
        "tuple, one eval": (change(fit(Conv1d()), lambda m: m.n2.eval()), "BN109"),
        "tuple, frozen": (frozen(fit(Conv1d()), "n1"), "BN106"),
        "stem left training": (change(fit(Mobile()).eval(), lambda m: m.features[1].train()), "BN109"),
        "aux, momentum": (fit(Mobile(momentum=0.95)), "BN207"),
        "gamma dead": (change(fit(Conv1d()), lambda m: m.n1.weight[::2].zero_()), "BN205"),
        "constant input": (change(fit(Mobile()), lambda m: m.features[0].weight[2].zero_()), "BN205"),
        "end of a tuple": (fit(nn.Sequential(nn.Flatten(), nn.Linear(256, 4, bias=False), nn.BatchNorm1d(4))), "BN203"),
        "input dropout .2": (
            fit(
                nn.Sequential(
                    nn.Flatten(),
                    nn.Linear(256, 32),
                    nn.BatchNorm1d(32),
                    nn.GELU(),
                    nn.AlphaDropout(0.4),
                    nn.BatchNorm1d(32),
                    nn.Linear(32, 4),
                )
            ),
            "BN204",
        ),
        "spatial dropout": (
            fit(
                nn.Sequential(
                    nn.Conv2d(1, 8, 3, 2),
                    nn.ReLU(),
                    nn.Dropout2d(0.4),
                    nn.BatchNorm2d(8),
                    nn.Flatten(),
                    nn.Linear(392, 4),
                )
            ),
            "BN204",
        ),
    }


def healthy():
    return {
        "conv1d, tuple": fit(Conv1d()).eval(),
        "channels by hand": fit(Conv1d(Norm3)).eval(),
        "channels by hand, training": fit(Conv1d(Norm3)),
        "vae": fit(Vae()).eval(),
        "vae, training": fit(Vae()),
        "mobile": fit(Mobile()),
        "aux": fit(Aux()),
        "depth": fit(Depth()).eval(),
        "depth, training": fit(Depth()),
        "new mobile": Mobile(),
        "new vae": Vae().eval(),
        "group norm": fit(
            nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.Flatten(), nn.Linear(1568, 4))
        ),
        "batch softmax": fit(nn.Sequential(nn.Flatten(), nn.Linear(256, 16), nn.Softmax(0), nn.Linear(16, 4))).eval(),
        "copy": copy.deepcopy(fit(Mobile())).double(),
        "tiny": fit(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(256), nn.Linear(256, 4))),
    }
