"""Every picture that is not an explorer: arrays in, a `Picture` out, which carries its own words.

No pyplot, so nothing stays open and no notebook needs a matplotlib magic.
"""

import base64
import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

BLUE, VERMILION, GREEN, PURPLE, SKY, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#666666"


def png_with_words(png, caption):
    """Return the mime bundle and metadata of a PNG (bytes) whose alternative text is `caption`."""
    return (
        {"image/png": base64.b64encode(png).decode(), "text/plain": caption},
        {"image/png": {"alt": caption}},
    )


class Picture:
    """A matplotlib figure and the sentence that says the same; a notebook shows the first and stores both."""

    def __init__(self, figure: Figure, caption: str):
        FigureCanvasAgg(figure)
        self.figure = figure
        self.caption = caption

    def png(self) -> bytes:
        """Return the picture as PNG."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()

    def __repr__(self):
        return self.caption

    def _repr_mimebundle_(self, include=None, exclude=None):
        return png_with_words(self.png(), self.caption)


LINES = ((BLUE, "-", "o"), (VERMILION, "--", "s"), (GREEN, "-.", "^"), (PURPLE, ":", "D"))  # never by colour alone


def curves(x, lines, x_label, y_label, log=False, log_x=False) -> Picture:
    """Return `lines` over one axis, each with its own colour, dashes and marker; the words give both ends of each.

    x           (T,) numbers that span several units, such as epochs
    lines       label -> (T,) numbers, four labels at most
    log, log_x  a logarithmic y axis, x axis
    """
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.add_subplot(xlabel=x_label, ylabel=y_label, yscale="log" if log else "linear")
    for (label, y), (colour, dashes, marker) in zip(lines.items(), LINES, strict=False):
        style = {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 4}
        axes.plot(x, y, **style, markevery=max(1, len(y) // 10), label=label)
    if log_x:
        axes.set_xscale("log")
    else:
        axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    ends = "; ".join(f"{label}: {y[0]:.3g} at the left, {y[-1]:.3g} at the right" for label, y in lines.items())
    return Picture(figure, f"{y_label} against {x_label}. {ends}.")


def before_after(before, after, names) -> Picture:
    """Return two number lines per feature: where each sample lies before and after normalization.

    before, after  (N, C) tensors
    names          C words
    """
    figure = Figure(figsize=(9, 0.6 * len(names) + 1.4), layout="constrained")
    sides = ((before, "before"), (after, "after: in standard deviations"))
    for axes, (values, title) in zip(figure.subplots(1, 2), sides, strict=True):
        for row, (column, (colour, _, marker)) in enumerate(zip(values.T.tolist(), LINES, strict=False)):
            axes.axhline(row, color=GREY, linewidth=0.5)
            axes.plot(column, [row] * len(column), linestyle="", color=colour, marker=marker, markersize=9)
            for sample, value in enumerate(column, start=1):
                axes.annotate(str(sample), (value, row), (0, 8), textcoords="offset points", ha="center", fontsize=9)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.7)
        axes.set_title(title)
    spans = "; ".join(
        f"{name} from {old.min():.1f} to {old.max():.1f} before, from {new.min():.2f} to {new.max():.2f} after"
        for name, old, new in zip(names, before.T, after.T, strict=True)
    )
    return Picture(figure, f"One dot a sample, one line a feature: {spans}.")


def training_curves(runs) -> Picture:
    """Return training loss and accuracies of several trainings over their epochs.

    runs  label -> `History`, four at most; test accuracy has a marker at each epoch
    """
    figure = Figure(figsize=(9, 3.8))
    losses, accuracies = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.065, right=0.99, top=0.96, bottom=0.24, wspace=0.17)  # a layout found costs two draws
    losses.set(xlabel="epochs", ylabel="training loss (nats)")
    accuracies.set(xlabel="epochs", ylabel="accuracy: line training, markers test", ylim=(0, 1))
    words = []
    for order, ((label, history), (colour, dashes, marker)) in enumerate(zip(runs.items(), LINES, strict=False)):
        epochs, loss, accuracy = zip(*history.points, strict=True) if history.points else ((),) * 3
        style = {"color": colour, "linestyle": dashes, "linewidth": 1.6}
        losses.plot(epochs, loss, **style)
        accuracies.plot(epochs, accuracy, **style)
        test = history.test_accuracy
        size = 9 - 2 * order  # so that a marker below another one still shows
        accuracies.plot(range(1, len(test) + 1), test, linestyle="", marker=marker, markersize=size, color=colour)
        losses.plot([], [], **style, marker=marker, label=label)
        words.append(f"{label}, {history!r}")
    for axes in (losses, accuracies):
        axes.grid(alpha=0.3)
    figure.legend(loc="lower center", ncols=len(runs), frameon=False)
    return Picture(figure, f"Training loss and accuracy over epochs. {'. '.join(words)}.")


class LiveCurves:
    """`training_curves` of several trainings in one picture that grows: `fit(..., on_epoch=live.follow("label"))`."""

    def __init__(self):
        self.runs = {}

    def follow(self, label):
        """Return an `on_epoch` that draws the history it is given, as `label`, with those of the trainings before."""
        from IPython.display import display  # only a notebook needs it

        handle = display({"text/plain": ""}, raw=True, display_id=True)

        def on_epoch(history):
            self.runs[label] = history
            handle.update(training_curves(self.runs))

        return on_epoch


def planes(x, channel) -> Picture:
    """Return the numbers of a batch of images, one row of blocks an image, with one channel's blocks filled.

    x        (N, C, H, W), small
    channel  which of the C
    """
    samples, channels, height, width = x.shape
    figure = Figure(figsize=(1.2 + 1.7 * channels, 0.6 + 0.85 * samples), layout="constrained")
    blocks = figure.subplots(samples, channels, squeeze=False)
    for n, row in enumerate(blocks):
        row[0].set_ylabel(f"image {n}", rotation=0, ha="right", va="center")
        for c, axes in enumerate(row):
            _numbers(axes, x[n, c], [BLUE if c == channel else None] * width)
            if n == 0:
                axes.set_title(f"channel {c}", fontweight="bold" if c == channel else "normal", fontsize=11)
    shared = x[:, channel]
    return Picture(
        figure,
        f"{samples} images in rows, {channels} channels in columns, {height}×{width} numbers in each block. Channel "
        f"{channel} is filled: {shared.numel()} numbers, {height * width} from each image, share one mean.",
    )


def pixels_as_rows(image) -> Picture:
    """Return an image's channels side by side, and the same numbers as a table: one row a pixel, one column a channel.

    image  (C, H, W), small, three channels at most
    """
    channels, height, width = image.shape
    colours = [colour for colour, _, _ in LINES[:channels]]
    figure = Figure(figsize=(9, 0.36 * height * width + 0.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(3, 2))
    for c, axes in enumerate(left.subplots(1, channels, squeeze=False)[0]):
        _numbers(axes, image[c], [colours[c]] * width)
        axes.set_title(f"channel {c}", fontsize=11)
        axes.set_aspect("equal")
    axes = right.add_subplot()
    _numbers(axes, image.flatten(1).T, colours)
    axes.set_xticks(range(channels), [f"channel {c}" for c in range(channels)])
    axes.set_yticks(range(height * width), [f"pixel {i}, {j}" for i in range(height) for j in range(width)])
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    return Picture(
        figure,
        f"Left: {channels} channels of {height}×{width} pixels. Right: the same numbers as a table of {height * width} "
        f"rows, one a pixel, and {channels} columns, one a channel. A channel on the left is a column on the right.",
    )


def _numbers(axes, values, fills):
    """Write the numbers (rows, columns) into a grid of squares; a column's fill is a colour or None."""
    rows, columns = values.shape
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), xticks=[], yticks=[])
    for j, fill in enumerate(fills):
        for i in range(rows):
            face = fill or "white"
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=face, alpha=0.3, edgecolor=GREY))
            weight = "bold" if fill else "normal"
            axes.text(j, i, f"{values[i, j]:g}", ha="center", va="center", fontweight=weight, fontsize=10)


