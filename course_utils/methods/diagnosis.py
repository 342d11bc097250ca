"""Why did an attack fail? ``diagnose`` tells a robust network from an attack that is too weak.

The checks follow Pintor et al., "Indicators of Attack Failure" (NeurIPS 2022), the flags of
AutoAttack (Croce and Hein, ICML 2020) and the list in Carlini et al., "On Evaluating Adversarial
Robustness" (2019). Each looks at the images that the model gets right, and says what it saw and
what to do about it. A diagnosis without findings is no proof: it found nothing.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from course_utils.core import runtime
from course_utils.core.geometry import Norm, check_norm, steepest
from course_utils.core.inputs import Labels, Pixels, check_input, one_each
from course_utils.core.training import eval_mode, outputs, predict
from course_utils.methods.attacks import (
    fgsm,
    gradient,
    margin,
    neg_log_likelihood,
    pgd,
    random_point,
    withstood,
)
from course_utils.methods.queries import square

Attack = Callable[..., Pixels]  # attack(model, x, y, *, eps[, on_step]) -> x_adv

LITTLE = 0.05  # a share of the images above which a check speaks
PROBE = 1 / 30  # of ε: the small step that asks whether a gradient points uphill
CORNERS = 20  # random looks at the corners of the ball


@dataclass(frozen=True)
class Finding:
    """What one check saw, on which ``share`` of the images, in [0,1]; where ``bad``, the cure."""

    name: str
    bad: bool
    share: float
    evidence: str
    cure: str


@dataclass(frozen=True)
class Diagnosis:
    """What ``diagnose`` found, and the measurements that a plot shows.

    ``margins`` (steps + 1, N) are those of the attacked images from the start to the last step,
    positive where the model is wrong. ``right`` holds for each judge which images are still right
    after it, (N,); the first is the attack itself.
    """

    findings: tuple[Finding, ...]
    margins: Float[Tensor, "steps n"]
    right: Mapping[str, Bool[Tensor, "n"]]

    @property
    def bad(self) -> dict[str, Finding]:
        """The findings that speak against the attack, by name."""
        return {finding.name: finding for finding in self.findings if finding.bad}

    def _repr_markdown_(self) -> str:
        lines = ["| | check | what was seen | cure |", "|:--|:--|:--|:--|"]
        for found in self.findings:
            verdict, cure = ("**doubt**", found.cure) if found.bad else ("fine", "")
            lines.append(f"| {verdict} | {found.name} | {found.evidence} | {cure} |")
        return "\n".join(lines)


def diagnose(
    model: nn.Module,
    x: Pixels,
    y: Labels,
    *,
    eps: float,
    norm: Norm = "inf",
    attack: Attack | None = None,
    others: Mapping[str, nn.Module] | None = None,
    queries: int = 300,
) -> Diagnosis:
    """Looks for reasons why ``attack`` leaves images right that are not robust.

    ``attack(model, x, y, eps=…)`` is the attack that judged the model; where it takes ``on_step``,
    its way is watched. By default ``pgd`` in ``norm`` with its own 40 steps and a stop at success.
    ``others`` are networks by name whose adversarial examples are tried as well; train them
    independently. ``queries`` is how often the gradient-free Square Attack may ask about an image
    (L∞ only). Images that the model gets wrong as they are do not count. 100 or 200 images do.

    Raises:
        ValueError: bad input, or no image that the model gets right.
    """
    x, y, _ = check_input(model, x, y, eps=eps, norm=norm)
    kept = withstood(model, x, y)
    if not kept.any():
        raise ValueError(
            f"model is right on none of the {len(x)} images as they are; "
            "there is nothing to attack. Are the labels those of the model?"
        )
    p = check_norm(norm)
    case = Case(model, x[kept], y[kept], eps, p, attack, others or {}, queries)
    findings = tuple(check(case) for check in CHECKS)
    return Diagnosis(findings, case.margins, case.right)


def standard(norm: Norm) -> Attack:
    """``pgd`` in this norm, which rests once it succeeds."""

    def many_steps(model, x, y, *, eps, on_step=None):
        return pgd(model, x, y, eps=eps, norm=norm, early_stop=True, on_step=on_step)

    return many_steps


@dataclass
class Case:
    """One diagnosis at work; what several checks need is measured once, when first asked for."""

    model: nn.Module
    x: Pixels
    y: Labels
    eps: float
    norm: float
    attack: Attack | None
    others: Mapping[str, nn.Module]
    queries: int

    @cached_property
    def slopes(self) -> Pixels:
        """The gradient of the margin at the images; zeros where the model gives none."""
        with eval_mode(self.model):
            try:
                return gradient(lambda v: margin(outputs(self.model, v), self.y), self.x)[0]
            except (ValueError, RuntimeError):
                return torch.zeros_like(self.x)

    def attacked(self, eps: float, on_step=None) -> Pixels:
        """What the attack makes; the images as they are where it needs a gradient and gets none."""
        attack = self.attack or standard(self.norm)
        watch = {}
        if on_step and "on_step" in inspect.signature(attack).parameters:
            watch = {"on_step": on_step}
        try:
            return attack(self.model, self.x, self.y, eps=eps, **watch)
        except (ValueError, RuntimeError):
            if self.slopes.any():
                raise
            return self.x

    @cached_property
    def way(self) -> list[Pixels]:
        """The images at the start, after each step that can be seen, and as they were returned."""
        seen = [self.x]
        end = self.attacked(self.eps, lambda step, x_adv: seen.append(x_adv))
        return [*seen, end]

    @cached_property
    def margins(self) -> Float[Tensor, "steps n"]:
        return torch.stack([margin(predict(self.model, x), self.y) for x in self.way])

    @cached_property
    def right(self) -> dict[str, Bool[Tensor, "n"]]:
        """Which images are right after the attack, and after each other judge."""
        judges = {"the attack": self.way[-1], **dict(self.other_judges())}
        found = {name: withstood(self.model, x, self.y) for name, x in judges.items()}
        corners = [random_corner(self, seed) for seed in range(CORNERS)]
        found["random corners"] = torch.stack(
            [withstood(self.model, x, self.y) for x in corners]
        ).all(0)
        return found

    def other_judges(self) -> Iterator[tuple[str, Pixels]]:
        """What other attacks of the same size make of the images."""
        if self.slopes.any():
            yield "one step", fgsm(self.model, self.x, self.y, eps=self.eps, norm=self.norm)
            if self.attack:
                yield "40 steps", standard(self.norm)(self.model, self.x, self.y, eps=self.eps)
        if self.norm == math.inf:
            look = {"eps": self.eps, "queries": self.queries}
            yield f"{self.queries} queries", square(self.model, self.x, self.y, **look)
        for name, other in self.others.items():
            yield f"transfer: {name}", standard(self.norm)(other, self.x, self.y, eps=self.eps)

    @cached_property
    def unsteady(self) -> tuple[float, float]:
        """The shares of images whose answer is random, and depends on more than the image."""
        with runtime.seeded(0):
            first, second = predict(self.model, self.x), predict(self.model, self.x)
        with runtime.seeded(0):
            again = predict(self.model, self.x)
        if changed := differs(first, again):  # the same draws, and other answers
            return 0.0, changed
        if chance := differs(first, second):
            return chance, 0.0
        beside = predict(self.model, self.x[: len(self.x) // 2 + 1])[:1]
        return 0.0, differs(predict(self.model, self.x[:1]), beside)


def random_corner(case: Case, seed: int) -> Pixels:
    """A random point on the edge of each ball: in L∞ a corner."""
    inner = random_point(case.x, one_each(case.eps, case.x), case.norm, False, seed, 0) - case.x
    return (case.x + case.eps * steepest(inner, case.norm)).clamp(0, 1)


def percent(share: float) -> str:
    return f"{share:.0%} of the images"


def mean(hits: Tensor) -> float:
    return hits.float().mean().item() if hits.numel() else 0.0


# ------------------------------------------------------------------------- answers of the model


def differs(one: Tensor, two: Tensor) -> float:
    """The share of images whose logits differ by more than rounding."""
    return mean(((one - two).abs() > 1e-3 * (1 + one.abs())).any(1))


def random_answers(case: Case) -> Finding:
    """Pintor et al.'s "unstable predictions", AutoAttack's check for randomised models."""
    share, _ = case.unsteady
    return Finding(
        "random answers",
        share > 0,
        share,
        f"asked twice, the model answers otherwise on {percent(share)}",
        "attack the mean over many draws: wrappers.Expectation",
    )


def memory(case: Case) -> Finding:
    """AutoAttack's check for models that change while they are asked."""
    _, share = case.unsteady
    return Finding(
        "memory",
        share > 0,
        share,
        f"for {percent(share)} the answer depends on earlier calls, or on the other images",
        "eval mode; no counter, no statistics of the batch inside forward",
    )


