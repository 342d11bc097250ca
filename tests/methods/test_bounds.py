"""NWJ, InfoNCE and what limits a bound: by hand, on tables and on Gaussians of known information."""

import itertools
import math

import pytest
import torch

from course_utils.core import runtime
from course_utils.methods.bounds import (
    Separable,
    apart,
    climb,
    dv_of_all,
    index_information,
    infonce_bound,
    nwj_bound,
    nwj_of_all,
    shuffle_cap,
)
from course_utils.methods.mutual_information import MLP, dv_bound, table_information

pytestmark = pytest.mark.filterwarnings("error")


def values_of_pairs(k=6, seed=0):
    return 2 * torch.randn(k, k, generator=runtime.generator(seed), dtype=torch.float64)


def test_the_bounds_by_hand():
    values = torch.tensor([[1.0, 0.0], [math.log(3), 2.0]]).double()
    joint, others = apart(values)
    assert joint.tolist() == [1, 2] and others.tolist() == pytest.approx([0, math.log(3)])
    assert dv_of_all(values).item() == pytest.approx(1.5 - math.log(2))
    assert nwj_of_all(values).item() == pytest.approx(1.5 - (1 + 3) / 2 / math.e)
    rows = [1 - math.log((math.e + 1) / 2), 2 - math.log((3 + math.e**2) / 2)]
    assert infonce_bound(values).item() == pytest.approx(sum(rows) / 2)
    stacked = torch.stack([values, values + 1])
    for bound in (dv_of_all, nwj_of_all, infonce_bound):
        assert bound(stacked).shape == (2,)
        assert bound(stacked)[0].item() == pytest.approx(bound(values).item())


def test_a_constant_changes_nwj_alone():
    values = values_of_pairs()
    for bound in (dv_of_all, infonce_bound):
        assert bound(values + 5).item() == pytest.approx(bound(values).item())
    assert nwj_of_all(values + 5) < nwj_of_all(values) - 1


def test_infonce_never_exceeds_the_logarithm_and_reaches_it():
    for seed in range(50):
        assert infonce_bound(20 * values_of_pairs(seed=seed)).item() <= math.log(6) + 1e-12
    assert infonce_bound(1e3 * torch.eye(6).double()).item() == pytest.approx(math.log(6))


def test_nwj_is_below_dv_and_meets_it_at_the_best_constant():
    """ln z ≤ z/e, with equality where the mean of exp(T − 1) is 1."""
    for seed in range(20):
        joint, others = apart(values_of_pairs(seed=seed))
        assert nwj_bound(joint, others) <= dv_bound(joint, others) + 1e-12
        tuned = 1 - (others.logsumexp(-1) - math.log(others.shape[-1]))
        assert nwj_bound(joint + tuned, others + tuned).item() == pytest.approx(
            dv_bound(joint, others).item()
        )


def test_with_its_best_critic_nwj_is_exact_on_a_table():
    p = torch.tensor([[0.3, 0.1], [0.05, 0.55]]).double()
    product = p.sum(1, keepdim=True) * p.sum(0)
    best = (p / product).log() + 1
    value = (p * best).sum() - (product * (best - 1).exp()).sum()
    assert value.item() == pytest.approx(table_information(p))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 1)])
def test_values_that_are_not_of_all_pairs_are_refused(shape):
    with pytest.raises(ValueError, match="critic's values on all pairs"):
        apart(torch.zeros(shape))


def test_no_shuffle_shows_more_than_its_cap_and_the_cap_is_tight():
    values = values_of_pairs(4)
    for order in map(torch.tensor, itertools.permutations(range(4))):
        shown = dv_bound(values.diagonal(), values[torch.arange(4), order])
        assert shown <= shuffle_cap(values.diagonal(), order) + 1e-12
    joint, order = torch.tensor([1.0, -2.0, 3.0, 0.5]).double(), torch.tensor([0, 2, 1, 3])
    others = torch.where(order == torch.arange(4), joint, -50)  # the moved pairs add nothing
    both = dv_bound(joint, others).item()
    loss = math.log(1 + math.exp(0.5 - 1))  # of two fixed points the cap counts the larger one
    assert shuffle_cap(joint, order).item() == pytest.approx(both + loss)
    assert shuffle_cap(joint, torch.tensor([1, 2, 3, 0])) == math.inf
    many = shuffle_cap(joint.expand(2, 3, 4), order)
    assert many.shape == (2, 3) and many[1, 2] == shuffle_cap(joint, order)


def test_the_information_of_an_index():
    u, v = torch.arange(8.0)[:, None], torch.rand(8, 3, generator=runtime.generator(0))
    assert index_information(u, v) == pytest.approx(math.log(8))
    assert index_information(torch.zeros(8, 2), v) == pytest.approx(0, abs=1e-6)
    halves = (torch.arange(8) < 4).float()[:, None]
    assert index_information(halves, v) == pytest.approx(math.log(2))
    turns = (torch.arange(8) % 2).float()[:, None]
    assert index_information(halves, turns) == pytest.approx(0, abs=1e-6)
    for seed in range(5):  # against the table of counts
        a, b = torch.randint(0, 3, (2, 12), generator=runtime.generator(seed))
        table = torch.zeros(3, 3).index_put((a, b), torch.tensor(1 / 12), accumulate=True)
        found = index_information(a[:, None].float(), b[:, None].float())
        assert found == pytest.approx(table_information(table), abs=1e-5)
    with pytest.raises(ValueError, match="give K rows of each"):
        index_information(u, v[:4])


def gaussians(rho):
    def draw(count, generator):
        u, w = torch.randn(2, count, 1, generator=generator)
        return u, rho * u + math.sqrt(1 - rho**2) * w

    return draw


@pytest.mark.parametrize("bound", [dv_of_all, nwj_of_all, infonce_bound], ids=lambda f: f.__name__)
@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_a_climbed_bound_comes_near_the_truth(bound, rho):
    with runtime.seeded(0):
        start = MLP(2, 32)
    critic, found = climb(gaussians(rho), start, bound, steps=300, batch=64, lr=1e-2)
    truth = -math.log(1 - rho**2) / 2
    assert len(found) == 300 and not critic.training and start.training
    assert sum(found[-100:]) / 100 == pytest.approx(truth, abs=0.08)
    again, same = climb(gaussians(rho), start, bound, steps=5, batch=64, lr=1e-2)
    assert same == found[:5]
    assert not torch.equal(again.out.weight, start.out.weight)


def test_a_separable_critic_is_a_product_and_takes_all_pairs():
    with runtime.seeded(0):
        critic = Separable(3, 5, hidden=8, features=4).double()
    u, v = torch.randn(6, 3).double(), torch.randn(6, 5).double()
    values = critic(u[:, None], v[None])
    assert values.shape == (6, 6)
    assert values[2, 4].item() == pytest.approx((critic.left(u[2]) @ critic.right(v[4])).item())
    assert torch.linalg.matrix_rank(values) <= 4
    assert torch.allclose(critic(u, v), values.diagonal())


def test_every_bound_passes_a_gradient_to_the_critic():
    for bound in (dv_of_all, nwj_of_all, infonce_bound):
        values = values_of_pairs().requires_grad_()
        bound(values).backward()
        assert (values.grad.diagonal() > 0).any() and values.grad.isfinite().all()
