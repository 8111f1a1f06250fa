"""Bases of image models: their classes, their temperature, and the shapes that they give."""

import re

import normflows as nf
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import mixer_bijectors as mb

EVENT, CLASSES = (12, 4), 3


class Encoder(nn.Module):
    """Means and log-scales of each latent, from weights of classes."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(CLASSES, 2 * 48)

    def forward(self, context):
        mean, log_scale = self.linear(context).chunk(2, dim=1)
        return torch.cat([mean.reshape(-1, *EVENT), log_scale.reshape(-1, *EVENT)], dim=-1)


class ByLabel(nf.distributions.BaseDistribution):
    """A user's base that looks its mean up by an integer."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Embedding(CLASSES, 48)

    def forward(self, num_samples=1, y=None):
        z = self.mean(y).view(-1, *EVENT) + torch.randn(num_samples, *EVENT)
        return z, self.log_prob(z, y)

    def log_prob(self, z, y):
        normal = torch.distributions.Normal(self.mean(y).view(-1, *EVENT), 1.0)
        return normal.log_prob(z).flatten(1).sum(1)


class Doubled(nf.distributions.DiagGaussian):
    """A user's subclass, which draws as its parent does not."""

    def forward(self, num_samples=1, context=None):
        z, log_prob = super().forward(num_samples)
        return 2 * z, log_prob - self.d * torch.log(torch.tensor(2.0))

    def log_prob(self, z, context=None):
        return super().log_prob(z / 2) - self.d * torch.log(torch.tensor(2.0))


distributions = nf.distributions
PLAIN = {
    "DiagGaussian": lambda: distributions.DiagGaussian(EVENT),
    "Uniform": lambda: distributions.base.Uniform(EVENT, -3.0, 3.0),
    "GlowBase": lambda: distributions.GlowBase(EVENT),
    "AffineGaussian": lambda: distributions.AffineGaussian(EVENT, EVENT),
    "a subclass": lambda: Doubled(EVENT),
}
BY_CLASS = {
    "ClassCondDiagGaussian": lambda: distributions.ClassCondDiagGaussian(EVENT, CLASSES),
    "GlowBase by class": lambda: distributions.GlowBase(EVENT, CLASSES),
    "AffineGaussian by class": lambda: distributions.AffineGaussian(EVENT, EVENT, CLASSES),
    "ConditionalDiagGaussian": lambda: distributions.base.ConditionalDiagGaussian(
        EVENT, Encoder()
    ),
    "by label": ByLabel,
}
BASES = PLAIN | BY_CLASS
HAVE_NO_TEMPERATURE = ("Uniform", "ConditionalDiagGaussian", "by label")


def build(name, **options):
    """A model with a base whose parameters are not those that it starts with."""
    torch.manual_seed(0)
    base = BASES[name]()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    classes = {"num_classes": CLASSES} if name in BY_CLASS else {}
    options = {"hidden_features": 8, "shift_every": 0, "base": base, **classes, **options}
    model = mb.MixerFlow((1, 6, 8), 2, 1, **options).double().eval()
    return model, torch.tensor([0, 2, 1, 0]) if classes else None


