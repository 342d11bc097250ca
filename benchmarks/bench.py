"""Speed and memory beside the peers: ``make bench``, or ``python benchmarks/bench.py [attacks] [deepfool] [minimum] [mine] [minmax] [confuse] [training] [imports] [memory] [kernel] [widgets]``.

Everything that is compared runs in one process, in turns, several times over, and a ratio is taken within each turn: what else the machine
does then weighs on all alike. Tables show the median ratio. Writes ``build/bench.json``; exits with 1 when a bar is missed.
"""

import copy
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import redraws
import torch
import torch.nn.functional as F
from jupyter_client.manager import run_kernel
from torch.utils.flop_counter import FlopCounterMode

from course_utils.core import data, files, generators, models, runtime
from course_utils.core.geometry import norm as size_of
from course_utils.core.training import fit, slides_network
from course_utils.methods import autoencoders, unsupervised
from course_utils.methods import confuse as course_confuse
from course_utils.methods import minmax as course_minmax
from course_utils.methods import mutual_information as mi
from course_utils.methods.attacks import pgd, succeeded, withstood
from course_utils.methods.boundary import deepfool as course_deepfool
from course_utils.methods.minimum_norm import fmn

LATE_MS, SLOWEST_MS = 200, 400  # for 95 of 100 redraws, and for each
TURNS = {
    "attacks": 7,
    "deepfool": 3,
    "minimum": 3,
    "mine": 3,
    "minmax": 3,
    "confuse": 7,
    "training": 3,
    "imports": 5,
}


@dataclass
class Row:
    """One line of the table; ``ok`` is None where there is no bar."""

    what: str
    value: float
    unit: str
    bar: str = ""
    ok: bool | None = None
    note: str = ""


