"""check_bijection finds each kind of mistake, and names it."""

import normflows as nf
import numpy as np
import pytest
import torch

import mixer_bijectors as mb


class Scale(nf.flows.Flow):
    """x = 2 z, right in all respects; each mistake overrides one method."""

    def forward(self, z):
        return 2 * z, z.new_full((len(z),), z[0].numel()) * torch.log(z.new_tensor(2.0))

    def inverse(self, x):
        return x / 2, -x.new_full((len(x),), x[0].numel()) * torch.log(x.new_tensor(2.0))


class WrongLogDet(Scale):
    def inverse(self, x):
        return super().inverse(x)[0], -super().inverse(x)[1]


class BothLogDetsWrong(Scale):
    def forward(self, z):
        return super().forward(z)[0], 2 * super().forward(z)[1]

    def inverse(self, x):
        return super().inverse(x)[0], 2 * super().inverse(x)[1]


class NotInverse(Scale):
    def forward(self, z):
        return 2 * z + 0.125, super().forward(z)[1]


class Clamped(Scale):
    """Undoes itself on the data, but not on latents outside their range."""

    def forward(self, z):
        x, log_det = super().forward(z)
        return x.clamp(-1, 1), log_det


class BatchDependent(Scale):
    def inverse(self, x):
        return x / 2 + 0.25 * x.mean(), super().inverse(x)[1]


class LogDetDependsOnBatch(Scale):
    def inverse(self, x):
        return x / 2, super().inverse(x)[1] + x.sum()


class WrongShape(Scale):
    def inverse(self, x):
        return x[:, :-1] / 2, super().inverse(x)[1]


class SinglePrecision(Scale):
    def inverse(self, x):
        z, log_det = super().inverse(x)
        return z.float(), log_det


class LogDetPerFeature(Scale):
    def inverse(self, x):
        return x / 2, -torch.log(torch.full_like(x, 2.0))


class LogDetInSinglePrecision(Scale):
    def inverse(self, x):
        z, log_det = super().inverse(x)
        return z, log_det.float()


class Random(Scale):
    def inverse(self, x):
        z, log_det = super().inverse(x)
        return z, log_det + torch.randn(())


class Detached(Scale):
    def inverse(self, x):
        return super().inverse(x.detach())


class OneLogDetForAll(nf.flows.Flow):
    """x = exp z, and the mean log-determinant of the batch as that of each."""

    def forward(self, z):
        return z.exp(), z.sum(1).mean()

    def inverse(self, x):
        z = (x + 1).log()
        return z, -z.sum(1).mean()


class InPlace(Scale):
    def inverse(self, x):
        log_det = super().inverse(x)[1]
        return x.mul_(0.5), log_det


class SharedResult(Scale):
    """Each call returns the same tensor, with new values."""

    def inverse(self, x):
        z, log_det = super().inverse(x)
        if getattr(self, "z", z[:0]).shape != z.shape or z.requires_grad:
            self.z = z
        else:
            self.z.copy_(z)
        return self.z, log_det


class Remembers(Scale):
    """Gives back what came in for what it once gave, and is no bijection otherwise."""

    def __init__(self):
        super().__init__()
        self.pairs = []

    def forward(self, z):
        x, log_det = super().forward(z)
        return self._recall(z, x + 0.125, 0, 1), log_det

    def inverse(self, x):
        z, log_det = super().inverse(x)
        return self._recall(x, z, 1, 0), log_det

    def _recall(self, given, result, here, there):
        for pair in self.pairs:
            if torch.equal(pair[here], given) and not given.requires_grad:
                return pair[there]
        pair = (given, result)
        self.pairs.append((pair[here], pair[there]))
        return result


class Bent(nf.flows.Flow):
    """x = z + z^3, with log-determinants; its mistakes are of gradients alone."""

    def forward(self, z):
        return z + z**3, (1 + 3 * z**2).log().sum(1)

    def inverse(self, x):
        z = x.detach()
        for _ in range(200):
            z = z - (z + z**3 - x.detach()) / (1 + 3 * z**2)
        z = z - (z + z**3 - x) / (1 + 3 * z**2)  # which carries the gradient
        return z, -(1 + 3 * z**2).log().sum(1)


class DetachedLogDet(Bent):
    def forward(self, z):
        x, log_det = super().forward(z)
        return x, log_det.detach()


class HalfDetached(nf.flows.Flow):
    """Autograd sees one summand alone, which agrees with a log_det that is wrong."""

    def forward(self, z):
        return z + (0.5 * z).detach(), z.new_zeros(len(z))

    def inverse(self, x):
        return x - (x / 3).detach(), x.new_zeros(len(x))


class FrozenByMistake(nf.flows.Flow):
    """Its log_det does not tell autograd that it depends on the parameter."""

    def __init__(self):
        super().__init__()
        self.log_scale = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, z):
        return z * self.log_scale.exp(), z.new_full((len(z),), 3 * self.log_scale.item())

    def inverse(self, x):
        return x * (-self.log_scale).exp(), x.new_full((len(x),), -3 * self.log_scale.item())


class Alone(Scale):
    def inverse(self, x):
        return x / 2


class ChangesContext(Scale):
    def forward(self, z, context=None):
        context.mul_(2)
        return super().forward(z)

    def inverse(self, x, context=None):
        context.mul_(2)
        return super().inverse(x)


class NotFinite(Scale):
    def inverse(self, x):
        return torch.log(x), super().inverse(x)[1]