@pytest.mark.parametrize("own", [None, 0.5])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", BASES)
def test_samples_have_the_log_prob_that_comes_with_them(name, temperature, own):
    model, labels = build(name)
    if name in HAVE_NO_TEMPERATURE:
        if temperature != 1.0 or own is not None:
            with pytest.raises(ValueError, match="has no temperature"):
                model.sample(4, labels, temperature=0.7)
            return
    else:
        model.q0.temperature = own
    x, log_prob = model.sample(4, labels, temperature=temperature)
    if name not in HAVE_NO_TEMPERATURE:
        assert model.q0.temperature == own
        model.q0.temperature = temperature * (own or 1.0)
    assert_close(model.log_prob(x, labels), log_prob, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", BASES)
def test_the_base_gets_the_labels_and_has_one_density_for_each_image(name):
    model, labels = build(name)
    x = torch.rand(4, 1, 6, 8, dtype=torch.float64) - 0.5
    z, log_det = model.inverse_and_log_det(x, labels)
    key = "context" if name.startswith("Cond") else "y"
    given = nn.functional.one_hot(labels).double() if key == "context" else labels
    want = model.q0.log_prob(z, **({} if labels is None else {key: given}))
    assert_close(model.log_prob(x, labels), want + log_det, atol=1e-5, rtol=1e-6)
    if labels is not None:
        others = model.log_prob(x, (labels + 1) % CLASSES)
        assert not torch.isclose(others, model.log_prob(x, labels)).any()


@pytest.mark.parametrize("name", BASES)
def test_any_base_draws_from_a_generator(name):
    model, labels = build(name)
    torch.manual_seed(3)
    want = model.sample(4, labels)
    state = torch.get_rng_state()
    generator = torch.Generator().manual_seed(3)
    assert_close(model.sample(4, labels, generator=generator), want, atol=0, rtol=0)
    assert torch.equal(torch.get_rng_state(), state), "it left its mark on the global one"
    more = model.sample(4, labels, generator=generator)[0]
    assert not torch.isclose(more, want[0]).any(), "the generator did not move on"


@pytest.mark.parametrize("name", BY_CLASS)
def test_the_null_class_has_the_mean_of_the_parameters_or_is_refused(name):
    model, _ = build(name)
    null = torch.tensor([-1, -1])
    if name == "by label":
        for call in (model.sample, model.log_prob):
            x = 2 if call == model.sample else torch.zeros(2, 1, 6, 8)
            with pytest.raises(ValueError, match="knows no null class; leave out the label -1"):
                call(x, null)
        return
    x = torch.rand(2, 1, 6, 8, dtype=torch.float64) - 0.5
    z, log_det = model.inverse_and_log_det(x, null)
    rows = torch.full((2, CLASSES), 1 / CLASSES, dtype=torch.float64)
    assert_close(model.log_prob(x, null), model.q0.log_prob(z, rows) + log_det)
    assert model.sample(2, null)[1].isfinite().all()


def test_the_null_class_is_nan_where_labels_cannot_be_looked_at():
    model, _ = build("by label")
    x = torch.zeros(2, 1, 6, 8, dtype=torch.float64)
    labels = torch.tensor([-1, 1])
    each = torch.func.vmap(lambda x, y: model.log_prob(x[None], y[None])[0])(x, labels)
    assert each[0].isnan()
    assert_close(each[1], model.log_prob(x[1:], labels[1:])[0], atol=1e-5, rtol=1e-5)


class Elements(nf.distributions.BaseDistribution):
    """What torch's distributions do: a log-density for each element."""

    def forward(self, num_samples=1):
        z = torch.randn(num_samples, *EVENT)
        return z, self.log_prob(z)

    def log_prob(self, z):
        return torch.distributions.Normal(0.0, 1.0).log_prob(z)


class Vectors(distributions.UniformGaussian):
    """A user's subclass, of whose events nothing is known."""


WRONG = {
    ("vectors", 1): lambda: Vectors(4, [0]),
    ("vectors", 12): lambda: Vectors(4, [0]),
    ("elements", 12): Elements,
    ("elements", 5): Elements,
}


@pytest.mark.parametrize(("name", "batch"), WRONG)
def test_log_densities_of_parts_are_refused(name, batch):
    """A batch of as many images as there are patches made a (12, 12) loss of them."""
    make = WRONG[name, batch]
    model = mb.MixerFlow((1, 6, 8), 2, 1, hidden_features=8, shift_every=0, base=make())
    tar = mb.TarFlow((1, 6, 8), 2, channels=8, num_blocks=1, layers_per_block=1, head_dim=8)
    tar.q0 = make()
    hybrid = mb.HybridClassifier(model, 3, weight=1.0)
    x, labels = torch.rand(batch, 1, 6, 8) - 0.5, torch.zeros(batch, dtype=torch.long)
    for call in (
        lambda: model.log_prob(x),
        lambda: model.forward_kld(x),
        lambda: tar.log_prob(x),
        lambda: hybrid(x),
        lambda: hybrid.loss(x, labels),
    ):
        with pytest.raises(ValueError, match=rf"gave log-densities of shape .*\({batch},\)"):
            call()
    for flow in (model, tar, hybrid):
        with pytest.raises(ValueError, match=r"gave (latents|log-densities) of shape"):
            flow.sample(batch)


OTHERS = {
    "got GaussianMixture of shape (48,)": lambda: distributions.GaussianMixture(3, 48),
    "got GaussianMixture of shape (4,)": lambda: distributions.GaussianMixture(3, 4),
    "got GaussianPCA of shape (48,)": lambda: distributions.GaussianPCA(48, 2),
    "got UniformGaussian of shape (12,)": lambda: distributions.UniformGaussian(12, [0]),
    "got Uniform of shape (48,)": lambda: distributions.base.Uniform(48),
    "got TwoMoons of shape (2,)": distributions.TwoMoons,
    "got RingMixture of shape (2,)": distributions.RingMixture,
    "got CircularGaussianMixture of shape": distributions.CircularGaussianMixture,
    "got Smiley of shape (2,)": lambda: distributions.Smiley(1.0),
    "the latents, got Dirac": distributions.Dirac,
    "the latents, got NNDiagGaussian": lambda: distributions.NNDiagGaussian(nn.Identity()),
    "the latents, got DiagGaussianProposal": lambda: distributions.DiagGaussianProposal(
        EVENT, 0.1
    ),
    "the latents, got NormalizingFlow": lambda: nf.NormalizingFlow(Elements(), []),
    "the latents, got DiagGaussian": lambda: distributions.DiagGaussian,
    "the latents, got str": lambda: "DiagGaussian",
    "ConditionalDiagGaussian is for some classes": (
        distributions.target.ConditionalDiagGaussian
    ),
}


@pytest.mark.parametrize("message", OTHERS)
def test_what_is_no_distribution_of_the_latents_is_refused(message):
    base = OTHERS[message]()
    with pytest.raises((TypeError, ValueError), match=f"^MixerFlow: .*{re.escape(message)}"):
        mb.MixerFlow((1, 6, 8), 2, 1, hidden_features=8, shift_every=0, base=base)


@pytest.mark.parametrize(
    "base",
    [
        distributions.LinearInterpolation(*[distributions.DiagGaussian(EVENT)] * 2, 0.5),
        type("Mine", (distributions.Target,), {"log_prob": lambda self, z: z.sum((1, 2))})(),
        torch.distributions.Normal(torch.zeros(EVENT), 1.0),
    ],
    ids=lambda base: type(base).__name__,
)
def test_what_only_has_a_density_cannot_be_sampled(base):
    model = mb.MixerFlow((1, 6, 8), 2, 1, hidden_features=8, shift_every=0, base=base)
    with pytest.raises(TypeError, match="cannot be called for samples"):
        model.sample(2)


@pytest.mark.parametrize("classes", [None, CLASSES])
def test_the_scales_of_an_affine_base_are_those_of_the_latents(classes):
    """normflows counts scales of fewer dimensions once, however many latents they scale."""
    options = {"hidden_features": 8, "shift_every": 0, "num_classes": classes or 0}
    for wrong in (4, (4,), (3, 1), (12, 4, 1), (12, 2)):
        base = distributions.AffineGaussian(EVENT, wrong, classes)
        with pytest.raises(ValueError, match="affine_shape of AffineGaussian must have"):
            mb.MixerFlow((1, 6, 8), 2, 1, base=base, **options)
    for right in (EVENT, (1, 4), (12, 1), (1, 1)):
        base = distributions.AffineGaussian(EVENT, right, classes)
        model = mb.MixerFlow((1, 6, 8), 2, 1, base=base, **options).eval()
        nn.init.normal_(base.transform.s, std=0.3)
        labels = torch.zeros(2, dtype=torch.long) if classes else None
        log_prob = model.log_prob(torch.zeros(2, 1, 6, 8), labels)
        log_scales = base.transform.s.expand(1, *EVENT)
        mean = base.transform.t.expand(1, *EVENT)
        normal = torch.distributions.Normal(mean, log_scales.exp())
        assert_close(log_prob, normal.log_prob(torch.zeros(2, *EVENT)).sum((1, 2)))


@pytest.mark.parametrize("name", ["DiagGaussian", "ClassCondDiagGaussian"])
def test_a_compiled_base_is_the_base(name):
    model, labels = build(name)
    base = model.q0
    results = []
    for each in (base, torch.compile(base, backend="eager")):
        model.q0 = each
        torch.manual_seed(1)
        x, log_prob = model.sample(4, labels, temperature=0.5)
        results.append((x, log_prob, model.log_prob(x, labels)))
    assert_close(results[1], results[0])
    assert base.temperature is None
    model.q0 = torch.compile(distributions.DiagGaussian((1, 4)), backend="eager")
    with pytest.raises(ValueError, match="got DiagGaussian of shape"):
        model.log_prob(x, labels)


@pytest.mark.parametrize("name", ["DiagGaussian", "ClassCondDiagGaussian"])
def test_compiled_densities_in_inference_mode(name):
    model, labels = build(name)
    x = torch.rand(4, 1, 6, 8, dtype=torch.float64) - 0.5
    want = model.log_prob(x, labels).detach()
    compiled = torch.compile(model.log_prob, backend="eager")
    with torch.inference_mode():
        assert_close(compiled(x, labels), want)


def test_log_densities_are_in_the_dtype_of_the_images():
    model, _ = build("DiagGaussian")
    model.float().q0.double()
    x = torch.zeros(2, 1, 6, 8)
    z = model.embed(x).view(2, *EVENT)
    assert model.log_prob(x).dtype == model.base_log_prob(z).dtype == torch.float32
    assert_close(model.log_prob(x), model.float().log_prob(x))


def test_a_base_that_is_put_in_later_is_checked_too():
    model, _ = build("DiagGaussian")
    model.q0 = distributions.DiagGaussian((1, 4))
    with pytest.raises(ValueError, match="base must have the shape"):
        model.log_prob(torch.zeros(2, 1, 6, 8))
    model.q0 = distributions.GlowBase(EVENT, CLASSES)
    with pytest.raises(ValueError, match="for 3 classes, but the model for num_classes=0"):
        model.sample(2)


def test_classes_that_only_the_base_reads_are_enough():
    flows = {"channel_flow": mb.LULinear, "patch_flow": mb.LULinear}
    for name in BY_CLASS:
        assert build(name, **flows)[0].num_classes == CLASSES
    for base in (None, distributions.GlowBase(EVENT), distributions.DiagGaussian(EVENT)):
        with pytest.raises(ValueError, match="none of the flows inside reads a context"):
            mb.MixerFlow((1, 6, 8), 2, 1, num_classes=3, base=base, **flows)
    for name in BY_CLASS:
        with pytest.raises(ValueError, match="classes, but the model for num_classes=0"):
            mb.MixerFlow((1, 6, 8), 2, 1, base=BASES[name](), **flows)


def test_tarflow_hands_labels_to_its_base():
    sizes = {"channels": 8, "num_blocks": 1, "layers_per_block": 1, "head_dim": 8}
    model = mb.TarFlow((1, 6, 8), 2, num_classes=CLASSES, **sizes).double()
    model.q0 = build("ClassCondDiagGaussian")[0].q0
    labels = torch.tensor([0, 1, 2, -1])
    x, log_prob = model.sample(4, labels)
    assert_close(model.log_prob(x, labels), log_prob)
    z = model.embed(x, labels).view(4, *EVENT)
    assert_close(log_prob[:3], model.q0.log_prob(z[:3], labels[:3]))


class Target(nf.distributions.Target):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def log_prob(self, x):
        return torch.distributions.Normal(0.2, self.scale).log_prob(x).flatten(1).sum(1)


REVERSE = {
    "kld": lambda model, **more: model.reverse_kld(4, 0.7, **more),
    "kld without score": lambda model, **more: model.reverse_kld(4, score_fn=False, **more),
    "alpha": lambda model, **more: model.reverse_alpha_div(4, 0.5, **more),
    "alpha above 1": lambda model, **more: model.reverse_alpha_div(4, 2, **more),
    "alpha dreg": lambda model, **more: model.reverse_alpha_div(4, 0.5, dreg=True, **more),
}


@pytest.mark.parametrize("name", REVERSE)
def test_reverse_divergences_are_those_of_normflows(name):
    model, _ = build("DiagGaussian")
    model.p = Target()
    plain = nf.NormalizingFlow(model.q0, list(model.flows), model.p)
    results = []
    for each in (model, plain):
        torch.manual_seed(1)
        loss = REVERSE[name](each)
        gradients = torch.autograd.grad(loss, list(each.q0.parameters()))
        results.append((loss, *gradients))
    assert_close(results[0], results[1], check_dtype=False, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", REVERSE)
def test_reverse_divergences_take_labels_and_leave_frozen_parameters_frozen(name):
    model, labels = build("ClassCondDiagGaussian")
    model.p = Target()
    model.q0.loc.requires_grad_(False)
    losses = []
    for given in (labels, (labels + 1) % CLASSES):
        torch.manual_seed(1)
        losses.append(REVERSE[name](model, labels=given))
    assert losses[0] != losses[1]
    frozen = [key for key, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["q0.loc"]
    with pytest.raises(ValueError, match="called without labels"):
        REVERSE[name](model)