def in_turns(contestants: dict[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Seconds of every contestant in every turn, after one turn that does not count; the order changes from turn to turn."""
    seconds = {name: [] for name in contestants}
    names = list(contestants)
    for turn in range(turns + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter()
            contestants[name]()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(times: list[float], reference: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(times, reference, strict=True))


# ------------------------------------------------------------------------------------------------------------- attacks


def attacked() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """The slides' CNN after an epoch of 3,000 images, and 512 images for it."""
    train, test = data.load()
    model = models.slides_cnn()
    fit(model, train[:3000], epochs=1, verbose=False)
    return model, test.x[:512].repeat(2, 1, 1, 1)[:512], test.y[:512].repeat(2)[:512]


def plain_loop(model, x, y, eps, norm, steps, step_size):
    """PGD as one would write it by hand."""
    x_adv = x.clone()
    for _ in range(steps):
        x_adv.requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y, reduction="sum"), x_adv)
        with torch.no_grad():
            if norm == "inf":
                delta = (x_adv + step_size * g.sign() - x).clamp(-eps, eps)
            else:
                delta = x_adv + step_size * g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1) - x
                delta = delta * (eps / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(max=1)
            x_adv = (x + delta).clamp(0, 1)
    return x_adv


def attacks() -> list[Row]:
    """PGD-20 on 512 images with the slides' CNN, nobody stopping early."""
    import foolbox
    import torchattacks

    model, x, y = attacked()
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    rows = []
    for norm, eps, peer, other in (
        ("inf", 0.1, torchattacks.PGD, foolbox.attacks.LinfPGD),
        (2, 1.5, torchattacks.PGDL2, foolbox.attacks.L2PGD),
    ):
        step = eps / 8
        theirs = peer(model, eps=eps, alpha=step, steps=20, random_start=False)
        others = other(abs_stepsize=step, steps=20, random_start=False)
        seconds = in_turns(
            {
                "plain loop": lambda: plain_loop(model, x, y, eps, norm, 20, step),
                "course": lambda: pgd(model, x, y, eps=eps, norm=norm, steps=20, step_size=step),
                "torchattacks": lambda: theirs(x, y),
                "foolbox": lambda: others.run(
                    wrapped, x, foolbox.criteria.Misclassification(y), epsilon=eps
                ),
            },
            TURNS["attacks"],
        )
        for name, times in seconds.items():
            value = ratio(times, seconds["plain loop"])
            bar = dict(bar="at most 1.10×", ok=value <= 1.10) if name == "course" else {}
            what = f"PGD-20, norm {norm}, 512 images: {name}"
            rows.append(Row(what, value, "×", note=f"{statistics.median(times):.2f} s", **bar))
    return rows


def deepfool() -> list[Row]:
    """DeepFool in L2 on 512 images with the slides' CNN, at most 50 steps, overshoot 0.02."""
    import foolbox
    import torchattacks

    model, x, y = attacked()
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    theirs = torchattacks.DeepFool(model, steps=50, overshoot=0.02)
    others = foolbox.attacks.L2DeepFoolAttack(steps=50, overshoot=0.02, loss="logits")
    some = torch.arange(
        0, 512, 8
    )  # torchattacks goes from image to image, so that fewer tell as much
    results = {}

    def keep(name: str, rows, x_adv):
        results[name] = rows, x_adv

    seconds = in_turns(
        {
            "course": lambda: keep("course", slice(None), course_deepfool(model, x, y)),
            "foolbox": lambda: keep(
                "foolbox",
                slice(None),
                others.run(wrapped, x, foolbox.criteria.Misclassification(y)),
            ),
            "torchattacks": lambda: keep("torchattacks", some, theirs(x[some], y[some])),
        },
        TURNS["deepfool"],
    )
    seconds["torchattacks"] = [value * len(x) / len(some) for value in seconds["torchattacks"]]
    rows = []
    for name, least in (("course", None), ("foolbox", 3), ("torchattacks", 10)):
        value = ratio(seconds[name], seconds["course"])
        chosen, x_adv = results[name]
        note = f"{statistics.median(seconds[name]):.2f} s; {succeeded(model, x_adv, y[chosen]).float().mean():.0%} misclassified"
        if name == "torchattacks":
            note += f"; timed on {len(some)} images, times {len(x) // len(some)}"
        bar = dict(bar=f"at least {least}×", ok=value >= least) if least else {}
        rows.append(Row(f"DeepFool, 512 images: {name}", value, "×", note=note, **bar))
    return rows


def minimum() -> list[Row]:
    """Minimum-norm attacks on 200 images with the slides' CNN: ours in 40 steps, theirs in 100."""
    import foolbox

    train, test = data.load()
    model, _ = slides_network(train, test)
    right = withstood(model, test.x[:300], test.y[:300]).nonzero()[:200, 0]
    x, y = test.x[right], test.y[right]
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    rows = []
    for norm, peer, theirs in (
        (2, "DDN of foolbox", foolbox.attacks.DDNAttack(steps=100)),
        ("inf", "FMN of foolbox", foolbox.attacks.LInfFMNAttack(steps=100)),
    ):
        results = {}

        def ours():
            results["course"] = fmn(model, x, y, norm=norm)

        def other():
            criterion = foolbox.criteria.Misclassification(y)
            results[peer] = theirs(wrapped, x, criterion, epsilons=None)[1]

        seconds = in_turns({"course": ours, peer: other}, TURNS["minimum"])
        length = {name: size_of(x_adv - x, norm).median().item() for name, x_adv in results.items()}
        for name, x_adv in results.items():
            value = ratio(seconds[name], seconds[peer])
            note = f"median length {length[name]:.4f}, {succeeded(model, x_adv, y).float().mean():.0%} misclassified"
            shorter = value <= 1 and length["course"] <= 1.01 * length[peer]
            bar = dict(bar="at most 1×, length within 1 %", ok=shorter) if name == "course" else {}
            rows.append(
                Row(f"Minimum norm {norm}, 200 images: {name}", value, "×", note=note, **bar)
            )
    return rows


def mine() -> list[Row]:
    """A step of MINE for one image, alone and in a batch of 64, where 64 critics learn at once."""
    _, test = data.load()
    x, y = test.x[:64], test.x[64:128]
    front = models.cw_cnn()
    rows = []
    for samples, sample, d, maps in (
        ("32 feature maps", mi.feature_maps(front), 26 * 26, True),
        ("500 projections to 128", mi.projections(), 128, False),
    ):
        for name, critic, steps in (
            ("affine", mi.Affine(d), 5),
            ("published", mi.PublishedCritic(d, maps), 1),
        ):
            how = mi.Estimator(sample, critic)
            seconds = in_turns(
                {n: lambda n=n: mi.estimate(x[:n], y[:n], how, steps=steps) for n in (1, 64)},
                TURNS["mine"],
            )
            value = ratio([one / 64 for one in seconds[64]], seconds[1])
            single, many = (1000 * statistics.median(seconds[n]) / n / (steps + 1) for n in (1, 64))
            what = f"MINE, {samples}, {name} critic: batch / alone"
            note = f"{single:.2f} ms alone, {many:.2f} ms in a batch"
            rows.append(Row(what, value, "×", "at most 1×", value <= 1, note))
    return rows


def minmax() -> list[Row]:
    """A step of an image by MinMax and by a walk, alone and in a batch of 64."""
    train, test = data.load()
    x, y = test.x[:64], test.y[:64]
    front, auto = models.cw_cnn(), autoencoders.shipped(train.source)["dense"]
    how = mi.Estimator(mi.feature_maps(front), mi.Affine(26 * 26))

    def attack(n: int) -> None:
        goal = course_minmax.misclassified(front, y[:n])
        course_minmax.minmax(front, goal, x[:n], estimator=how, steps=10)

    def walk(n: int) -> None:
        unsupervised.walk_out(auto, course_minmax.reconstructed(auto, x[:n]), x[:n], steps=10)

    rows = []
    for what, run in (("MinMax, 32 feature maps, affine critic", attack), ("walk", walk)):
        seconds = in_turns({n: lambda n=n: run(n) for n in (1, 64)}, TURNS["minmax"])
        value = ratio([one / 64 for one in seconds[64]], seconds[1])
        single, many = (100 * statistics.median(seconds[n]) / n for n in (1, 64))
        note = f"{single:.2f} ms an image and step alone, {many:.2f} ms in a batch"
        rows.append(Row(f"{what}: batch / alone", value, "×", "at most 1×", value <= 1, note))
    return rows


# ------------------------------------------------------------------------------------------------------------ training


def usual_data(train: data.Images):
    """The training set as a tutorial has it: torchvision's MNIST, or PIL images where MNIST is not there, through ``ToTensor``."""
    from torchvision import datasets, transforms

    if train.source == "MNIST":
        return datasets.MNIST(files.data_dir(), train=True, transform=transforms.ToTensor())
    to_image, to_tensor = transforms.ToPILImage(), transforms.ToTensor()
    pictures = [(to_image(x), int(y)) for x, y in zip(train.x, train.y, strict=True)]

    class Pictures(torch.utils.data.Dataset):
        def __len__(self):
            return len(pictures)

        def __getitem__(self, i):
            return to_tensor(pictures[i][0]), pictures[i][1]

    return Pictures()


def usual_epoch(dataset, workers: int) -> None:
    """One epoch as a tutorial has it, with Keras' RMSprop as in ``fit``."""
    model = models.slides_cnn().train()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3, alpha=0.9, eps=1e-7)
    for x, y in torch.utils.data.DataLoader(
        dataset, batch_size=128, shuffle=True, num_workers=workers
    ):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def training() -> list[Row]:
    """An epoch of the slides' CNN, batches of 128, against the usual pipeline."""
    train, _ = data.load()
    dataset = usual_data(train)
    epochs = []
    seconds = in_turns(
        {
            "course": lambda: epochs.append(
                fit(models.slides_cnn(), train, epochs=1, batch_size=128, verbose=False).seconds[0]
            ),
            "usual, 0 workers": lambda: usual_epoch(dataset, 0),
            "usual, 2 workers": lambda: usual_epoch(dataset, 2),
        },
        TURNS["training"],
    )
    rows = []
    for name in ("usual, 0 workers", "usual, 2 workers"):
        value, whole = ratio(seconds[name], epochs[1:]), ratio(seconds[name], seconds["course"])
        times = f"{statistics.median(seconds[name]):.1f} s against {statistics.median(epochs[1:]):.1f} s"
        what = f"epoch of {len(train)} {train.source} images: {name} / fit"
        rows.append(Row(what, value, "×", "at least 1.5×", value >= 1.5, times))
        rows.append(Row("  the same, fit's accuracy measurement included", whole, "×"))
    return rows


