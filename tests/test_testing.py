"""check_bijection finds each kind of mistake, and names it."""

import normflows as nf
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
}


def data():
    return torch.rand(4, 3, dtype=torch.float64) - 0.5


def test_accepts_a_bijection():
    mb.check_bijection(Scale(), data())


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_names_the_mistake(mistake):
    with pytest.raises(AssertionError) as caught:
        mb.check_bijection(mistake(), data())
    assert MISTAKES[mistake] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_leaves_the_flow_as_it_was():
    layer = mb.ActNorm(3)
    mb.check_bijection(layer, torch.randn(4, 3))
    assert layer.training
    assert not layer.initialized
    assert layer.shift.dtype == torch.float32


def test_accepts_float32_flows_of_normflows():
    mb.check_bijection(nf.flows.LULinearPermute(4), torch.randn(5, 4))
    mb.check_bijection(nf.flows.CoupledRationalQuadraticSpline(4, 1, 8), torch.randn(5, 4))
