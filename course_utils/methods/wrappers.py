"""Ways to wrap a model, so that every attack can be led through a defence or over many poses.

A wrapped model is an ``nn.Module`` that gives logits, or log-probabilities, which attacks take as
logits. So no attack has an option for any of this.
"""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from course_utils.core.inputs import Pixels, check_count
from course_utils.methods.transforms import Transform

Logits = Float[Tensor, "n k"]


def straight_through(transform: Transform, x: Pixels) -> Pixels:
    """``transform(x)``, with the gradient of the identity.

    The backward pass differentiable approximation of Athalye, Carlini and Wagner, "Obfuscated
    Gradients Give a False Sense of Security" (ICML 2018), section 4.1, with g(x) = x.
    """
    with torch.no_grad():
        value = transform(x.detach())  # detached, as a transform may return what it is given
    return value + (x - x.detach())


class Through(nn.Module):
    """The model behind a ``transform`` of its input, such as a defence.

    Where the transform has no useful gradient, ``approximate=True`` lends it that of the identity
    (``straight_through``); otherwise the gradient is its own.
    """

    def __init__(self, model: nn.Module, transform: Transform, *, approximate: bool = False):
        super().__init__()
        self.model = model
        self.transform = transform
        self.approximate = approximate

    def forward(self, x: Pixels) -> Logits:
        if self.approximate:
            return self.model(straight_through(self.transform, x))
        return self.model(self.transform(x))


class Expectation(nn.Module):
    """The mean log-probabilities of a model over random transforms.

    Expectation over transformation: Athalye, Engstrom, Ilyas and Kwok, "Synthesizing Robust
    Adversarial Examples" (ICML 2018), section 2. ``draw(generator)`` gives one transform, such as
    ``transforms.random_pose``. Each call draws ``samples`` new ones from a stream that begins with
    ``seed``; all images of the call get the same.
    """

    def __init__(
        self,
        model: nn.Module,
        draw: Callable[[torch.Generator], Transform],
        *,
        samples: int = 2,
        seed: int = 0,
    ):
        super().__init__()
        check_count("samples", samples, 1)
        self.model = model
        self.draw = draw
        self.samples = samples
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, x: Pixels) -> Logits:
        views = [self.draw(self.generator)(x) for _ in range(self.samples)]
        return mean_log_probabilities(self.model(view) for view in views)


class Ensemble(nn.Module):
    """The mean log-probabilities of several models: a source from which attacks transfer better.

    Liu, Chen, Liu and Song, "Delving into Transferable Adversarial Examples and Black-box Attacks"
    (ICLR 2017), section 5, average probabilities instead; one confident model then outvotes all.
    """

    def __init__(self, *models: nn.Module):
        super().__init__()
        check_count("number of models", len(models), 1)
        self.models = nn.ModuleList(models)

    def forward(self, x: Pixels) -> Logits:
        return mean_log_probabilities(model(x) for model in self.models)


def mean_log_probabilities(logits: Iterable[Logits]) -> Logits:
    return torch.stack([one.log_softmax(1) for one in logits]).mean(0)


class Counted(nn.Module):
    """The model as it is; ``queries`` counts the images that it has seen."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.queries = 0

    def forward(self, x: Pixels) -> Logits:
        self.queries += len(x)
        return self.model(x)