# --------------------------------------------------------------------------------------------------- learning to confuse


def usual_trial(generator, optimizer, batches, device, eps, steps, lr) -> float:
    """A trial of Algorithm 2 as one would write it from the paper, and as its authors have: a new network for every pseudo-update."""
    frozen, classifier = copy.deepcopy(generator).eval(), models.confused_cnn().to(device).train()
    generator.train()
    sgd = torch.optim.SGD(classifier.parameters(), lr=lr)
    outcomes = []
    for _ in range(steps):
        x, y = (part.to(device) for part in next(batches))
        poisoned = (x + eps * generator(x).tanh()).clamp(0, 1)
        names, weights = zip(*classifier.named_parameters(), strict=True)
        slopes = torch.autograd.grad(
            F.cross_entropy(classifier(poisoned), y), weights, create_graph=True
        )
        moved = models.confused_cnn().to(device).train()
        for name, weight, slope in zip(names, weights, slopes, strict=True):
            layer, kind = name.split(".")
            del moved.get_submodule(layer)._parameters[kind]
            setattr(moved.get_submodule(layer), kind, weight - lr * slope)
        outcome = F.cross_entropy(moved(x), y)
        optimizer.zero_grad()
        (-outcome).backward()
        optimizer.step()
        with torch.no_grad():
            poisoned = (x + eps * frozen(x).tanh()).clamp(0, 1)
        sgd.zero_grad()
        F.cross_entropy(classifier(poisoned), y).backward()
        sgd.step()
        outcomes.append(outcome.detach())
    return torch.stack(outcomes).mean().item()


