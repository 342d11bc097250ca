"""Autoencoders: networks, losses, and that their trainings are the published ones."""

import math

import pytest
import torch
import torch.nn.functional as F

from course_utils.core import data, runtime, stored
from course_utils.methods import autoencoders
from course_utils.methods.autoencoders import (
    KINDS,
    bernoulli_kl,
    reconstruction_error,
    train,
    trained_autoencoder,
)

torch.set_num_threads(1)
SMALL = dict(sparse={"hidden": 8}, dense={"hidden": 8}, convolutional={}, adversarial={"latent": 3})
every_kind = pytest.mark.parametrize("kind", KINDS)

# By hand: a convolution has (inputs · 25 + 1) · filters, a dense layer (inputs + 1) · outputs.
SIZES = {
    "sparse": 785 * 128 + 129 * 784,
    "dense": 785 * 128 + 129 * 784,
    "convolutional": 26 * 16 + 401 * 8 + 201 * 8 + 201 * 16 + 401,
    "adversarial": (785 * 1000 + 1001 * 1000 + 1001 * 2) + (3 * 1000 + 1001 * 1000 + 1001 * 784),
}


def noise(n=20, channels=1, size=8, seed=0):
    return torch.rand(n, channels, size, size, generator=runtime.generator(seed))


def weights(model):
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def seeded(build, *sizes, **more):
    with runtime.seeded(0):
        return build(*sizes, **more)


def learn(kind, x, epochs=2, **settings):
    """``train`` on small batches, with few units."""
    return train(kind, x, epochs=epochs, batch_size=8, **SMALL[kind], **settings)


def halves(n, seed):
    """Images whose left half is bright, or their right half."""
    left = torch.arange(8) < 4
    which = torch.randint(2, (n,), generator=runtime.generator(seed))
    sides = torch.stack([left, ~left]).float()[which]
    return 0.8 * sides[:, None, None] + 0.2 * noise(n, seed=seed)


# --- networks


@every_kind
def test_number_of_parameters(kind):
    assert len(weights(KINDS[kind].build())) == SIZES[kind]


@every_kind
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32)])
def test_images_go_in_and_come_out(kind, channels, size):
    x = noise(2, channels, size)
    out = seeded(KINDS[kind].build, channels, size)(x)
    assert out.shape == x.shape
    assert 0 < out.min() and out.max() < 1


@pytest.mark.parametrize("kind", ["sparse", "dense", "adversarial"])
def test_pixels_come_out_where_they_went_in(kind):
    model, x = KINDS[kind].build(3, 8), noise(2, 3)
    image = model.decoder.image if kind == "adversarial" else model.image
    assert torch.equal(image(x.flatten(1)), x)


def test_the_convolutional_one_compresses_to_8_maps_of_a_quarter_of_the_side():
    model, x = autoencoders.convolutional(3, 32), noise(2, 3, 32)
    names = [name for name, _ in model.named_children()]
    halves, doubles = "conv1 relu1 pool1 conv2 relu2 pool2", "conv3 relu3 up3 conv4 relu4 up4"
    assert names == f"{halves} {doubles} conv5 sigmoid".split()
    maps = model[:2](x)  # these are what the authors' attack compares
    assert maps.shape == (2, 16, 32, 32) and maps.min() == 0
    assert model[:6](x).shape == (2, 8, 8, 8)


@pytest.mark.parametrize("size", [30, 2, 0])
def test_the_convolutional_one_halves_twice(size):
    with pytest.raises(ValueError, match=f"size is {size};.*multiple of 4"):
        autoencoders.convolutional(size=size)


def test_codes_of_the_adversarial_one_are_sigmoids():
    model = seeded(autoencoders.adversarial_autoencoder, size=8, latent=5)
    with torch.no_grad():
        model.encoder.units.output.weight.mul_(50)
        codes = model.encoder(noise(50))
        assert codes.shape == (50, 5)
        assert 0 < codes.min() < 0.4 and 0.6 < codes.max() < 1
        assert torch.equal(model(noise(50)), model.decoder(codes))


# --- losses


def test_kl_by_hand_and_at_the_ends():
    q = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    kl = bernoulli_kl(0.1, q)
    assert kl[0].abs() < 1e-15
    assert kl[1].item() == pytest.approx(0.1 * math.log(0.2) + 0.9 * math.log(1.8), abs=1e-14)
    assert kl[2].item() == pytest.approx(0.8 * math.log(9), abs=1e-14)
    ends = bernoulli_kl(0.1, torch.tensor([0.0, 1.0]).double()).tolist()
    rest = 0.1 * math.log(0.1) + 0.9 * math.log(0.9)
    assert ends == pytest.approx([rest - share * math.log(1e-7) for share in (0.1, 0.9)], abs=1e-6)


