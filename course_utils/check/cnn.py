"""Exercises of lecture 01: count, choose, convolve, calibrate and train."""

import torch
import torch.nn.functional as F

from course_utils.check.answers import SOFTMAX_TWICE, softmax_twice
from course_utils.check.exercise import exercise
from course_utils.core import runtime


def logits_and_labels():
    """Three of four images right, then all of them."""
    rows = [[2, 1, 0, 0.1], [0, 3, 1, 0.3], [5, 4, 6, 0.2], [1, 0.5, 0.2, 0.1]]
    logits = torch.tensor(rows)
    return [(logits, torch.tensor([0, 1, 0, 0])), (logits, logits.argmax(1))]


def count_right(case, got, want):
    logits, y = case
    right = int((logits.argmax(1) == y).sum())
    return (
        f"{right} of the {len(y)} images are right, so the accuracy is {want.item():.3g}; "
        f"you return {got.item():.3g}. Is argmax over the classes, dimension 1?"
    )


@exercise(
    "01",
    "Accuracy from logits",
    level="easy",
    hints=(
        "The predicted class is where the logits are largest: argmax over the classes, "
        "which are dimension 1.",
        "(logits.argmax(1) == y) is a tensor of True and False; .float().mean() counts the share "
        "of True.",
    ),
    inputs=logits_and_labels,
    otherwise=count_right,
    mistakes={
        "that is the number of hits; divide by the number of images.": [
            lambda logits, y: (logits.argmax(1) == y).sum()
        ],
        "that is a percentage; the course gives accuracies in [0,1].": [
            lambda logits, y: 100 * (logits.argmax(1) == y).float().mean()
        ],
        "that is the error rate; 1 minus it.": [lambda z, y: (z.argmax(1) != y).float().mean()],
        "not one image counts as right. Is argmax over the classes, dimension 1, and compared "
        "image by image?": [
            lambda logits, y: (logits.argmax(0) == y).float().mean(),
            lambda logits, y: (logits.argmax() == y).float().mean(),
            lambda logits, y: (logits.argmax(1) == y).all(),
        ],
    },
)
def accuracy(logits, y):
    return (logits.argmax(1) == y).float().mean()


def epochs():
    return [
        ([0.970, 0.985, 0.981, 0.983], [0.970, 0.980, 0.988, 0.984]),
        ([0.9, 0.8, 0.95], [0.99, 0.7, 0.91]),
    ]


def show_epochs(case, got, want):
    validation, test = (", ".join(map(str, values)) for values in case)
    return (
        f"for validation {validation} and test {test} the answer is {want.item():.4g}; "
        f"you return {got.item():.4g}."
    )


@exercise(
    "01",
    "Choose by validation, report on test",
    level="easy",
    hints=(
        "Two lists, one number per epoch. Which epoch would you keep if you were not allowed to "
        "look at the test set?",
        "Find the epoch with the highest validation accuracy, and return the test accuracy of "
        "that epoch, whatever it is.",
    ),
    inputs=epochs,
    otherwise=show_epochs,
    mistakes={
        "that is the best test accuracy: choosing by it makes the test set part of the training. "
        "Choose by validation.": [lambda validation, test: max(test)],
        "that is the validation accuracy of the chosen epoch: it was used for choosing, "
        "so it flatters. Report test.": [lambda validation, test: max(validation)],
        "it is the other way round: report test.": [lambda v, test: v[test.index(max(test))]],
        "that is the last epoch; the best on validation is the second.": [lambda v, test: test[-1]],
        "that is the epoch; return the test accuracy there.": [lambda v, test: v.index(max(v))],
    },
)
def honest_accuracy(validation, test):
    return test[validation.index(max(validation))]


def pictures_and_filters():
    """Two pictures of three channels, higher than wide, and two filters of 3×3."""
    draw = runtime.generator(0)
    x = torch.rand(2, 3, 6, 5, generator=draw)
    w = torch.randn(2, 3, 3, 3, generator=draw)
    return [(x, w, torch.tensor([0.5, -1.0]))]


def conv(change):
    """The convolution of what ``change(x, w, b)`` makes of the arguments."""
    return lambda x, w, b: F.conv2d(*change(x, w, b))


@exercise(
    "01",
    "A convolution by hand",
    level="core",
    hints=(
        "Filter o has a k×k pattern for each channel. At place (i, j) it multiplies the k×k window "
        "that begins there with its patterns, adds up over all channels, and adds b[o] once.",
        "A filter of k×k fits at H − k + 1 places from top to bottom and W − k + 1 from left to "
        "right. The window is x[:, :, i : i + k, j : j + k], of shape (N, C, k, k).",
        "Two loops over i and j; inside, torch.einsum('ncuv,ocuv->no', window, w) + b.",
    ),
    inputs=pictures_and_filters,
    mistakes={
        "the bias is missing: add b[o] to all of map o.": [conv(lambda x, w, b: (x, w))],
        "only the first channel is seen: a filter has a pattern for each; add up their answers.": [
            conv(lambda x, w, b: (x[:, :1], w[:, :1], b))
        ],
        "only the last channel is seen. Is the sum begun anew for each channel?": [
            conv(lambda x, w, b: (x[:, -1:], w[:, -1:], b))
        ],
        "that is the mean over the channels; add up.": [conv(lambda x, w, b: (x, w / 3, b))],
        "the bias is added once a channel; add it once.": [conv(lambda x, w, b: (x, w, 3 * b))],
        "the filter is turned by 180°. Networks add the indices: x at i + u and j + v.": [
            conv(lambda x, w, b: (x, w.flip(-1, -2), b))
        ],
        "rows and columns of the filter are exchanged: u goes with i, v with j.": [
            conv(lambda x, w, b: (x, w.mT, b))
        ],
        "has shape (2, 2, 6, 5) and should have (2, 2, 4, 3)": [
            conv(lambda x, w, b: (F.pad(x, (1, 1, 1, 1)), w, b))
        ],
    },
)
def convolve(x, w, b):
    return F.conv2d(x, w, b)


