"""Networks written after the code of `examine`, in other idioms than the zoo's: (broken with their codes, healthy)."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def data():
    g = torch.Generator().manual_seed(5)
    x = torch.rand(256, 1, 16, 16, generator=g)
    y = torch.randint(0, 4, (256,), generator=g)
    for i in range(256):
        x[i, 0, 3 + 3 * y[i]] += 1.0
    return x, y


def fit(net, steps=60, lr=0.1, loss=None):
    x, y = data()
    params = [p for p in net.parameters() if p.requires_grad]
    opt = torch.optim.SGD(params, lr=lr) if params else None
    net.train()
    for i in range(steps):
        rows = torch.arange(i * 32, i * 32 + 32) % 256
        out = net(x[rows])
        out = next(t for t in (out.values() if isinstance(out, dict) else out if isinstance(out, tuple) else [out]))
        value = F.cross_entropy(out, y[rows]) if out.dim() == 2 and out.shape[1] == 4 else (out**2).mean()
        if opt:
            opt.zero_grad(), value.backward(), opt.step()
    with torch.no_grad():
        for i in range(50):
            net(x[torch.arange(i * 32, i * 32 + 32) % 256])
    return net


class FusedByHand(nn.Module):  # a hand-written BN inside a block with its convolution
    def __init__(self, flaw="", i=1, o=8):
        super().__init__()
        self.flaw = flaw
        self.w, self.g, self.b = (
            nn.Parameter(t) for t in (torch.randn(o, i, 3, 3) * 0.3, torch.ones(o), torch.zeros(o))
        )
        self.register_buffer("mu", torch.zeros(o))
        self.register_buffer("sigma2", torch.ones(o))

    def forward(self, x):
        x = F.conv2d(x, self.w, padding=1)
        if self.training or self.flaw == "always":
            m, v = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            if self.flaw != "stale":
                self.mu.data.lerp_(m.detach(), 0.1)
                self.sigma2.data.lerp_(v.detach(), 0.1)
        else:
            m, v = self.mu, self.sigma2
        x = (x - m[:, None, None]) * (self.g / (v + 1e-5).sqrt())[:, None, None] + self.b[:, None, None]
        return F.relu(x)


class Unet(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict(
            {
                "down": nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.LeakyReLU()),
                "mid": nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.LeakyReLU()),
                "up": nn.ConvTranspose2d(16, 4, 4, 2, 1),
            }
        )

    def forward(self, x):
        a = self.parts["down"](x)
        return self.parts["up"](torch.cat([a, self.parts["mid"](a)], 1))


class BNTransformer(nn.Module):
    def __init__(self, batch_first=True):
        super().__init__()
        self.embed = nn.Linear(16, 16)
        self.attn = nn.MultiheadAttention(16, 2, batch_first=batch_first)
        self.bn1, self.bn2 = nn.BatchNorm1d(16), nn.BatchNorm1d(16)
        self.ff, self.out = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)), nn.Linear(16, 4)
        self.last_attention = None

    def forward(self, x):
        h = self.embed(x[:, 0])
        a, self.last_attention = self.attn(h, h, h)
        h = self.bn1((h + a).transpose(1, 2)).transpose(1, 2)
        h = self.bn2((h + self.ff(h)).transpose(1, 2)).transpose(1, 2)
        return {"logits": self.out(h.mean(1)), "hidden": h}


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            [nn.Conv2d(1, 8, 4, 2, 1), nn.Conv2d(8, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16)]
        )
        self.out = nn.Linear(17 * 16, 4)

    def forward(self, x):
        x = F.leaky_relu(self.blocks[0](x), 0.2)
        x = F.leaky_relu(self.blocks[2](self.blocks[1](x)), 0.2)
        deviation = x.std(0, unbiased=False).mean().expand(len(x), 1, 4, 4)  # minibatch standard deviation
        return self.out(torch.cat([x, deviation], 1).flatten(1))


class LSTMWithBN(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.norm, self.out = nn.LSTMCell(16, 12), nn.BatchNorm1d(12), nn.Linear(12, 4)

    def forward(self, x):
        h = c = x.new_zeros(len(x), 12)
        for t in range(x.shape[2]):
            h, c = self.cell(x[:, 0, t], (self.norm(h), c))
        return self.out(h), h


class Standardised(nn.Conv2d):
    def forward(self, x):
        w = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True).reshape_as(
            self.weight
        )
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class Ghost(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.bn = nn.BatchNorm2d(c)

    def forward(self, x):
        return torch.cat([self.bn(part) for part in x.chunk(4)]) if self.training and len(x) >= 8 else self.bn(x)


class Stateful(nn.Module):  # counts calls, keeps features of the last one
    def __init__(self):
        super().__init__()
        self.body = net()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.features = self.body[:3](x)
        return self.body(x)


class KeepsFrozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.head = net(), nn.Linear(4, 4)

    def forward(self, x):
        return self.head(F.relu(self.trunk(x)))

    def train(self, mode=True):
        super().train(mode)
        for m in self.trunk.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eval()
                m.requires_grad_(False)
        return self


class Recomputes(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.bn = nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.out = nn.Linear(8, 4)

    def forward(self, x):
        x = (
            checkpoint(lambda t: self.bn(self.a(t)), x, use_reentrant=True)
            if x.requires_grad
            else checkpoint(lambda t: self.bn(self.a(t)), x, use_reentrant=False)
        )
        return self.out(F.relu(x).mean((2, 3)))


class GradMode(nn.BatchNorm2d):
    def forward(self, x):
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            torch.is_grad_enabled(),
            self.momentum,
            self.eps,
        )


def net(norm=nn.BatchNorm2d, bias=False, **more):
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, 2, 1, bias=bias), norm(8, **more), nn.SiLU()),
        *(nn.Conv2d(8, 16, 3, 2, 1, bias=bias), norm(16, **more), nn.SiLU()),
        *(nn.Flatten(), nn.Linear(256, 4)),
    )


def change(model, f):
    with torch.no_grad():
        f(model)
    return model


def bns(model):
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]


def frozen(model, name):
    model.get_submodule(name).requires_grad_(False)
    return model.train()


def teacher(model):  # parameters only
    new = net()
    with torch.no_grad():
        for a, b in zip(new.parameters(), model.parameters(), strict=True):
            a.copy_(b)
    return new.eval()


def broken():
    return {
        "fused, always": (fit(nn.Sequential(FusedByHand("always"), nn.Flatten(), nn.Linear(2048, 4))).eval(), "BN101"),
        "fused, NaN": (
            change(
                fit(nn.Sequential(FusedByHand(), nn.Flatten(), nn.Linear(2048, 4))),
                lambda m: m[0].mu.fill_(float("nan")),
            ),
            "BN111",
        ),
        "fused, never moved": (
            fit(nn.Sequential(FusedByHand("stale"), nn.Flatten(), nn.Linear(2048, 4))).eval(),
            "BN110",
        ),
        "grad mode": (fit(net(GradMode)).eval(), "BN101"),
        "grad mode, changes": (fit(net(GradMode)).eval(), "BN102"),
        "teacher": (teacher(fit(net())), "BN110"),
        "momentum .99": (fit(net(momentum=0.99)), "BN207"),
        "eps": (fit(net(eps=5.0)), "BN206"),
        "bias": (fit(net(bias=True)), "BN201"),
        "unet lag": (change(fit(Unet()), lambda m: [b.running_var.mul_(30) for b in bns(m)]), "BN104"),
        "transformer NaN": (change(fit(BNTransformer()), lambda m: m.bn2.running_var.fill_(float("nan"))), "BN111"),
        "transformer frozen": (frozen(fit(BNTransformer()), "bn1"), "BN106"),
        "recomputes": (fit(Recomputes()).train(), "BN107"),
        "lstm shared": (fit(LSTMWithBN()), "BN108"),
        "one layer back in train": (change(fit(net()).eval(), lambda m: m[4].train()), "BN109"),
        "zero variance": (change(fit(net()), lambda m: m[1].running_var.zero_()), "BN111"),
        "one mean shifted": (change(fit(net()), lambda m: m[4].running_mean.add_(3)), "BN104"),
        "loaded bf16": (fit(net()).to(torch.bfloat16), "BN112"),
        "sigmoid end": (fit(nn.Sequential(*net(), nn.BatchNorm1d(4))), "BN203"),
        "dropout .3": (
            fit(
                nn.Sequential(
                    nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Dropout(0.3), nn.BatchNorm1d(64), nn.Linear(64, 4)
                )
            ),
            "BN204",
        ),
        "dropout, linear": (
            fit(
                nn.Sequential(
                    nn.Flatten(), nn.Dropout(0.5), nn.Linear(256, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 4)
                )
            ),
            "BN204",
        ),
        "dead relu": (change(fit(net()), lambda m: m[1].weight[:4].zero_()), "BN205"),
        "two in a row": (
            fit(
                nn.Sequential(
                    nn.Conv2d(1, 8, 3, bias=False),
                    nn.BatchNorm2d(8),
                    nn.Identity(),
                    nn.BatchNorm2d(8),
                    nn.Flatten(),
                    nn.Linear(1568, 4),
                )
            ),
            "BN202",
        ),
        "no tracking": (fit(net(track_running_stats=False)).eval(), "BN101"),
        "huge": (change(fit(net()), lambda m: m[1].running_mean.fill_(1e20)), "BN111"),
        "early stop of momentum": (fit(net(momentum=0.0)), "BN110"),
    }


def healthy():
    return {
        "unet": fit(Unet()).eval(),
        "transformer": fit(BNTransformer()).eval(),
        "transformer without batch_first": fit(BNTransformer(batch_first=False)).eval(),
        "discriminator": fit(Discriminator()).eval(),
        "lstm": fit(LSTMWithBN()).eval(),
        "weight standardisation": fit(
            nn.Sequential(Standardised(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(1568, 4))
        ),
        "ghost": fit(net(Ghost)).eval(),
        "stateful": fit(Stateful()).eval(),
        "keeps frozen": fit(KeepsFrozen()),
        "fused by hand": fit(nn.Sequential(FusedByHand(), nn.Flatten(), nn.Linear(2048, 4))),
        "fused by hand, eval": fit(nn.Sequential(FusedByHand(), nn.Flatten(), nn.Linear(2048, 4))).eval(),
        "tracking off": fit(net(track_running_stats=False)),
        "momentum None": fit(net(momentum=None)).eval(),
        "no affine": fit(net(affine=False)).eval(),
        "channels last": fit(net()).to(memory_format=torch.channels_last),
        "spectral": fit(
            nn.Sequential(
                nn.utils.parametrizations.spectral_norm(nn.Conv2d(1, 8, 3)),
                nn.BatchNorm2d(8),
                nn.Flatten(),
                nn.Linear(1568, 4),
            )
        ),
        "weight norm": fit(
            nn.Sequential(
                nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 8, 3)),
                nn.BatchNorm2d(8),
                nn.Flatten(),
                nn.Linear(1568, 4),
            )
        ),
        "dropout behind": fit(nn.Sequential(*net()[:7], nn.Dropout(0.5), nn.Linear(256, 4))).eval(),
        "lazy": nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(4)),
        "sync": nn.SyncBatchNorm.convert_sync_batchnorm(fit(net())).eval(),
        "one linear": fit(nn.Sequential(nn.Flatten(), nn.Linear(256, 4))),
        "checkpointed": fit(Recomputes()),
    }