def endless(loader) -> Iterator:
    while True:
        yield from loader


def gigaflops(run: Callable[[], object]) -> float:
    """Arithmetic of all convolutions and matrix products, the same on every machine."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def share_of_products(run: Callable[[], object]) -> float:
    """Share of the time of all operations that convolutions and matrix products take."""
    with torch.autograd.profiler.profile(use_kineto=False) as profile:
        run()
    seconds = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    return sum(t for name, t in seconds.items() if re.search("conv|mm$", name)) / sum(
        seconds.values()
    )


def confuse() -> list[Row]:
    """A step of Algorithm 2 (generator, then classifier) with the paper's networks, batches of 64, against a straightforward one."""
    train, _ = data.load()
    batches = endless(torch.utils.data.DataLoader(usual_data(train), batch_size=64, shuffle=True))
    rows = []
    for device, least in (("cpu", 1.3), ("cuda", 3)):
        if device == "cuda" and runtime.trouble("cuda"):
            continue
        steps, images = 40 if device == "cpu" else 100, train.to(device)
        ours, usual = (generators.noise_autoencoder(16, 32).to(device) for _ in range(2))
        adam = torch.optim.Adam(ours.parameters(), lr=1e-4, fused=True)  # as in learn
        their_adam = torch.optim.Adam(usual.parameters(), lr=1e-4)

        def course(ours=ours, adam=adam, images=images, device=device, steps=steps) -> None:
            model = models.confused_cnn().to(device)
            course_confuse.run_trial(ours, adam, model, images, eps=0.3, steps=steps)

        def straightforward(usual=usual, their_adam=their_adam, device=device, steps=steps) -> None:
            usual_trial(usual, their_adam, batches, device, eps=0.3, steps=steps, lr=0.01)

        seconds = in_turns({"course": course, "usual": straightforward}, TURNS["confuse"])
        value = ratio(seconds["usual"], seconds["course"])
        theirs, own = (
            1000 * statistics.median(seconds[name]) / steps for name in ("usual", "course")
        )
        what = f"second-order step on {device}: straightforward / course"
        note = f"{theirs:.1f} ms a step against {own:.1f} ms"
        rows.append(Row(what, value, "×", f"at least {least}×", value >= least, note))
        if device == "cpu":
            theirs, own = (gigaflops(run) / steps for run in (straightforward, course))
            note = f"{theirs:.1f} Gflop a step against {own:.1f}"
            rows.append(Row("  its convolutions and matrix products", theirs / own, "×", note=note))
            theirs, own = (100 * share_of_products(run) for run in (straightforward, course))
            note = f"{theirs:.0f} % of the straightforward one"
            rows.append(Row("  the share of ours that they take", own, "%", note=note))
    return rows