def image_grid(images, rows=3) -> Picture:
    """Return the first `rows` training images of each class, one column a class; `images` as from `load_images`."""
    names = images.class_names
    figure = Figure(figsize=(len(names), rows + 0.4), layout="constrained")
    for column, name in enumerate(names):
        of_class = (images.train_labels == column).nonzero()[:rows, 0]  # (rows,)
        for row, index in enumerate(of_class.tolist()):
            axes = figure.add_subplot(rows, len(names), row * len(names) + column + 1)
            axes.imshow(images.train_images[index, 0].numpy(), cmap="gray_r", vmin=0, vmax=1)
            axes.set_axis_off()
            if row == 0:
                axes.set_title(name, fontsize=9)
    return Picture(figure, f"{rows} training images of each of {len(names)} classes: {', '.join(names)}.")


def gamma_beta(layers) -> Picture:
    """Return what was learned: one dot a channel, γ across and β up.

    layers  label -> (γ (C,), β (C,)), four labels at most
    """
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="γ, the scale (1 at the start)", ylabel="β, the shift (0 at the start)")
    axes.axvline(1, color=GREY, linewidth=0.8)
    axes.axhline(0, color=GREY, linewidth=0.8)
    for (label, (gamma, beta)), (colour, _, marker) in zip(layers.items(), LINES, strict=False):
        axes.plot(gamma, beta, linestyle="", color=colour, marker=marker, markersize=5, alpha=0.7, label=label)
    axes.legend(frameon=False)
    spans = "; ".join(
        f"{label}: γ from {gamma.min():.2f} to {gamma.max():.2f}, β from {beta.min():.2f} to {beta.max():.2f}"
        for label, (gamma, beta) in layers.items()
    )
    return Picture(figure, f"γ and β of each channel. {spans}.")


def lag_bars(lags) -> Picture:
    """Return how far each layer's running statistics lie from the data's: one bar a layer for mean and for variance.

    lags  layer -> (mean's distance in standard deviations, variance's factor), medians over its channels
    """
    figure = Figure(figsize=(9, 0.34 * max(len(lags), 2) + 1.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    rows = range(len(lags))
    means, factors = zip(*lags.values(), strict=True) if lags else ((), ())
    left.barh(rows, means, color=BLUE, height=0.6)
    right.barh(rows, [factor - 1 for factor in factors], left=1, color=VERMILION, height=0.6, hatch="//", edgecolor="w")
    left.set_yticks(rows, list(lags))
    left.invert_yaxis()
    left.set(xlabel="mean off by (standard deviations)")
    right.set(xlabel="variance off by a factor of")
    words = "; ".join(f"{name}: {mean:.3f} σ, factor {factor:.2f}" for name, (mean, factor) in lags.items())
    return Picture(figure, f"How far the running statistics lag, layer by layer. {words or 'No layer keeps any'}.")
