"""Attacks by queries: exact optima of linear models, exact counts, what each may see, and the peers.

What every attack owes is asked in ``test_attacks.py``.
"""

import pytest
import torch
from attack_cases import batch, build, f64, linear, network_and_batch, seen_as, trained_on_digits
from torch import nn
from torch.testing import assert_close

from course_utils.core import models
from course_utils.core.geometry import norm
from course_utils.core.runtime import generator, seeded
from course_utils.core.training import predict
from course_utils.methods.attacks import fooled, succeeded
from course_utils.methods.queries import halvings, hopskipjump, leapt, side_of, square

kinds = ("DeprecationWarning", "FutureWarning")
pytestmark = [pytest.mark.filterwarnings(f"ignore:.*:{kind}") for kind in kinds]
to_target_or_not = pytest.mark.parametrize("to_target", [False, True], ids=["y", "target"])
LOOK = 8  # images at most that the check of the input looks at


class Counted(nn.Module):
    """A model that notes the images it is asked about."""

    def __init__(self, net, after=lambda z: z):
        super().__init__()
        self.net, self.after = net, after
        self.seen = []

    def forward(self, x):
        self.seen += list(x.clone())
        return self.after(self.net(x))


def goal_of(y, to_target, classes=4):
    return {"target": (y + 1) % classes} if to_target else {"y": y}


def frames_of(attack, model, x, *args, **settings):
    """The batch after every step."""
    frames = []
    attack(model, x, *args, on_step=lambda _, now: frames.append(now), **settings)
    return frames


def first_success(model, frames, **goal):
    """The step of each image's first success; one more than there are steps if it has none."""
    won = torch.stack([succeeded(model, now, **goal) for now in frames])
    return torch.where(won.any(0), won.int().argmax(0), len(frames)) + 1


# --- linear models


@pytest.mark.parametrize("label", [0, 1])
@to_target_or_not
def test_square_reaches_the_corner_of_the_ball_that_is_best(label, to_target):
    model, w = linear("two classes")
    model.output.bias.data[label] += 1000  # so that no image ever succeeds and rests
    x, _ = batch(20, dtype=f64)
    y = torch.full((20,), label)
    eps = torch.linspace(0, 0.4, 20, dtype=f64)
    x_adv = square(model, x, **goal_of(y, to_target, 2), eps=eps, queries=500)
    way = (w if label == 0 else -w).sign().view(1, 1, 4, 4)
    assert_close(x_adv, (x + eps.view(-1, 1, 1, 1) * way).clamp(0, 1))


@to_target_or_not
def test_hopskipjump_comes_close_to_the_distance_of_a_linear_boundary(to_target):
    model, w = linear("binary")
    model.output.bias.data = -0.5 * model.output.weight.data.sum(1)  # zero at 0.5
    ways = torch.tensor([-0.5, -0.3, -0.1, 0.2, 0.3, 0.4], dtype=f64)
    x = 0.5 + ways.view(-1, 1, 1, 1) * (w / w.norm()).view(1, 1, 4, 4)
    y = (ways > 0).long()
    start = {}
    if to_target:
        pool, _ = batch(300, dtype=f64)
        classes = predict(model, pool).argmax(1)
        start = {"start": torch.stack([pool[classes == 1 - label][0] for label in y])}
    x_adv = hopskipjump(model, x, **goal_of(y, to_target, 2), **start)
    ratio = norm(x_adv - x, 2) / ways.abs()
    assert succeeded(model, x_adv, y).all()
    assert (ratio > 0.9999).all() and (ratio < 1.05).all() and ratio.median() < 1.03


# --- queries are counted, one image and step each


@to_target_or_not
def test_square_asks_once_a_step_until_an_image_succeeds(to_target):
    net, x, y = network_and_batch(60)
    goal = goal_of(y, to_target)
    frames = frames_of(square, net, x, **goal, eps=0.15, queries=40)
    first = first_success(net, frames, **goal)
    assert (first == 41).any() and len(first.unique()) > 5
    for row, now in enumerate(frames[-1]):  # an image that succeeded stays as it was
        assert torch.equal(now, frames[min(first[row], 40) - 1][row])
    model = Counted(net)
    square(model, x, **goal, eps=0.15, queries=40)
    assert len(model.seen) == LOOK + first.clamp(max=40).sum()