def probabilities(case: Case) -> Finding:
    """AutoAttack's check of the outputs' range: a softmax inside the model flattens the loss."""
    logits = predict(case.model, case.x)
    shares = (logits >= 0).all(1) & ((logits.sum(1) - 1).abs() < 1e-3)
    still = (case.way[-1] == case.x).flatten(1).all(1) & case.slopes.flatten(1).any(1)
    flat = neg_log_likelihood(logits, case.y) == 0
    share = max(mean(shares), mean(still & flat))
    return Finding(
        "saturated outputs",
        share > LITTLE,
        share,
        f"{percent(share)} have probabilities for logits, or a loss that is exactly 0 and "
        "does not move",
        "give the attack logits; climb their margin (attacks.margin), not the loss",
    )


# ---------------------------------------------------------------------------------- gradients


def no_gradient(case: Case) -> Finding:
    """Pintor et al.'s "unavailable gradients", AutoAttack's check for zero gradients."""
    share = mean(~case.slopes.flatten(1).any(1))
    return Finding(
        "no gradient",
        share > 0,
        share,
        f"the gradient is zero or missing on {percent(share)}",
        "attack through a smooth stand-in: wrappers.straight_through; or without gradients",
    )


def wrong_gradient(case: Case) -> Finding:
    """A gradient that does not point uphill, as behind rounding or noise (Athalye et al., 2018)."""
    with_slope = case.slopes.flatten(1).any(1)
    x, y = case.x[with_slope], case.y[with_slope]
    share = 0.0
    if len(x):
        step = PROBE * case.eps * steepest(case.slopes[with_slope], case.norm)
        before, after = (margin(predict(case.model, v), y) for v in (x, x + step))
        share = mean(after <= before)
    return Finding(
        "wrong gradient",
        share > LITTLE,
        share,
        f"a small step along the gradient does not raise the loss of {percent(share)}",
        "differentiate what the model really computes, or attack through a stand-in for it",
    )


