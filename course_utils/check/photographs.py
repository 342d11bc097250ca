"""Exercises of lecture 14: an honest picture, two gradients, a patch, and counting queries."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.check import answers
from course_utils.check.answers import NotYet, per_image
from course_utils.check.exercise import exercise
from course_utils.core import runtime
from course_utils.methods import patches, wrappers


def perturbations():
    """Three perturbations (3, 3, 4, 5): large, small, zero; the largest entries are negative."""
    delta = torch.randn(3, 3, 4, 5, generator=runtime.generator(4), dtype=torch.float64)
    delta = delta.clamp(-1.5, 1.5) * per_image(torch.tensor([0.05, 0.001, 0.0]))
    delta[:2, 1, 2, 3] = torch.tensor([-0.2, -0.004])
    delta[:2, 0, 0, 0] = 0  # a pixel that does not change
    return [(delta,)]


def largest(delta, over=(1, 2, 3)):
    return delta.abs().amax(over, keepdim=True)


def highest(delta):
    return delta.amax((1, 2, 3), keepdim=True)


def grey(delta, k):
    return 0.5 + k * delta


def cut(delta, k):
    return grey(delta, k).clamp(0, 1)


def drawn(picture, factor):
    """An answer: ``picture(delta, k)`` with k = ``factor(delta)``, (N, 1, 1, 1)."""

    def answer(delta):
        k = factor(delta)
        return {"picture": picture(delta, k), "k": k.flatten(1).amin(1).expand(len(delta))}

    return answer


def over(size, top=0.5):
    """k = top / size, and 1 where the size is 0."""
    return lambda delta: top / torch.where(size(delta) == 0, top, size(delta))


def fixed(k):
    return lambda delta: torch.full_like(delta[:, :1, :1, :1], k)


def what_lies(case, got, want):
    """Words the first thing that is wrong with a picture."""
    (delta,) = case
    k, change = got[: len(delta)], got[len(delta) :].view_as(delta) - 0.5
    if change.abs().max() > 0.5 + 1e-6:
        return "the picture leaves [0,1], and a screen clips what is outside: k is too large."
    if change[delta == 0].abs().max() > 1e-6:
        return "a pixel without a change should be grey, 0.5."
    if answers.same(change.flatten(), (per_image(k) * delta).flatten()):
        return "k is not the largest one (or not 1 where nothing changes)."
    return "the picture is not 0.5 + k · delta with the k that you return. Is something clipped?"


@exercise(
    "14",
    "A picture of a perturbation that does not lie",
    level="easy",
    hints=(
        "0.5 means no change. Which k lets the largest |delta| of an image just reach 0 or 1?",
        "k = 0.5 / the largest |delta| of each image, delta.abs().flatten(1).amax(1), shape (N,). "
        "Where that is 0, divide by 0.5 instead: torch.where(largest > 0, largest, 0.5).",
        'return {"picture": 0.5 + k[:, None, None, None] * delta, "k": k}.',
    ),
    inputs=perturbations,
    otherwise=what_lies,
    mistakes={
        "k is fixed, and the clamp hides it: clipped pixels look alike. "
        "The largest |delta| decides k.": [drawn(cut, fixed(k)) for k in (10, 20, 50, 100)],
        "abs() loses the sign: brighter and darker pixels look the same.": [
            drawn(lambda delta, k: k * delta.abs(), over(largest, top=1)),
            drawn(lambda delta, k: grey(delta.abs(), k), over(largest)),
        ],
        "that stretches from the smallest entry to the largest, and no change is no longer grey. "
        "Scale around 0.5.": [
            drawn(
                lambda delta, k: k * (delta + highest(-delta)),
                over(lambda delta: highest(delta) + highest(-delta), top=1),
            )
        ],
        "each channel has its own k, which changes the colours. One k for each image.": [
            drawn(grey, over(partial(largest, over=(2, 3))))
        ],
        "an image without a change becomes nan, or its k infinite (0.5/0). "
        "It should be plain grey, with k = 1.": [drawn(grey, lambda delta: 0.5 / largest(delta))],
        "one k for the whole batch: a small perturbation stays invisible beside a large one. "
        "Each image has its own k.": [drawn(grey, over(partial(largest, over=(0, 1, 2, 3))))],
        "a negative change can be larger: take |delta|.": [drawn(grey, over(highest))],
        "from grey there is only 0.5 to either side: k is 0.5 / largest, not 1 / largest.": [
            drawn(picture, over(largest, top=1)) for picture in (grey, cut)
        ],
    },
)
def amplified(delta):
    return drawn(grey, over(largest))(delta)


def smooth(x):
    return F.avg_pool2d(x, 3, stride=1, padding=1)


def eight_levels(x):
    """A picture with three bits; like a file, it has no gradient."""
    return ((x * 7).round() / 7).detach()


@exercise(
    "14",
    "Straight through a defence",
    level="core",
    hints=(
        "Write transform(x) as x plus a difference. Which of the two may carry a gradient?",
        "The difference transform(x) − x is a constant for the gradient: detach() it.",
        "return x + (transform(x) - x).detach().",
    ),
    inputs=lambda: [(how, answers.small_images(3)) for how in (smooth, eight_levels)],
    learns=("x",),
    otherwise="the value is not transform(x).",
    mistakes={
        "that is plain transform(x): the gradient passes through the transform, and behind a JPEG "
        "or a rounding there is none. It should pass as if nothing had happened to x.": [
            lambda transform, x: transform(x)
        ],
        "the result is right, but no gradient reaches x: it is detached too. "
        "Detach the difference transform(x) − x only.": [
            lambda transform, x: transform(x).detach()
        ],
        "the wrong part is detached: x carries the gradient, and transform(x) − x carries none.": [
            lambda transform, x: x.detach() + (transform(x) - x)
        ],
        "the value is x itself. The network must see transform(x); only the gradient skips it.": [
            lambda transform, x: x.clone(),
            lambda transform, x: transform(x) + (x - transform(x)).detach(),
        ],
        "the gradient counts twice: through x and through something else. One way is enough.": [
            lambda transform, x: transform(x) + x - x.detach(),
            lambda transform, x: 2 * x + (transform(x) - 2 * x).detach(),
        ],
    },
)
def straight_through(transform, x):
    return wrappers.straight_through(transform, x)


def pose_inputs():
    """A loss of a batch, one number; two images; poses that turn, shift and darken."""
    model, y = answers.small_model(), torch.tensor([3, 7])
    poses = [lambda x: x.rot90(1, (2, 3)), lambda x: x.roll((2, -1), (2, 3)), lambda x: 0.4 * x]
    return [(lambda x: F.cross_entropy(model(x), y), answers.small_images(2), poses)]


def slope(value, x):
    """Gradient of ``value(x)``, one number, in x."""
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(value(leaf), leaf)[0]


def of_slopes(change):
    """``change`` of the gradients over each pose, carried back to x: (P, N, C, H, W)."""

    def answer(loss, x, poses):
        return change(torch.stack([slope(lambda v, p=p: loss(p(v)), x) for p in poses]))

    return answer


def at_mean_image(loss, x, poses):
    return slope(lambda v: loss(torch.stack([pose(v) for pose in poses]).mean(0)), x)


@exercise(
    "14",
    "The gradient over poses",
    level="core",
    hints=(
        "Expectation over transformation: the mean of loss(pose(x)) over the poses is one number. "
        "Take its gradient in x.",
        "leaf = x.clone().requires_grad_(); every pose gets leaf, so that the gradient comes back "
        "through the pose.",
        "mean = sum(loss(pose(leaf)) for pose in poses) / len(poses); "
        "return torch.autograd.grad(mean, leaf)[0].",
    ),
    inputs=pose_inputs,
    otherwise="the result is not the gradient in x of the mean of loss(pose(x)) over the poses.",
    mistakes={
        "that is the gradient at the mean of the posed images, a blur that nobody sees. "
        "Average the losses.": [at_mean_image],
        "that is the sum over the poses. Divide by their number.": [of_slopes(lambda g: g.sum(0))],
        "only the last pose counts. Add up inside the loop.": [of_slopes(lambda g: g[-1])],
        "only the first pose counts. Is the `return` inside the loop?": [of_slopes(lambda g: g[0])],
        "the gradient is taken at the posed image and not carried back to x. "
        "Pose the tensor whose gradient you ask for.": [
            lambda loss, x, poses: sum(slope(loss, pose(x)) for pose in poses) / len(poses)
        ],
        "that is a sign. Return the gradient itself; the attack takes the sign.": [
            of_slopes(lambda g: g.mean(0).sign()),
            of_slopes(lambda g: g.sign().mean(0)),
        ],
        "no pose is used: that is the gradient at x.": [lambda loss, x, _: slope(loss, x)],
    },
)
def eot_gradient(loss, x, poses):
    return of_slopes(lambda g: g.mean(0))(loss, x, poses)


def patch_inputs():
    """Three images (3, 3, 8, 9), a patch (3, 3, 2) and two places, each inside when swapped."""
    draw = partial(torch.rand, generator=runtime.generator(6), dtype=torch.float64)
    x, patch = draw(3, 3, 8, 9), draw(3, 3, 2)
    return [(x, patch, 4, 2), (x, patch, 1, 5)]


def written_into(x, patch, row, column):
    x[:, :, row : row + patch.shape[1], column : column + patch.shape[2]] = patch
    return x


@exercise(
    "14",
    "Paste a patch",
    level="easy",
    hints=(
        "A mask m is 1 where the patch lies and 0 elsewhere; (1 − m) · x + m · patch replaces.",
        "m = torch.zeros_like(x); m[:, :, row : row + h, column : column + w] = 1, with "
        "h, w = patch.shape[1:]. The patch needs the size of x too.",
        "torch.nn.functional.pad(patch, (column, W - w - column, row, H - h - row)) puts zeros "
        "around the patch, first left and right, then above and below, and keeps its gradient.",
    ),
    inputs=patch_inputs,
    learns=("patch",),
    otherwise="the result is not (1 − m) · x + m · patch, with the upper left corner at the place.",
    mistakes={
        "the patch is added to the image. It should replace it: (1 − m) · x + m · patch.": [
            lambda x, *rest: x + paste.right(0 * x, *rest),
            lambda x, *rest: (x + paste.right(0 * x, *rest)).clamp(0, 1),
        ],
        "row and column are swapped.": [lambda x, patch, i, j: paste.right(x, patch, j, i)],
        answers.IN_PLACE: [written_into],
        "the patch is centred there. row and column say where its upper left corner lies.": [
            lambda x, patch, row, column: paste.right(x, patch, row - 1, column - 1)
        ],
        "only the first image has the patch; all images of the batch get it.": [
            lambda x, *rest: torch.cat([paste.right(x[:1], *rest), x[1:]])
        ],
        "the image around the patch is gone.": [lambda x, *rest: paste.right(0 * x, *rest)],
    },
)
def paste(x, patch, row, column):
    return patches.paste(x, patch, row, column)


NO_MODULE = "the course's attacks take an nn.Module, not a function: a class with a forward."
OTHER_OUTPUTS = "the wrapper's outputs are not the model's. Its forward returns self.model(images)."
CUT = "the wrapper cuts the gradient, and the attack needs it. Is there a no_grad or a detach()?"
ORIGINAL = answers.small_model()


def ask(model, images):
    """A query of the test attacks, which look whether the wrapper shows."""
    if not isinstance(model, nn.Module):
        raise NotYet(NO_MODULE)
    logits = model(images)
    if not isinstance(logits, Tensor) or not torch.equal(logits, ORIGINAL(images)):
        raise NotYet(OTHER_OUTPUTS)
    if images.requires_grad and not logits.requires_grad:
        raise NotYet(CUT)
    return logits


def in_chunks(model, x):
    """An attack in three rounds of fewer images: 4 + 4 + 2, 4 + 4 + 1, 4 + 3."""
    for done in (0, 1, 3):
        for images in x[done:].split(4):
            ask(model, images)


def climbing(model, x):
    """An attack of two steps along a gradient."""
    for _ in range(2):
        x = x + 0.1 * slope(lambda v: ask(model, v).logsumexp(1).sum(), x).sign()


def of_sizes(change, out=lambda logits: None):
    """A wrong count: ``change(sizes)`` of the images per call; ``out`` may spoil the logits."""

    def answer(attack, model, x):
        sizes = []
        model.register_forward_hook(lambda _, given, y: sizes.append(len(given[0])) or out(y))
        attack(model, x)
        return change(sizes)

    return answer


@exercise(
    "14",
    "Count the queries",
    level="hard",
    hints=(
        "Put a model of your own between attack and model: it counts the images that it is given "
        "and passes them on.",
        "class Counted(torch.nn.Module): __init__ keeps the model and sets queries = 0; "
        "forward(self, images) adds len(images) to it and returns self.model(images).",
        "counted = Counted(model).eval(); attack(counted, x); return counted.queries.",
    ),
    inputs=lambda: [
        (attack, answers.small_model(), answers.small_images(10))
        for attack in (in_chunks, climbing)
    ],
    otherwise=lambda case, got, want: (
        f"the model is shown {want.item():.0f} images; you count {got.item():.0f}. "
        "Does the count begin at 0 in every run?"
    ),
    mistakes={
        "that is the number of calls. A call with 100 images is 100 queries.": [of_sizes(len)],
        "only the last call counts: add up.": [of_sizes(lambda sizes: sizes[-1])],
        "only the first call counts: add up.": [of_sizes(lambda sizes: sizes[0])],
        "those are the attacked images; each is shown many times.": [lambda _, __, x: len(x)],
        "a call need not show all of x: count the images that forward is given.": [
            lambda attack, model, x: len(x) * of_sizes(len)(attack, model, x)
        ],
        "those are pixels; a query is an image.": [of_sizes(lambda sizes: 64 * sum(sizes))],
        "nothing is counted. Does the attack get the wrapper, or the model itself?": [lambda *_: 0],
        NO_MODULE: [lambda attack, model, x: attack(model.forward, x)],
        CUT: [of_sizes(sum, torch.detach)],
        OTHER_OUTPUTS: [of_sizes(sum, out) for out in (partial(torch.softmax, dim=1), id)],
    },
)
def count_queries(attack, model, x):
    counted = wrappers.Counted(model).eval()
    attack(counted, x)
    return counted.queries