@to_target_or_not
def test_hopskipjump_spends_its_budget_exactly(to_target):
    net, x, y = network_and_batch(5)
    start = {"start": seen_as((y + 1) % 4)} if to_target else {}
    for queries in (0, 1, 2, 9, 130, 300):
        model = Counted(net)
        hopskipjump(model, x, **goal_of(y, to_target), **start, queries=queries)
        assert len(model.seen) == 5 + 5 * queries


@to_target_or_not
def test_an_image_that_succeeds_already_costs_one_query_and_is_unchanged(to_target):
    net, x, y = network_and_batch(20)
    goal = {"target": y} if to_target else {"y": (y + 1) % 4}
    for attack, settings in ((square, {"eps": 0.1}), (hopskipjump, {"start": x.flip(0)})):
        model = Counted(net)
        assert torch.equal(attack(model, x, **goal, **settings), x)
        assert len(model.seen) == LOOK + 20


# --- randomness belongs to an image


@pytest.mark.parametrize("attack", [square, hopskipjump])
def test_an_image_has_random_numbers_of_its_own(attack):
    model, x, y = network_and_batch(6)
    settings = {"eps": 0.3} if attack is square else {}
    settings |= {"queries": 130}

    def run(x, y, seed=0):
        return attack(model, x, y, generator=generator(seed), **settings)

    first = run(x, y)
    other = torch.cat([x[:2], 1 - x[2:]])
    assert_close(run(other, predict(model, other).argmax(1))[:2], first[:2])
    assert_close(run(x[:3], y[:3]), first[:3])
    assert not torch.equal(run(x, y, seed=1), first)
    same = run(x[:1].expand(6, -1, -1, -1), y[:1].expand(6))
    assert len(same.flatten(1).unique(dim=0)) > 1


# --- Square Attack


def test_a_step_changes_one_square_of_the_schedules_size_by_one_sign_a_channel():
    model = models.logistic(3 * 12 * 10, 2)
    model.output.bias.data[0] += 1000
    x = 0.3 + 0.4 * torch.rand(8, 3, 12, 10, generator=generator(0))
    y = torch.zeros(8, dtype=torch.long)
    seen = Counted(model)
    frames = frames_of(square, seen, x, y, eps=0.1, queries=60, share=0.3)
    asked = torch.stack(seen.seen[LOOK:]).view(60, *x.shape)
    assert torch.equal(asked[0], x)
    assert_close((asked[1] - x).abs(), torch.full_like(x, 0.1))
    stripes = (asked[1] - x).sign()
    assert torch.equal(stripes, stripes[:, :, :1].expand_as(x))
    assert (stripes[:, 0] != stripes[:, 1]).any() and (stripes.diff(dim=3) != 0).any()
    mixed = torch.tensor(False)
    for step in range(3, 61):
        before, tried = frames[step - 2], asked[step - 1]
        changed = (before != tried).any(1)
        assert changed.flatten(1).any(1).all()  # no query is wasted
        side = side_of(x, 0.3, step / 60)
        for row in range(8):
            rows, columns = changed[row].nonzero().unbind(1)
            assert max(rows.max() - rows.min(), columns.max() - columns.min()) < side
        signs = (tried - x).sign() * (before != tried)
        assert (signs.flatten(2).amax(2) - signs.flatten(2).amin(2)).max() == 1  # never both
        mixed |= (signs.sum((2, 3)).sign().diff(dim=1).abs() == 2).any()
        kept = (frames[step - 1] == tried).flatten(1).all(1)
        lead = [predict(model, now).diff(dim=1)[:, 0] for now in (before, tried)]
        assert torch.equal(kept, lead[1] > lead[0])
    assert mixed  # channels have signs of their own


def test_the_squares_places_reach_every_edge():
    model = models.logistic(16, 2)
    x = torch.full((200, 1, 4, 4), 0.5)
    model.output.bias.data[0] += 1000
    seen = Counted(model)
    square(seen, x, torch.zeros(200, dtype=torch.long), eps=0.1, queries=3, share=0.01)
    stripes, tried = torch.stack(seen.seen[LOOK:]).view(3, *x.shape)[1:]
    assert (stripes != tried).flatten(1).any(0).all()