def test_sparse_loss_by_hand():
    model, x = seeded(autoencoders.sparse, size=4, hidden=4).double(), noise(5, size=4).double()
    hidden = torch.sigmoid(x.flatten(1) @ model.dense1.weight.T + model.dense1.bias)
    out = torch.sigmoid(hidden @ model.dense2.weight.T + model.dense2.bias)
    by_hand = (out - x.flatten(1)).square().sum().item() / 80
    for q in hidden.mean(0).tolist():  # 3 · the mean over four units
        by_hand += 3 / 4 * (0.1 * math.log(0.1 / q) + 0.9 * math.log(0.9 / (1 - q)))
    by_hand += 1e-7 * (hidden.abs().sum().item() + out.abs().sum().item())
    assert KINDS["sparse"].loss(model, x).item() == pytest.approx(by_hand, abs=1e-13)


@pytest.mark.parametrize("kind", ["dense", "adversarial", "convolutional"])
def test_the_other_losses_by_hand(kind):
    model, x = KINDS[kind].build(size=8).double(), noise(5).double()
    out = model(x)
    by_hand = (out - x).square().mean()
    if kind == "convolutional":
        by_hand = -(x * out.log() + (1 - x) * (1 - out).log()).mean()
    assert KINDS[kind].loss(model, x).item() == pytest.approx(by_hand.item(), abs=1e-13)


def test_reconstruction_error_is_the_mean_over_the_pixels_of_each_image():
    model, x = seeded(autoencoders.dense, 3, 8).train(), noise(7, 3)
    error = reconstruction_error(model, x)
    by_hand = [((model(x) - x)[i] ** 2).sum().item() / 192 for i in range(7)]
    assert error.tolist() == pytest.approx(by_hand, rel=1e-5)
    assert not error.requires_grad and model.training


# --- training


PUBLISHED = {
    "sparse": (50, "Adam", dict(lr=1e-3, eps=1e-7)),
    "dense": (20, "RMSprop", dict(lr=2.5e-3, alpha=0.9, eps=1e-7)),
    "convolutional": (20, "Adadelta", dict(lr=1.0, rho=0.95, eps=1e-7)),
    "adversarial": (50, "Adam", dict(lr=1e-4, eps=1e-7)),
}


@every_kind
def test_optimisers_and_epochs_are_the_published_ones(kind):
    epochs, name, settings = PUBLISHED[kind]
    optimizer = KINDS[kind].optimizer([torch.zeros(1, requires_grad=True)])
    assert KINDS[kind].epochs == epochs and type(optimizer).__name__ == name
    assert settings == {key: optimizer.defaults[key] for key in settings}


@every_kind
def test_a_seed_fixes_the_model_and_nothing_else_changes(kind):
    x, seen = noise(), {}
    kept, state = x.clone(), torch.get_rng_state()
    model, other = (learn(kind, x, seed=seed) for seed in (0, 1))
    assert not model.training and not torch.equal(weights(model), weights(other))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, kept)

    def look(epoch, model):
        seen[epoch] = weights(model)
        torch.rand(3)  # what it draws does not matter

    learn(kind, x, epochs=3, on_epoch=look)
    assert list(seen) == [1, 2, 3]
    assert torch.equal(seen[2], weights(model)) and not torch.equal(seen[2], seen[3])


def test_every_image_is_seen_once_an_epoch_in_another_order(monkeypatch):
    seen = []

    def loss(model, x):
        seen.append(x[:, 0, 0, 0].tolist())
        return F.mse_loss(model(x), x)

    monkeypatch.setitem(KINDS, "dense", KINDS["dense"]._replace(loss=loss))
    x = noise(20)
    train("dense", x, epochs=2, batch_size=8)
    assert [len(batch) for batch in seen] == [8, 8, 4] * 2
    first, second = sum(seen[:3], []), sum(seen[3:], [])
    assert sorted(first) == sorted(second) == sorted(x[:, 0, 0, 0].tolist())
    assert first != second


@pytest.mark.parametrize(
    ("kind", "epochs"), [("sparse", 10), ("dense", 3), ("convolutional", 2), ("adversarial", 2)]
)
def test_training_beats_the_mean_image_on_held_out_images(kind, epochs):
    x, held_out = halves(400, 0), halves(100, 1)
    batch_size = 20 if kind == "adversarial" else 10
    model = train(kind, x, epochs=epochs, batch_size=batch_size)
    by_mean = (held_out - x.mean(0)).square().mean()
    assert reconstruction_error(model, held_out).mean() < 0.5 * by_mean


# --- adversarial game


def critic_of(monkeypatch, model):
    """The game on ``model`` and the discriminator in it."""
    built, mlp = [], autoencoders.mlp

    def watched(*widths, **sizes):
        built.append(mlp(*widths, **sizes))
        return built[-1]

    with monkeypatch.context() as patch:
        patch.setattr(autoencoders, "mlp", watched)
        game = seeded(autoencoders.latent_game, model)
    (critic,) = built
    return game, critic