# ------------------------------------------------------------------------------------------------------ import, memory

LIGHT = (
    "from course_utils import check; from course_utils.core import data, training; "
    "from course_utils.methods import attacks; from course_utils.lesson import results"
)
WIDGETS = "; from course_utils.lesson import plots, widgets"
IMPORT = "import time, torch; t = time.perf_counter(); {}; print(time.perf_counter() - t)"


def in_process(code: str) -> float:
    """The number that ``code`` prints in a Python of its own."""
    # glibc: give back what is freed
    environment = dict(os.environ, MALLOC_MMAP_THRESHOLD_="1000000")
    command = [sys.executable, "-c", code]
    return float(subprocess.check_output(command, env=environment, cwd=files.ROOT, text=True))


def imports() -> list[Row]:
    """What ``import course_utils`` costs once torch is there."""
    turns = [
        [in_process(IMPORT.format(what)) for what in (LIGHT, LIGHT + WIDGETS)]
        for _ in range(TURNS["imports"] + 1)
    ]
    light, whole = (statistics.median(times) for times in zip(*turns[1:], strict=True))
    what = "import of the light modules, over import torch"
    rows = [Row(what, light, "s", "under 0.5 s", light < 0.5)]
    return [*rows, Row("  the same, with plots and widgets", whole, "s")]


MEMORY = """
import torch
from benchmarks.bench import models, peak_mib, pgd, plain_loop
model, x, y = models.slides_cnn(), torch.rand(10_000, 1, 28, 28), torch.zeros(10_000, dtype=torch.long)
attack = lambda n: {attack}
attack(1_024)  # two chunks' work, whatever the size of a chunk is today
before = peak_mib()
attack(10_000)
print(peak_mib() - before)
"""


def size(status: str, name: str) -> int:
    """An entry of ``/proc/<process>/status``, in bytes."""
    return 1024 * int(re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)[1])


def peak_mib() -> float:
    """Largest memory this process ever held."""
    if sys.platform == "linux":  # where ru_maxrss begins with the peak of the parent
        return size(Path("/proc/self/status").read_text(), "VmHWM") / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def memory() -> list[Row]:
    """What PGD on 10,000 images needs beyond its input and the work of one chunk: its output."""
    output = 10_000 * 28 * 28 * 4 / 2**20
    rows = []
    for norm in ("inf", 2, 1):
        value = in_process(
            MEMORY.format(attack=f"pgd(model, x[:n], y[:n], eps=0.1, norm={norm!r}, steps=2)")
        )
        what = f"peak of PGD, norm {norm}, on 10,000 images, over input and one chunk"
        rows.append(Row(what, value, "MiB", f"{output:.0f} + 15 MiB", value <= output + 15))
    whole = in_process(MEMORY.format(attack="plain_loop(model, x[:n], y[:n], 0.1, 'inf', 2, 0.1)"))
    return [
        *rows,
        Row("  the plain loop, all images at once", whole, "MiB", "more", whole > 10 * output),
    ]