# --- HopSkipJump


def test_hopskipjump_sees_one_bit_a_query():
    """Whether another class leads: the same images when the model gives away nothing else."""
    net, x, y = network_and_batch(20)
    x, y = x[y == 0], y[y == 0]

    def one_bit(z):
        won = fooled(z, torch.zeros(len(z), dtype=torch.long), 1, times=2)
        return torch.stack([torch.zeros(len(z)), 2 * won - 1.0], 1)

    result = hopskipjump(net, x, y, queries=300)
    assert (result != x).flatten(1).any(1).all()
    assert torch.equal(hopskipjump(Counted(net, after=one_bit), x, y, queries=300), result)


@to_target_or_not
def test_hopskipjump_keeps_the_nearest_success(to_target):
    model, x, y = network_and_batch(12)
    goal = goal_of(y, to_target)
    start = seen_as((y + 1) % 4)
    frames = frames_of(hopskipjump, model, x, **goal, start=start, queries=400)
    far = torch.stack([norm(now - x, 2) for now in frames[1:]])
    assert_close(far[0], norm(start - x, 2))
    assert (far.diff(dim=0) <= 0).all()
    assert all(succeeded(model, now, **goal).all() for now in frames[1::20])
    assert (far[-1] / far[0]).median() < 0.6
    bisected = norm(frames[1 + halvings(x[0])] - x, 2)
    assert (far[-1] < bisected).all()  # more than the first bisection


def test_a_leap_is_halved_until_it_succeeds():
    edge, normal = torch.full((1, 2, 2), 0.5), torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    search = leapt(edge, normal, 0.4)
    tried = [next(search), search.send(False), search.send(False)]
    assert_close(torch.stack(tried)[:, 0, 0, 0], torch.tensor([0.9, 0.7, 0.6]))
    with pytest.raises(StopIteration) as end:
        search.send(True)
    assert torch.equal(end.value.value, tried[-1])
    never = leapt(edge, normal, 0.4)
    next(never)
    with pytest.raises(StopIteration) as end:
        for _ in range(halvings(edge)):
            never.send(False)
    assert torch.equal(end.value.value, edge)


def test_hopskipjump_returns_x_where_nothing_succeeds():
    model, x, y = network_and_batch(10)
    never = seen_as(y)
    unchanged = hopskipjump(model, x, target=(y + 1) % 4, start=never, queries=2)
    assert torch.equal(unchanged, x)
    constant = models.logistic(16, 4)
    constant.output.weight.data.zero_()
    constant.output.bias.data = torch.tensor([2.0, 0.0, 0.0, 0.0])
    y = torch.zeros_like(y)
    assert torch.equal(hopskipjump(constant, x, y, queries=50), x)


def test_without_a_start_hopskipjump_tries_mixtures_until_one_succeeds():
    """Plain noise is seen as the images' own class; only mixtures leave it."""

    class Middle(nn.Module):
        """Class 1 is what has a mean well below the noise's and well above the image's."""

        def forward(self, x):
            mean = x.flatten(1).mean(1)
            return torch.stack([torch.zeros_like(mean), 0.1 - (mean - 0.25).abs()], 1)

    x = torch.zeros(4, 1, 8, 8)
    y = torch.zeros(4, dtype=torch.long)
    x_adv = hopskipjump(Middle(), x, y, queries=60)
    assert succeeded(Middle(), x_adv, y).all()


# --- bad input

X, Y = batch(4)


