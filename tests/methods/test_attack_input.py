"""Bad input to an attack is a ValueError that names the argument, what it got, and the cure."""

import math

import pytest
import torch
import torch.nn.functional as F
from attack_cases import batch, build, every_attack, run
from torch import nn

X, Y = batch(4)
ONE_LOGIT = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
BAD = [
    ("every", dict(x=X * 255), r"x reaches from 0 to 255; scale images to \[0,1\]"),
    ("every", dict(x=X - 0.5), r"x reaches from -0.5 to 0.5"),
    ("every", dict(x=torch.where(X > 0.9, torch.nan, X)), "x reaches from nan to nan"),
    ("every", dict(x=(X * 255).byte()), r"x is torch.uint8, .*float images"),
    ("every", dict(x=X.numpy()), "x is ndarray"),
    ("every", dict(x=X[0], y=Y[0]), r"x is .*shape \(1, 4, 4\).*one image is x\[None\]"),
    ("every", dict(y=Y.float()), "torch.float32.*one integer label per image"),
    ("every", dict(y=Y.int()), r"torch.int32.*\.long\(\)"),
    ("every", dict(y=Y[:2]), r"shape \(2,\).*of shape \(4,\)"),
    ("every", dict(y=F.one_hot(Y, 4)), r"shape \(4, 4\)"),
    ("every", dict(y=[0, 1, 2, 3]), r"\[0, 1, 2, 3\].*one integer label per image"),
    ("every", dict(y=Y + 4), "the model knows classes 0 to 3"),
    ("every", dict(y=Y - 4), "the model knows classes 0 to 3"),
    ("every", dict(y=Y.to("meta")), "is on meta and x on cpu; move"),
    ("every", dict(model=ONE_LOGIT), r"model gives shape \(4, 1\).*two or more classes"),
    ("every", dict(model=nn.Identity()), r"model gives shape \(4, 1, 4, 4\)"),
    ("steps", dict(steps=-1), "steps is -1; give a whole number, 0 or more"),
    ("steps", dict(steps=1.5), "steps is 1.5; give a whole number, 0 or more"),
    ("steps", dict(steps=math.inf), "steps is inf; give a whole number, 0 or more"),
    ("steps", dict(step_size=-0.1), "step_size is -0.1.*0 or more"),
    ("steps", dict(step_size=math.nan), "step_size is nan"),
    ("either", dict(y=None), "y and target are both missing"),
    ("ball", dict(eps=-0.1), "eps is -0.1.*0 or more"),
    ("ball", dict(eps=math.nan), "eps is nan"),
    ("ball", dict(eps=math.inf), "eps is inf"),
    ("ball", dict(eps=torch.full((3,), 0.1)), "eps .* one per image"),
    ("ball", dict(norm=3), 'norm is 3; use 1, 2 or "inf"'),
    ("pgd", dict(restarts=0), "restarts is 0; give a whole number, 1 or more"),
    ("pgd", dict(restarts=1.5), "restarts is 1.5; give a whole number, 1 or more"),
    ("targeted", dict(distance="linf"), "distance is 'linf'; use one of 'l1', 'l2'"),
    ("targeted", dict(lam=-1.0), "lam is -1.0"),
    ("targeted", dict(start=X[:2]), r"start .*shape \(2, 1, 4, 4\)"),
    ("targeted", dict(start=X * 2), r"start reaches from 0 to 2; scale images to \[0,1\]"),
    ("fake_image", dict(smoothness=-1.0), "smoothness is -1.0"),
    ("fmn", dict(norm=3), 'norm is 3; use 1, 2 or "inf"'),
    ("fmn", dict(steps=-1), "steps is -1"),
    ("deepfool", dict(norm=3), 'norm is 3; use 1, 2 or "inf"'),
    ("deepfool", dict(steps=-1), "steps is -1"),
    ("deepfool", dict(overshoot=-0.1), "overshoot is -0.1.*0 or more"),
    ("deepfool", dict(bisections=1.5), "bisections is 1.5; give a whole number, 0 or more"),
    ("adv_loss_sign", dict(eps=-0.1), "eps is -0.1.*0 or more"),
]
CASE_OF = {name: name for name in ("fake_image", "untargeted", "adv_loss_sign")}
CASE_OF |= {"targeted": "targeted l1", "fgsm": "fgsm inf", "pgd": "pgd inf"}
CASE_OF |= {
    "adv_loss": "adv_loss 1",
    "adv_alpha": "adv_alpha inf",
    "deepfool": "deepfool 2",
    "fmn": "fmn 2",
}
GROUPS = {
    "every": list(CASE_OF),
    "steps": ["fake_image", "untargeted", "targeted", "pgd"],
    "ball": ["fgsm", "pgd", "adv_loss", "adv_alpha"],
    "either": ["fgsm", "pgd"],
}


@pytest.mark.parametrize("group, wrong, message", BAD)
def test_bad_input_is_refused_by_name_value_and_cure(group, wrong, message):
    for name in GROUPS.get(group, [group]):
        good = dict(model=build(), x=X, y=Y)
        with pytest.raises(ValueError, match=message):
            run(CASE_OF[name], **(good | wrong))


@every_attack
def test_an_empty_batch_gives_an_empty_batch(case):
    x, y = batch()
    assert run(case, build(), x[:0], y[:0]).shape == (0, 1, 4, 4)


@every_attack
def test_probabilities_instead_of_logits_are_pointed_out_to_the_caller(case):
    model = nn.Sequential(build(), nn.Softmax(1))
    message = "look like probabilities.*need logits.*Leave out the last softmax"
    with pytest.warns(UserWarning, match=message) as caught:
        run(case, model, *batch())
    # a garbage collection may warn of other things
    [ours] = [warning for warning in caught if "probabilities" in str(warning.message)]
    assert ours.filename == run.__code__.co_filename  # points at the line that called the attack