# ---------------------------------------------------------------------------- the attack's way


def loss_stays(case: Case) -> Finding:
    """Carlini et al.: the loss must rise during an attack."""
    left = case.right["the attack"]
    share = mean((case.margins[-1] <= case.margins[0])[left]) * mean(left)
    return Finding(
        "loss does not rise",
        share > LITTLE,
        share,
        f"{percent(share)} are left right with no higher loss than before the attack",
        "look at the gradient first; then try other step sizes",
    )


def best_lost(case: Case) -> Finding:
    """Pintor et al.'s "silent success"."""
    fooled = torch.stack([~withstood(case.model, x, case.y) for x in case.way[1:]]).any(0)
    share = mean(fooled & case.right["the attack"])
    return Finding(
        "best iterate lost",
        share > 0,
        share,
        f"{percent(share)} were fooled on the way and are right at the end",
        "return the best iterate, or stop at success: early_stop=True",
    )


def still_rising(case: Case) -> Finding:
    """Pintor et al.'s "incomplete optimisation": the last quarter of the steps still gains much."""
    left = case.right["the attack"]
    steps = case.margins[:-1]  # the last entry is what was returned
    count = len(steps) - 1
    rise = (steps[-1] - steps[0])[left]
    late = (steps[-1] - steps[math.ceil(0.75 * count)])[left] if count > 3 else rise[:0]
    part = max((late.sum() / rise.sum()).item(), 0.0) if len(late) and rise.sum() > 0 else 0.0
    return Finding(
        "not converged",
        part > 2 * LITTLE,
        part,
        f"the last quarter of the {count} steps brings {part:.0%} of what the loss gains"
        if count > 3
        else "too few steps to see",
        "more steps, or larger ones",
    )


# -------------------------------------------------------------------------------- other judges


def better_judge(case: Case) -> Finding:
    """Carlini et al., AutoAttack: no other attack may find much that this one misses."""
    from scipy.stats import binomtest

    own = case.right["the attack"]
    worst, share = "", 0.0
    for name, right in case.right.items():
        gained = int((own & ~right).sum())
        lost = int((~own & right).sum())
        if gained > lost and binomtest(gained, gained + lost).pvalue < 0.01:
            found = mean(own & ~right)
            worst, share = (name, found) if found > share else (worst, share)
    return Finding(
        "another judge does better",
        bool(worst),
        share,
        f"“{worst}” fools {percent(share)} that the attack leaves right"
        if worst
        else "none fools significantly more than the attack: " + ", ".join(list(case.right)[1:]),
        "count an image as robust only where it withstands every judge; use AutoAttack",
    )


def far_away(case: Case) -> Finding:
    """Pintor et al.'s "unconstrained attack failure": where all is in reach, all must fall."""
    size = case.x[0].numel()
    reach = {math.inf: 1.0, 2: math.sqrt(size), 1: float(size)}[case.norm]
    left = withstood(case.model, case.attacked(reach), case.y)
    possible = case.y.bincount().max().item() / len(case.y)  # all images can become the same one
    share = mean(left)
    return Finding(
        "robust where nothing can be",
        share > possible + LITTLE,
        share,
        f"at ε = {reach:.3g}, where each can become any other, {percent(share)} stay right",
        "the attack follows no useful gradient: see the checks above, attack without gradients",
    )


CHECKS = (
    random_answers,
    memory,
    probabilities,
    no_gradient,
    wrong_gradient,
    loss_stays,
    best_lost,
    still_rising,
    better_judge,
    far_away,
)