def confidences():
    """Six images in three of ten bins, one with confidence 1; the same in four bins."""
    confidence = torch.tensor([0.97, 1.0, 0.93, 0.62, 0.68, 0.33])
    right = torch.tensor([True, False, True, True, False, True])
    return [(confidence, right, 10), (confidence, right, 4)]


def of_gaps(measure):
    """An answer: a measure of each bin's share of the images, and of its gap."""

    def answer(confidence, right, bins):
        row = (confidence * bins).long().clamp(max=bins - 1)
        inside = [row == k for k in range(bins) if (row == k).any()]
        gap = [confidence[here].mean() - right[here].float().mean() for here in inside]
        return measure(torch.stack([here.float().mean() for here in inside]), torch.stack(gap))

    return answer


@exercise(
    "01",
    "Expected calibration error",
    level="core",
    hints=(
        "Sort the images into bins of equal width by confidence. In each bin compare the mean "
        "confidence with the share that is right; a bin counts by its number of images.",
        "(confidence * bins).long() is the bin; a confidence of 1 belongs to the last one.",
        "Add up, over the bins that hold images, len(bin) / N times the absolute difference.",
    ),
    inputs=confidences,
    mistakes={
        "all bins count alike: weight each by its share of the images.": [
            of_gaps(lambda share, gap: gap.abs().mean())
        ],
        "too sure in one bin makes up for too modest in another: take absolute values.": [
            of_gaps(lambda share, gap: (share * gap).sum().abs()),
        ],
        "that is the largest gap; take the mean.": [of_gaps(lambda share, gap: gap.abs().max())],
        "bins without images divide 0 by 0. Leave them out.": [lambda *_: float("nan")],
        "the image with confidence 1 is in no bin; it belongs to the last.": [
            lambda c, right, bins: calibration_error.right(c[c < 1], right[c < 1], bins) * 5 / 6
        ],
    },
)
def calibration_error(confidence, right, bins):
    return of_gaps(lambda share, gap: (share * gap.abs()).sum())(confidence, right, bins)


def softmax_regression():
    """Ten points with four features and three classes, in batches of four, four and two rows."""
    draw = runtime.generator(0)
    x = torch.randn(10, 4, generator=draw)
    W = torch.randn(4, 3, generator=draw)
    return [(W, x, torch.arange(10) % 3, list(torch.randperm(10, generator=draw).split(4)), 0.5)]


def loop(loss=F.cross_entropy, reduction="mean", sign=-1, batches=slice(None), **wrong):
    """One epoch of SGD, with what a typical mistake does otherwise."""

    def epoch(W, x, y, parts, step_size):
        start, gradient = W, 0
        for rows in parts[batches]:
            rows = torch.arange(len(x)) if "all" in wrong else rows
            at = (start if "still" in wrong else W).clone().requires_grad_()
            value = loss(x[rows] @ at, y[rows], reduction=reduction)
            kept = gradient if "kept" in wrong else 0
            gradient = kept + torch.autograd.grad(value, at)[0]
            W = W + sign * step_size * gradient
        return W

    return epoch


@exercise(
    "01",
    "One epoch of SGD",
    level="hard",
    hints=(
        "For each batch of rows: the loss of these rows at the present weights, its gradient, "
        "a step of step_size against it. The next batch starts from the new weights.",
        "The logits are x[rows] @ W, and F.cross_entropy takes them as they are. Work on "
        "W.clone().requires_grad_(), so that the caller's weights stay.",
        "optimizer = torch.optim.SGD([W], lr=step_size); per batch: loss, optimizer.zero_grad(), "
        "loss.backward(), optimizer.step(). At the end return W.detach().",
    ),
    inputs=softmax_regression,
    mistakes={
        "gradients add up over the batches: zero_grad() before backward().": [loop(kept=True)],
        "the loss rises: step against the gradient, with a minus.": [loop(sign=1)],
        "all gradients are taken at the first weights: step inside the loop.": [loop(still=True)],
        "only the last batch counts: step inside the loop.": [loop(batches=slice(-1, None))],
        "only the first batch counts: return after the loop.": [loop(batches=slice(1))],
        SOFTMAX_TWICE.replace("model(x)", "x[rows] @ W"): [loop(loss=softmax_twice)],
        "that is the sum over the batch; take the mean.": [loop(reduction="sum")],
        "each step uses all images; take those of the batch, x[rows].": [loop(all=True)],
        "the weights have not moved. Is there a step, and is what moved returned?": [loop(sign=0)],
    },
)
def sgd_epoch(W, x, y, batches, step_size):
    return loop()(W, x, y, batches, step_size)