def test_the_discriminator_learns_to_tell_codes_from_draws(monkeypatch):
    model, x = seeded(autoencoders.adversarial_autoencoder, size=8, latent=3), noise(100)
    game, critic = critic_of(monkeypatch, model)
    assert len(weights(critic)) == 4 * 1000 + 1001 * 1000 + 1001
    draws, generator = torch.randn(200, 3, generator=runtime.generator(9)), runtime.generator(0)
    before = (critic(draws).mean() - critic(model.encoder(x)).mean()).item()
    for _ in range(15):
        game(x, generator)
    assert abs(before) < 0.1
    assert critic(draws).mean() - critic(model.encoder(x)).mean() > 0.5
    assert critic(draws).mean() > 0 > critic(model.encoder(x)).mean()


def test_the_encoder_moves_to_deceive_the_discriminator_and_the_decoder_stays(monkeypatch):
    model, x = seeded(autoencoders.adversarial_autoencoder, size=8, latent=3), noise(100)
    game, critic = critic_of(monkeypatch, model)
    parts, rests, judged = (model.encoder, model.decoder, critic), [], []

    def watched(optimizer, loss):
        judged.append(critic(model.encoder(x)).mean().item())
        before = list(map(weights, parts))
        take_step(optimizer, loss)
        rests.append(list(map(torch.equal, before, map(weights, parts))))

    take_step = autoencoders.take_step
    monkeypatch.setattr(autoencoders, "take_step", watched)
    game(x, runtime.generator(0))
    assert rests == [[True, True, False], [True, True, False], [False, True, True]]
    last = critic(model.encoder(x)).mean().item()
    assert judged[0] > judged[1] > judged[2] < last


def test_the_game_is_played_in_training(monkeypatch):
    x, batches = noise(), []
    played = learn("adversarial", x, epochs=1)

    def no_game(model):
        return lambda batch, generator: batches.append(len(batch))

    monkeypatch.setattr(autoencoders, "latent_game", no_game)
    alone = learn("adversarial", x, epochs=1)
    assert batches == [8, 8, 4]
    assert not torch.equal(played.encoder(x), alone.encoder(x))


# --- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "concrete"}, "kind is 'concrete'; choose " + ", ".join(KINDS)),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"x": noise() * 2}, r"x reaches from .* \[0,1\]"),
        ({"x": noise()[:0]}, r"x has shape \(0, 1, 8, 8\); give one square image"),
        ({"x": noise()[..., :4]}, r"x has shape \(20, 1, 8, 4\); give one square"),
        ({"x": noise().flatten(1)}, r"x has shape \(20, 64\); give one square"),
        ({"kind": "convolutional", "x": noise(size=10)}, "size is 10;"),
    ],
)
def test_refused(change, message):
    with pytest.raises(ValueError, match=message):
        train(**({"kind": "dense", "x": noise(), "epochs": 1} | change))


# --- the cache


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Counts the trainings; the cache is empty."""
    calls, real = [], autoencoders.train

    def watched(*args, **settings):
        calls.append(args)
        return real(*args, **settings)

    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    monkeypatch.setattr(autoencoders, "train", watched)
    return calls


def cached(x, kind="dense", epochs=1, hidden=3, **settings):
    return trained_autoencoder(kind, x, epochs=epochs, hidden=hidden, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_come_from_the_cache(calls, dtype):
    x = noise(12, size=4).to(dtype)
    first = cached(x)
    state = torch.get_rng_state()
    again = cached(x)
    assert len(calls) == 1 and not again.training
    assert torch.equal(weights(first), weights(again))
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_depend_on_every_ingredient(calls):
    x = noise(12, size=4)
    other = x.clone()
    other[0, 0, 0, 0] += 0.01
    changes = {}, {"x": other}, {"epochs": 2}, {"seed": 1}, {"hidden": 4}, {"kind": "sparse"}
    for change in changes:
        cached(**{"x": x} | change)
    assert len(calls) == 6


def test_damaged_weights_are_trained_again(calls, tmp_path, capsys):
    x = noise(12, size=4)
    first = cached(x)
    (path,) = (tmp_path / "weights").iterdir()
    path.write_bytes(path.read_bytes()[:40])
    again = cached(x)
    assert "damaged" in capsys.readouterr().out
    assert torch.equal(weights(first), weights(again))


def test_saved_autoencoders_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "FOLDER", tmp_path)
    nets = {kind: autoencoders.KINDS[kind].build() for kind in autoencoders.KINDS}
    autoencoders.save(nets, "MNIST")
    back = autoencoders.shipped("MNIST")
    assert list(back) == list(autoencoders.SHIPPED)
    for kind, model in back.items():
        assert not model.training
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
        x = noise(5, size=28)
        far = (model(x) - nets[kind].eval()(x)).abs().max()
        assert far < 2e-3  # half precision
    with pytest.raises(RuntimeError, match="full scale"):
        autoencoders.shipped("embedded digits")


@pytest.mark.parametrize("source", ["MNIST", "embedded digits"])
def test_shipped_autoencoders_draw_digits(source):
    (_, test), nets = data.load("digits"), autoencoders.shipped(source)
    blank = (test.x - test.x.mean(0)).square().mean()
    for kind, model in nets.items():
        error = autoencoders.reconstruction_error(model, test.x[:200]).mean()
        assert error < blank / 3, kind
