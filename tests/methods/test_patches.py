"""The patch: pasted pixel by pixel, trained on a tiny network, and the shipped one on photographs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from course_utils.core import photos
from course_utils.core.runtime import generator, seeded
from course_utils.core.training import predict
from course_utils.methods import patches
from course_utils.methods.patches import paste, random_place, scattered, train_patch

BLUE = 2


def noise(*shape, seed=0):
    return torch.rand(shape, generator=generator(seed))


# --- pasting and places


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("place", [(0, 0), (1, 3), (2, 4), (0, 4), (2, 0)])
def test_paste_is_a_loop_over_pixels(channels, place):
    x, patch = noise(2, channels, 5, 7), noise(channels, 3, 3, seed=1)
    before = x.clone()
    expected = x.clone()
    for row in range(3):
        for column in range(3):
            expected[:, :, place[0] + row, place[1] + column] = patch[:, row, column]
    assert torch.equal(paste(x, patch, *place), expected)
    assert torch.equal(x, before)


def test_the_gradient_reaches_the_patch_and_what_it_leaves_of_the_images():
    x = noise(2, 3, 5, 6).requires_grad_()
    patch = noise(3, 2, 4, seed=1).requires_grad_()
    weight = noise(2, 3, 5, 6, seed=2)
    (weight * paste(x, patch, 1, 2)).sum().backward()
    assert_close(patch.grad, weight[:, :, 1:3, 2:6].sum(0))
    expected = weight.clone()
    expected[:, :, 1:3, 2:6] = 0
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("place", [(-1, 0), (0, -1), (3, 0), (0, 5)])
def test_a_patch_that_leaves_the_image_is_refused(place):
    with pytest.raises(ValueError, match=r"row from 0 to 2 and a column to 4"):
        paste(noise(1, 3, 5, 7), noise(3, 3, 3), *place)


def test_a_patch_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="A patch of 6×6"):
        paste(noise(1, 3, 5, 7), noise(3, 6, 6), 0, 0)


def test_every_place_is_as_likely():
    x, patch = noise(1, 3, 5, 7), noise(3, 3, 3)
    stream = generator(0)
    counts = torch.zeros(3, 5)
    for _ in range(3000):
        counts[random_place(x, patch, stream)] += 1
    assert ((counts - 200) ** 2 / 200).sum() < 42.6  # χ² with 14 degrees: p = 0.0001


def test_a_patch_as_large_as_the_image_has_one_place():
    x, patch = noise(2, 3, 4, 4), noise(3, 4, 4, seed=1)
    place = random_place(x, patch, generator(0))
    assert place == (0, 0)
    assert torch.equal(paste(x, patch, *place), patch.expand(2, -1, -1, -1))


def test_scattered_draws_images_once_and_a_place_for_each():
    x = torch.linspace(0.1, 0.8, 8).view(8, 1, 1, 1).expand(8, 1, 6, 6)
    views = scattered(x, torch.ones(1, 2, 2), 5, generator(0))
    marks = (views == 1).flatten(1)
    assert (marks.sum(1) == 4).all()
    assert len(marks.unique(dim=0)) > 1  # not all at one place
    grounds = views.flatten(1).amin(1)
    assert len(grounds.unique()) == 5 and set(grounds.tolist()) <= set(x[:, 0, 0, 0].tolist())
    every = scattered(x, torch.ones(1, 2, 2), 99, generator(0))  # not more than there are
    assert sorted(every.flatten(1).amin(1).tolist()) == x[:, 0, 0, 0].tolist()


# --- training


def coloured(n, seed):
    """Noise around grey with one square of 5×5 in red, green or blue, which is the class."""
    stream = generator(seed)
    x = 0.4 + 0.2 * torch.rand(n, 3, 16, 16, generator=stream)
    y = torch.randint(3, (n,), generator=stream)
    for image, label in zip(x, y, strict=True):
        row, column = torch.randint(12, (2,), generator=stream).tolist()
        image[:, row : row + 5, column : column + 5] = 0.1
        image[label, row : row + 5, column : column + 5] = 0.9
    return x, y


@pytest.fixture(scope="module")
def model():
    """A small network that names the colours."""
    x, y = coloured(120, 0)
    with seeded(0):
        body = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)]
        model = nn.Sequential(*body, *head)
        adam = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(50):
            adam.zero_grad(set_to_none=True)
            F.cross_entropy(model(x), y).backward()
            adam.step()
        adam.zero_grad(set_to_none=True)
    return model.eval()


@pytest.fixture(scope="module")
def others():
    """Images that are not blue."""
    x, y = coloured(60, 1)
    return x[y != BLUE]


def share(model, x, patch):
    """The share of images that the model sees as blue with the patch at a random place."""
    return (
        (predict(model, scattered(x, patch, len(x), generator(7))).argmax(1) == BLUE)
        .double()
        .mean()
    )


def test_a_patch_wins_on_unseen_images_and_places_where_noise_does_not(model, others):
    x, y = coloured(100, 2)
    unseen = x[y != BLUE]
    patch = train_patch(model, others, BLUE, side=5, steps=40, step_size=0.1)
    assert patch.shape == (3, 5, 5) and not patch.requires_grad
    assert 0 <= patch.min() and patch.max() <= 1
    assert (predict(model, unseen).argmax(1) != BLUE).double().mean() > 0.95
    assert share(model, unseen, patch) > 0.7
    assert share(model, unseen, noise(3, 5, 5)) < 0.2
    assert share(model, unseen, torch.full((3, 5, 5), 0.5)) < 0.1


def test_the_first_step_is_adam_s_on_the_mean_loss_at_random_places(model, others):
    grey = torch.full((3, 4, 4), 0.5, requires_grad=True)
    views = scattered(others, grey, 8, generator(3))
    loss = F.cross_entropy(model(views), torch.full((8,), BLUE))
    slope = torch.autograd.grad(loss, grey)[0]
    seen = []
    settings = dict(side=4, steps=1, step_size=0.1, generator=generator(3))
    patch = train_patch(model, others, BLUE, **settings, on_step=lambda *step: seen.append(step))
    assert seen[0][2] == pytest.approx(loss.item())
    assert_close(patch, (grey - 0.1 * slope / (slope.abs() + 1e-8)).detach())


def test_on_step_gets_copies_and_the_last_is_the_result(model, others):
    seen = []
    patch = train_patch(
        model, others, BLUE, side=3, steps=4, on_step=lambda *step: seen.append(step)
    )
    assert [step for step, *_ in seen] == [1, 2, 3, 4]
    assert torch.equal(seen[-1][1], patch)
    assert len(torch.stack([now for _, now, _ in seen]).unique(dim=0)) == 4
    assert all(isinstance(loss, float) for *_, loss in seen)
    before = train_patch(model, others, BLUE, side=3, steps=0)
    assert torch.equal(before, torch.full((3, 3, 3), 0.5))


def test_every_second_step_goes_through_a_transform(model, others):
    sizes = []
    drawn = []

    class Watched(nn.Module):
        def forward(self, x):
            sizes.append((tuple(x.shape), bool((x <= 0.5).all())))
            return model(x)

    def draw(stream):
        drawn.append(stream)
        return lambda x: x / 2

    own = generator(0)
    train_patch(Watched(), others, BLUE, side=3, steps=4, batch=6, draw=draw, generator=own)
    assert sizes[-4:] == [((6, 3, 16, 16), dark) for dark in (True, False, True, False)]
    assert drawn == [own, own]


def test_a_generator_decides_and_the_global_state_does_not(model, others):
    def patch(seed=None):
        own = None if seed is None else generator(seed)
        return train_patch(model, others, BLUE, side=3, steps=3, generator=own)

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = patch(5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(patch(5), first)
    assert not torch.equal(patch(6), first)
    assert torch.equal(patch(), patch(0))


def test_the_model_and_the_images_are_left_as_found(model, others):
    model = nn.Sequential(model, nn.Dropout(0.5)).train()
    model[0].eval()
    flags = [module.training for module in model.modules()]
    weights = [value.clone() for value in model.state_dict().values()]
    before = others.clone()
    patch = train_patch(model, others, BLUE, side=3, steps=2)
    assert [module.training for module in model.modules()] == flags
    assert all(map(torch.equal, model.state_dict().values(), weights))
    assert all(value.grad is None and value.requires_grad for value in model.parameters())
    assert torch.equal(others, before)
    model.eval()
    assert torch.equal(train_patch(model, others, BLUE, side=3, steps=2), patch)  # no dropout


@pytest.mark.parametrize("switched_off", [torch.no_grad, torch.inference_mode])
def test_gradients_that_the_caller_has_switched_off_are_taken(switched_off, model, others):
    expected = train_patch(model, others, BLUE, side=3, steps=2)
    with switched_off():
        assert torch.equal(train_patch(model, others.clone(), BLUE, side=3, steps=2), expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(side=0), "side is 0"),
        (dict(side=17), "side is 17; give at most 16"),
        (dict(batch=0), "batch is 0"),
        (dict(steps=-1), "steps is -1"),
        (dict(steps=1.5), "steps is 1.5"),
        (dict(target=3), "target reaches from 3 to 3; the model knows classes 0 to 2"),
        (dict(target=-1), "target reaches from -1"),
        (
            dict(x=torch.full((1, 3, 16, 16), 2.0)),
            r"x reaches from 2 to 2; scale images to \[0,1\]",
        ),
        (
            dict(x=torch.zeros(0, 3, 16, 16)),
            r"x is .*shape \(0, 3, 16, 16\); give one image or more",
        ),
        (dict(x=torch.zeros(2, 768)), r"x is .*shape \(2, 768\); give one image or more"),
    ],
)
def test_bad_input_is_refused(wrong, message, model, others):
    good = dict(x=others, target=BLUE, side=3, steps=1)
    with pytest.raises(ValueError, match=message):
        train_patch(model, **(good | wrong))


# --- the shipped patch


@pytest.fixture(scope="module")
def lite0():
    pytest.importorskip("timm")
    return photos.classifier()


def test_the_shipped_patch_is_often_a_toaster_and_noise_never_is(lite0):
    patch = patches.shipped()
    assert patch.shape == (3, 64, 64)
    assert torch.equal((255 * patch).round() / 255, patch)
    x = photos.load_photos().x

    def wins(patch):
        stream = generator(0)
        views = torch.cat([scattered(x, patch, 5, stream) for _ in range(4)])
        return (predict(lite0, views).argmax(1) == photos.TOASTER).double().mean()

    assert wins(patch) > 0.35  # 11 of these 20; 56 % of 150
    assert wins(noise(3, 64, 64)) == 0


def test_a_saved_patch_is_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.setattr(patches, "SHIPPED", tmp_path / "patch.png")
    patch = (255 * noise(3, 64, 64)).round() / 255
    patches.save(patch)
    assert torch.equal(patches.shipped(), patch)


def test_a_missing_patch_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(patches, "SHIPPED", tmp_path / "patch.png")
    with pytest.raises(ValueError, match="patch.png cannot be read"):
        patches.shipped()
