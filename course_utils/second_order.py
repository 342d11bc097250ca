"""Convolution and batch norm with cheap second derivatives, for gradients through a training step."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_norm_forward, _norm_backward = torch.native_batch_norm, torch.ops.aten.native_batch_norm_backward
_conv_backward = torch.ops.aten.convolution_backward


class quick_second_derivatives(TorchFunctionMode):
    """Context for the forward pass of ``confusion_gradient``: the same values and derivatives for less work.

    Batch norm in train mode: PyTorch writes the second derivative as dozens of passes over the images; running statistics stay as they are.
    Convolutions: PyTorch's second derivative includes that in the weights, asked for or not. Made for one use: first gradients in the
    weights, with ``create_graph``, then one of these in the images, a leaf. Other layers, and unusual settings, go PyTorch's way.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.batch_norm:
            given = (
                dict(zip(("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"), args, strict=False))
                | kwargs
            )
            if given["training"] and given["weight"] is not None:
                return _Norm.apply(given["input"], given["weight"], given["bias"], given["eps"])
        # As nn.Conv2d calls it, with one group and the padding in pixels.
        if function is torch.conv2d and len(args) == 7 and args[6] == 1 and not isinstance(args[4], str):
            return _Convolution.apply(*args[:6])
        return function(*args, **kwargs)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, *how: tuple) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how, ctx.bias = how, bias is not None
        return F.conv2d(x, weight, bias, *how)

    @staticmethod
    def backward(ctx, g: Tensor):
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # the first gradient, in the weights
            return *_ConvolutionBackward.apply(g, x, weight, ctx.how, (not x.is_leaf, True, ctx.bias)), None, None, None
        return _to_images(g, x, weight, ctx.how), None, None, None, None, None


class _ConvolutionBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, g: Tensor, x: Tensor, weight: Tensor, how: tuple, wanted: tuple):
        ctx.save_for_backward(g, x, weight)
        ctx.set_materialize_grads(False)
        ctx.how = how
        return _conv_backward(g, x, weight, [len(weight)], *how, False, (0, 0), 1, wanted)

    @staticmethod
    def backward(ctx, p: Tensor | None, q: Tensor, r: Tensor | None):
        """The gradient of Σ p · (first) + Σ q · (second) + Σ r · (third) in g and in x."""
        g, x, weight = ctx.saved_tensors
        in_g = F.conv2d(x, q, r, *ctx.how) if p is None else F.conv2d(torch.cat([p, x], 1), torch.cat([weight, q], 1), r, *ctx.how)
        return in_g, _to_images(g, x, q, ctx.how), None, None, None


def _to_images(g: Tensor, x: Tensor, weight: Tensor, how: tuple) -> Tensor:
    """The gradient of a convolution in its images. To few channels a matrix product is faster than PyTorch's way."""
    if weight.shape[1] > 3:
        return _conv_backward(g, x, weight, None, *how, False, (0, 0), 1, (True, False, False))[0]
    stride, padding, dilation = how
    columns = torch.bmm(weight.flatten(1).T.expand(len(g), -1, -1), g.flatten(2))
    return F.fold(columns, x.shape[2:], weight.shape[2:], dilation, padding, stride)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, scale = _norm_forward(x, weight, bias, None, None, True, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, scale)
        return y

    @staticmethod
    def backward(ctx, g: Tensor):
        return *_NormBackward.apply(g, *ctx.saved_tensors), None


class _NormBackward(torch.autograd.Function):
    """With h = (x − mean) · scale, of n values per channel: scale · weight · (g − Σg / n − h · Σgh / n), then Σgh and Σg."""

    @staticmethod
    def forward(ctx, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor):
        out = _norm_backward(g, x, weight, None, None, mean, scale, True, 0.0, [True] * 3)
        ctx.save_for_backward(g, x, weight, mean, scale, *out[1:])
        return out

    @staticmethod
    def backward(ctx, p: Tensor, q: Tensor, r: Tensor):
        """The gradient of S = Σ p · (first) + Σ q · (second) + Σ r · (third) in g and in x."""
        g, x, w, mean, s, gh, g1 = ctx.saved_tensors
        n, shape, others = x.numel() / x.shape[1], (1, -1, *[1] * (x.dim() - 2)), [0, *range(2, x.dim())]
        in_g, ph, p1 = _norm_backward(p, x, w, None, None, mean, s, True, 0.0, [True] * 3)
        # In place where it can be: fresh memory costs more than the arithmetic.
        in_g.addcmul_(x, (s * q).view(shape)).add_((r - mean * s * q).view(shape))
        in_x = p * g
        of_p, of_g = -w * s * gh / n, q - w * s * ph / n  # ∂S/∂h = of_p · p + of_g · g
        in_s = w * (in_x.sum(others) - p1 * g1 / n - ph * gh / n)  # ∂S/∂scale with h held
        of_h = -(of_p * ph + of_g * gh + s * in_s) / n
        rest = -s * (of_p * p1 + of_g * g1) / n - s * s * of_h * mean
        torch.mul(p, (s * of_p).view(shape), out=in_x).addcmul_(g, (s * of_g).view(shape)).addcmul_(x, (s * s * of_h).view(shape))
        return in_g, in_x.add_(rest.view(shape)), None, None, None
