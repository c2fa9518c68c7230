"""The catalogue of findings: for each code what it is, what to do, and where the lessons explain it."""

PAGES = {  # lesson -> its notebook
    1: "01_class_grades",
    2: "02_batchnorm1d",
    3: "03_batchnorm2d_loops",
    4: "04_batchnorm2d_vectorized",
    5: "05_lenet_gpu",
    6: "06_backward",
    7: "07_other_norms",
    8: "08_many_machines",
    9: "09_in_production",
}
PATIENTS = 9, "9. What is wrong with this network?"
NAN = 9, "7. Mixed precision, and NaN for ever"
FREEZING = 9, "3. Freezing for fine-tuning"
CODES = {  # code -> (what it is, what to do, lesson, its heading)
    "BN101": (
        "an answer changes with its companions in eval()",
        "take the running statistics in evaluation: `training=self.training`, tracking on, `eval()` on every layer",
        5,
        "8. The evaluation that cheats",
    ),
    "BN102": (
        "something changes during eval()",
        "update running statistics in training only: `if self.training`",
        4,
        "Bug 1: the mode is read off the gradients",
    ),
    "BN103": (
        "eval() uses more than state_dict() holds",
        "keep the running statistics with `register_buffer`, not as plain attributes",
        4,
        "Bug 2: the moving statistics are plain attributes",
    ),
    "BN104": (
        "running statistics lag behind the weights",
        "`bnlib.reestimate_statistics(model, images)`, or let the learning rate fall at the end",
        5,
        "7. The riddle of the jumping test curve",
    ),
    "BN105": (
        "the target's statistics are elsewhere",
        "another domain and another mix of classes look alike without labels. Score both on a few labelled target "
        "images; re-estimate on the target only where that helps and the mix of classes is the same",
        9,
        "4. Other data at test time",
    ),
    "BN106": (
        "frozen, yet moving",
        "`requires_grad=False` stops γ and β only: call `eval()` on these layers, after each `model.train()`",
        *FREEZING,
    ),
    "BN107": (
        "updated more than once in a training step",
        "checkpointing runs the forward pass again: leave BN out of the checkpointed part, or use "
        "momentum 1 - √(1 - m)",
        9,
        "6. Checkpointing",
    ),
    "BN108": (
        "one layer at several places",
        "a set of running statistics for each place, if what reaches them differs: a layer each",
        *PATIENTS,
    ),
    "BN109": (
        "modes are mixed",
        "call `model.train()` or `model.eval()` on the whole; to freeze some layers on purpose, override `train`",
        *FREEZING,
    ),
    "BN110": (
        "running statistics never updated",
        "load them (`strict=True` says what is missing), copy buffers as well as parameters, or re-estimate them",
        9,
        "8. Loading errors, line by line",
    ),
    "BN111": (
        "running statistics that cannot be",
        "find the batch that did it, `reset_running_stats()`, and re-estimate: an average never forgets NaN",
        *NAN,
    ),
    "BN112": (
        "running statistics in half precision",
        "keep BN layers in float32: small updates round away in 16 bits",
        *NAN,
    ),
    "BN113": (
        "too few values share a mean",
        "larger batches, frozen statistics, or a norm that does not look at the batch; drop a last batch of one",
        4,
        "8. Small batches, and norms that do not mind",
    ),
    "BN114": (
        "train() and eval() are apart on the same batch",
        "compare the layer with torch's in both modes; where it is right, raise the batch size or re-estimate",
        4,
        "6. Two modes, and three ways not to freeze",
    ),
    "BN115": (
        "running statistics hold a gradient graph",
        "update them under `torch.no_grad()`, from detached statistics",
        2,
        "7. The gradient goes through the mean and the variance",
    ),
    "BN116": ("outputs are not finite", "look for the first layer with NaN or inf in its weights or statistics", *NAN),
    "BN201": ("a bias without effect", "`bias=False`: the BN behind it subtracts it again", *PATIENTS),
    "BN202": ("two normalizations in a row", "leave one out", *PATIENTS),
    "BN203": (
        "batch normalization at the very end",
        "leave it out, unless outputs are to have a given mean and spread",
        *PATIENTS,
    ),
    "BN204": (
        "dropout before batch normalization",
        "put dropout behind the last BN: in evaluation the variance is another",
        *PATIENTS,
    ),
    "BN205": (
        "dead channels",
        "a constant input or γ = 0: nothing passes. Look at what comes before, or prune",
        *PATIENTS,
    ),
    "BN206": (
        "ε outweighs the variance",
        "a smaller ε, or larger inputs: √(var + ε) is then mostly ε",
        4,
        "ε inside the root",
    ),
    "BN207": (
        "momentum of another framework's convention",
        "in PyTorch it is the share of the new batch: 0.1 here is 0.9 elsewhere",
        3,
        "5. Momentum",
    ),
    "BN208": (
        "weight decay on γ and β",
        "a parameter group of their own with weight_decay=0, if they are to be left alone",
        9,
        "5. Weight decay on γ and β",
    ),
    "BN209": (
        "no batch normalization at all",
        "nothing to do: only the model as a whole was examined",
        2,
        "1. Build it, then call it",
    ),
    "BN210": (
        "the biased variance is stored",
        "store n / (n - 1) times the batch's variance",
        4,
        "Bug 3: the moving variance is biased",
    ),
    "BN301": (
        "the model does not run on the data",
        "give data that model(x) takes: a batch, (x, labels), or what `load_images` returns",
        *PATIENTS,
    ),
    "BN302": ("a part of the examination was not possible", "the findings are those of the other parts", *PATIENTS),
}