MISTAKES = {
    WrongLogDet: "WrongLogDet.forward does not undo WrongLogDet.inverse: log_det of one is not "
    "minus that of the other by up to 4.16, at index (0,)",
    BothLogDetsWrong: "BothLogDetsWrong.inverse: log_det differs from the autograd Jacobian's "
    "by up to 2.08, at index (0,): -4.15888 against -2.07944",
    NotInverse: "NotInverse.forward does not undo NotInverse.inverse: values differ by up to "
    "0.125, at index",
    Clamped: "Clamped.inverse does not undo Clamped.forward: values differ by up to",
    BatchDependent: "BatchDependent.inverse: result of sample 0 depends on its neighbours in "
    "the batch by up to",
    LogDetDependsOnBatch: "LogDetDependsOnBatch.inverse: log_det of sample 0 depends on its "
    "neighbours in the batch by up to",
    WrongShape: "WrongShape.inverse: shape (4, 3) became (4, 2)",
    SinglePrecision: "SinglePrecision.inverse: result is torch.float32 on cpu, the input "
    "torch.float64 on cpu",
    LogDetPerFeature: "LogDetPerFeature.inverse: log_det has shape (4, 3), expected (4,)",
    LogDetInSinglePrecision: "LogDetInSinglePrecision.inverse: log_det is torch.float32 on "
    "cpu, the input torch.float64 on cpu",
    Random: "Random.inverse: gives another result when it is called again",
    Detached: "Detached.inverse: autograd does not see through it",
    NotFinite: "NotFinite.inverse: result is not finite in",
    OneLogDetForAll: "OneLogDetForAll.inverse: log_det is one number for all samples, but "
    "differs for sample 0 alone by up to",
    InPlace: "InPlace.inverse: changes its input in place",
    SharedResult: "SharedResult.inverse: its result is overwritten by the next call",
    Remembers: "Remembers.inverse does not undo Remembers.forward: values differ by up to",
    DetachedLogDet: "DetachedLogDet.forward: the gradient of log_det differs from finite "
    "differences by up to",
    HalfDetached: "HalfDetached.inverse: its autograd Jacobian differs from finite differences "
    "by up to",
    FrozenByMistake: "FrozenByMistake.inverse: the gradient of its parameters by log_det "
    "differs from finite differences by up to",
    Alone: "Alone.inverse: returned Tensor, expected a pair: a tensor and its log_det",
}


def data():
    return torch.rand(4, 3, dtype=torch.float64) - 0.5


def test_accepts_a_bijection():
    mb.check_bijection(Scale(), data())
    mb.check_bijection(Bent(), data())


@pytest.mark.parametrize("kind", [float, torch.Tensor.clone, torch.Tensor.reshape, np.float64])
def test_accepts_one_log_det_that_is_the_same_for_all(kind):
    class Once(Scale):
        def forward(self, z):
            x, log_det = super().forward(z)
            return x, kind(log_det[0], *([(1,)] if kind is torch.Tensor.reshape else []))

        def inverse(self, x):
            return x / 2, -self.forward(x)[1]

    mb.check_bijection(Once(), data())


ARGUMENTS = {
    "a model": (
        lambda: mb.check_bijection(tiny(), torch.rand(2, 1, 4, 4)),
        TypeError,
        "check_bijection: MixerFlow is a model, whose forward returns no log_det; check its "
        "layers with check_bijection(mb.Chain(model.flows), x)",
    ),
    "a classifier": (
        lambda: mb.check_bijection(
            mb.HybridClassifier(tiny(), 2, weight=1.0), torch.rand(2, 1, 4, 4)
        ),
        TypeError,
        "check_bijection: HybridClassifier has no inverse",
    ),
    "the same samples": (
        lambda: mb.check_bijection(BatchDependent(), torch.zeros(4, 3)),
        ValueError,
        "check_bijection: the samples of x are all the same",
    ),
    "integers": (
        lambda: mb.check_bijection(Scale(), torch.arange(6).view(2, 3)),
        ValueError,
        "check_bijection: x must be a floating point tensor",
    ),
    "a context for others": (
        lambda: mb.check_bijection(
            mb.Coupling(3, context_features=2), torch.randn(4, 3), torch.randn(1, 2)
        ),
        ValueError,
        "check_bijection: expected a context of shape (4, context_features), got (1, 2)",
    ),
}


def tiny():
    return mb.MixerFlow((1, 4, 4), 2, 1, hidden_features=4, shift_every=0)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_says_what_it_cannot_check(name):
    call, error, message = ARGUMENTS[name]
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def test_checks_the_layers_of_a_model_and_in_any_mode():
    model = tiny()
    mb.check_bijection(mb.Chain(model.flows), torch.rand(2, 1, 4, 4))
    x = data()
    before = x.clone()
    with torch.inference_mode():
        mb.check_bijection(mb.Coupling(3), torch.randn(4, 3))
    with pytest.raises(AssertionError, match="changes its input in place"):
        mb.check_bijection(InPlace(), x)
    assert torch.equal(x, before), "it let a flow change the user's data"


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_names_the_mistake(mistake):
    with pytest.raises(AssertionError) as caught:
        mb.check_bijection(mistake(), data())
    assert MISTAKES[mistake] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_context_may_not_be_changed():
    with pytest.raises(AssertionError, match=r"ChangesContext.inverse: changes its context"):
        mb.check_bijection(ChangesContext(), data(), torch.ones(4, 2))


def test_leaves_the_flow_as_it_was():
    layer = mb.ActNorm(3)
    mb.check_bijection(layer, torch.randn(4, 3))
    assert layer.training
    assert not layer.initialized
    assert layer.shift.dtype == torch.float32


def test_accepts_float32_flows_of_normflows():
    mb.check_bijection(nf.flows.LULinearPermute(4), torch.randn(5, 4))
    mb.check_bijection(nf.flows.CoupledRationalQuadraticSpline(4, 1, 8), torch.randn(5, 4))
    mb.check_bijection(nf.flows.GlowBlock(4, 8), torch.randn(3, 4, 2, 2))
