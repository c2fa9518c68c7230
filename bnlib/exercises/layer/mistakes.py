"""What can be wrong with a layer beside its formulas: how its tensors are kept, start, are moved and saved."""

MODE, ATTRIBUTES, NOT_SAVED = "mode taken from grad mode", "plain attributes", "buffers not saved"
NO_PARAMETERS, SHARED = "gamma and beta are no parameters", "statistics shared between layers"
UNTRAINED, EARLIER = "evaluation before training fails", "depends on earlier batches"
RELOAD, CUMULATIVE = "state_dict does not restore the layer", "cumulative average instead of momentum"
KEPT_AS = {"attribute": ATTRIBUTES, "unsaved buffer": NOT_SAVED, "parameter": "running statistics as parameters"}
CAUSES = {  # {} stands for what an attempt shows
    MODE: "whether it trains or evaluates depends on `torch.no_grad()` (`torch.is_grad_enabled()`), not on `train()` "
    "and `eval()`: use `self.training`",
    ATTRIBUTES: "the running statistics are plain attributes: `state_dict()` does not save them and `.to(device)` "
    "leaves them behind; use `self.register_buffer(name, tensor)`",
    NOT_SAVED: "the running statistics are registered with persistent=False, so `state_dict()` leaves them out",
    "running statistics as parameters": "the running statistics are `nn.Parameter`s, so they are among `parameters()` "
    "for the optimiser to change; use `self.register_buffer(name, tensor)`",
    NO_PARAMETERS: "γ and β are not among `parameters()`, so no optimiser finds them; use `nn.Parameter`",
    "gamma and beta missing": "the layer has no γ and β; they are `nn.Parameter`s of shape (C,)",
    "running statistics missing": "the layer keeps no running mean and variance; eval() needs them: buffers of shape "
    "(C,)",
    "shaped": "the {} shaped {}; keep (C,), as torch.nn does, and give it another shape in the forward pass only, or "
    "a `state_dict` of torch.nn does not fit",
    "gamma does not start at 1": "γ starts at {}; a new layer has γ = 1, so that it only normalises",
    "beta does not start at 0": "β starts at {}; a new layer has β = 0, so that it only normalises",
    "running mean does not start at 0": "the running mean starts at {}; in PyTorch it starts at 0",
    "running variance does not start at 1": "the running variance starts at {}; in PyTorch it starts at 1",
    "running statistics carry the graph": "the running statistics keep the graph of every batch alive (and cannot be "
    "deep-copied): update them under `torch.no_grad()` or from `mean.detach()`",
    "cannot be copied": "`copy.deepcopy(layer)` fails: {}",
    SHARED: "training one layer changes another one: the tensors belong to the class, or are defaults made once; make "
    "them in `__init__`",
    "one value per channel accepted": "in training, an input of shape (1, C, 1, 1) has one value per channel and no "
    "spread: raise a ValueError, as torch.nn does",
    "another error for one value per channel": "in training, an input of shape (1, C, 1, 1) has one value per "
    "channel: {}; raise a ValueError, as torch.nn does",
    "one image refused": "in training, a batch of one image raises {}; an image has many values per channel, count "
    "them, x.numel() / C, not the images",
    "one value per channel refused in evaluation": "eval() needs no spread, the running statistics give it: an input "
    "of shape (1, C, 1, 1) is fine there",
    RELOAD: "after load_state_dict a new layer gives other outputs in eval(): something that matters is not saved",
    "does not move with the layer": "after `.to(torch.float64)` a part of the layer is still float32: register it as "
    "a parameter or a buffer",
    CUMULATIVE: "every batch weighs the same in the running statistics (momentum=None); asked for is momentum 0.1",
    "__call__ instead of forward": "the class defines `__call__`, where a module defines `forward`, which nn.Module's "
    "own `__call__` calls",
    "made in the first call": "{} made by the first call of `forward`: before it there is nothing for an optimizer or "
    "a `state_dict` to find; make them in `__init__`",
    UNTRAINED: "eval() of a layer that was never trained raises {}: the statistics have to be tensors from the start, "
    "the mean 0 and the variance 1",
    "update hangs on requires_grad": "the running statistics are updated otherwise when {}; whether something is "
    "learned has nothing to do with them, use `self.training`",
    EARLIER: "in train(), the same input with the same statistics gives something else from the second batch on: look "
    "at what the layer keeps beside them",
    "first batch enters otherwise": "after the first training batch the statistics are not what they become from a "
    "mean of 0 and a variance of 1: they start as something else, or the first batch is stored in full",
    "the first batch's statistics for ever": "from the second training batch on, the first batch's mean and variance "
    "still normalise; take each batch's own",
    "evaluation changes training": "after a call in eval(), a training batch gives something else than without it",
}