CELLS = (
    """
from course_utils import check
from course_utils.core import data, models, training
from course_utils.lesson import figures, plots, results, widgets
from course_utils.lesson.lecture import setup
from course_utils.methods import attacks
device = setup()
train, test = data.load("mnist", device=device)
net = models.slides_cnn()
history = training.fit(net, train[:2000], epochs=1, validation=test, verbose=False)
""",
    "print(train.source, open('/proc/self/status').read())",
)
KERNELS = 30


def kernel() -> list[Row]:
    """Memory of a kernel among thirty on one server (Linux): its own, and its part of the libraries that all share."""
    if sys.platform != "linux":
        return []
    environment = dict(os.environ, COURSE_DEVICE="cpu")
    told = []
    with run_kernel(env=environment, cwd=files.ROOT) as client:
        for cell in CELLS:
            told.clear()
            reply = client.execute_interactive(cell, output_hook=told.append)
            assert reply["content"]["status"] == "ok", reply["content"]
    status = "".join(message["content"].get("text", "") for message in told)
    own, shared, peak = (size(status, name) / 1e6 for name in ("RssAnon", "RssFile", "VmHWM"))
    value = own + shared / KERNELS
    what = f"kernel with {status.partition('Name:')[0]}and a trained network"
    note = (
        f"{own:.0f} MB of its own, {shared:.0f} MB to share; peak {peak:.0f} MB with all of these"
    )
    return [Row(what, value, "MB", "under 700 MB", value < 700, note)]


def widgets() -> Iterator[Row]:
    """Milliseconds from a key to the picture, for every widget on its slide, in a browser; all cells of all lectures run before."""
    for what, median, late, most in redraws.measured(redraws.lectures()):
        ok = late < LATE_MS and most < SLOWEST_MS
        bar = f"{LATE_MS}, {SLOWEST_MS} ms"
        note = f"95 of 100 within {late:.0f} ms, the slowest {most:.0f} ms"
        yield Row(f"a redraw in lecture {what}", median, "ms", bar, ok, note)


SECTIONS = {
    "attacks": attacks,
    "deepfool": deepfool,
    "minimum": minimum,
    "mine": mine,
    "minmax": minmax,
    "confuse": confuse,
    "training": training,
    "imports": imports,
    "memory": memory,
    "kernel": kernel,
    "widgets": widgets,
}


def main(names: list[str]) -> int:
    rows = []
    for name in names or SECTIONS:
        print(f"\n{name}: {SECTIONS[name].__doc__}", flush=True)
        for row in SECTIONS[name]():
            mark = {True: "✔", False: "✘", None: " "}[row.ok]
            print(
                f"{mark} {row.what:<76} {row.value:7.2f} {row.unit:<3} {row.bar:<15} {row.note}",
                flush=True,
            )
            rows.append(row)
    where = {
        "device": f"cpu, {torch.get_num_threads()} threads",
        "cores": os.cpu_count(),
        **runtime.versions(),
    }
    report = {"where": where, "rows": [asdict(row) for row in rows]}
    files.write_atomic(
        files.ROOT / "build" / "bench.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    )
    missed = [row.what for row in rows if row.ok is False]
    print(
        f"\n{len(missed)} bars missed." if missed else "\nAll bars held.",
        f"On {where['device']}. build/bench.json",
    )
    return 1 if missed else 0


if __name__ == "__main__":
    unknown = set(sys.argv[1:]) - set(SECTIONS)
    if unknown:
        sys.exit(
            f"No benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}."
        )
    sys.exit(main(sys.argv[1:]))