@pytest.mark.parametrize(
    ("attack", "wrong", "message"),
    [
        (square, dict(x=X * 255), r"x reaches from 0 to 255; scale images to \[0,1\]"),
        (square, dict(y=None), "y and target are both missing"),
        (square, dict(eps=-0.1), "eps is -0.1.*0 or more"),
        (square, dict(queries=-1), "queries is -1; give a whole number, 0 or more"),
        (square, dict(queries=1.5), "queries is 1.5; give a whole number"),
        (square, dict(share=1.5), "share is 1.5; give the share of the image"),
        (square, dict(x=X.flatten(1)), r"x is .*shape \(4, 16\); squares need .*\(N, C, H, W\)"),
        (hopskipjump, dict(x=X - 0.5), "x reaches from -0.5"),
        (hopskipjump, dict(y=None), "y and target are both missing"),
        (hopskipjump, dict(y=Y + 4), "the model knows classes 0 to 3"),
        (hopskipjump, dict(queries=-1), "queries is -1; give a whole number, 0 or more"),
        (hopskipjump, dict(target=Y), "start is None; .* give images .* sees as target"),
        (hopskipjump, dict(start=X[:2]), r"start .*shape \(2, 1, 4, 4\).*one start per image"),
        (hopskipjump, dict(start=X * 2), "start reaches from 0 to 2"),
    ],
)
def test_bad_input_is_refused(attack, wrong, message):
    good = dict(x=X, y=Y) | ({"eps": 0.1} if attack is square else {})
    with pytest.raises(ValueError, match=message):
        attack(build(), **(good | wrong))


# --- the peers


@pytest.fixture(scope="module")
def victim():
    """The slides' CNN after a short training on the embedded digits, and images it gets right."""
    model, images = trained_on_digits()
    return model, images.x[:300:3], images.y[:300:3]  # of all classes


def test_the_schedule_is_that_of_torchattacks():
    torchattacks = pytest.importorskip("torchattacks")
    peer = torchattacks.Square(build(), n_queries=3000, p_init=0.8)
    x = torch.zeros(1, 1, 28, 28)
    for step in range(1, 3001):
        share = peer.p_selection(step)
        if step / 3000 * 10_000 % 1 == 0:  # else the peer rounds down
            assert side_of(x, 0.8, step / 3000) == max(1, round((share * 784) ** 0.5))


@pytest.mark.slow
@to_target_or_not
def test_square_succeeds_as_often_and_as_fast_as_torchattacks(victim, to_target):
    torchattacks = pytest.importorskip("torchattacks")
    model, x, y = victim
    goal, queries = goal_of(y, to_target, 10), 300
    eps = 0.3 if to_target else 0.2
    frames = frames_of(square, model, x, **goal, eps=eps, queries=queries)
    ours = first_success(model, frames, **goal).clamp(max=queries).double()
    counted = Counted(model).eval()
    peer = torchattacks.Square(counted, eps=eps, n_queries=queries - 2, p_init=0.8)
    if to_target:
        peer.set_mode_targeted_by_label(quiet=True)
    won = succeeded(model, peer(x, *goal.values()), **goal).double().mean()
    theirs = len(counted.seen) / len(x) - 1  # it asks once more at the end
    assert 0.4 < won < 0.95
    assert succeeded(model, frames[-1], **goal).double().mean() > won - 0.08
    assert ours.mean() < 1.2 * theirs


@pytest.mark.slow
def test_hopskipjump_comes_as_near_as_foolbox_with_as_many_queries(victim):
    foolbox = pytest.importorskip("foolbox")
    model, x, y = (part[::12] if isinstance(part, torch.Tensor) else part for part in victim)
    noise = torch.rand(400, 1, 28, 28, generator=generator(1))
    classes = predict(model, noise).argmax(1)
    start = torch.stack([noise[classes != label][0] for label in y])
    counted = Counted(model).eval()
    wrapped = foolbox.PyTorchModel(counted, bounds=(0, 1), device="cpu")
    peer = foolbox.attacks.HopSkipJumpAttack(steps=4)
    goal = foolbox.criteria.Misclassification
    with seeded(0):  # one by one: it divides by the norm of the whole batch's gradient
        theirs = [
            peer.run(wrapped, x[i : i + 1], goal(y[i : i + 1]), starting_points=start[i : i + 1])
            for i in range(len(x))
        ]
    queries = len(counted.seen) // len(x)
    ours = hopskipjump(model, x, y, start=start, queries=queries)
    assert succeeded(model, ours, y).all()
    ours_off, theirs_off = (norm(x_adv - x, 2) for x_adv in (ours, torch.cat(theirs)))
    assert (ours_off / theirs_off).median() < 1.1
