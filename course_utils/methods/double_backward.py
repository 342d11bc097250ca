"""Convolution and batch norm with cheap second derivatives, for gradients through training."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

norm_forward = torch.native_batch_norm
norm_backward = torch.ops.aten.native_batch_norm_backward
convolution_backward = torch.ops.aten.convolution_backward


class quick_second_derivatives(TorchFunctionMode):
    """Context for the forward pass of ``confusion_gradient``: the same derivatives for less work.

    Batch norm in train mode: PyTorch writes the second derivative as dozens of passes over the
    images. Running statistics stay as they are. Convolutions: PyTorch's second derivative includes
    that in the weights, needed or not. Made for one use: first gradients in the weights, with
    ``create_graph``, then one of these in the images, a leaf. Other layers and unusual settings
    take PyTorch's way.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.batch_norm and kwargs["training"] and kwargs["weight"] is not None:
            return QuickNorm.apply(args[0], kwargs["weight"], kwargs["bias"], kwargs["eps"])
        # As nn.Conv2d calls it, with the padding in pixels and one group.
        if function is torch.conv2d and len(args) == 7:
            padding = args[4]
            groups = args[6]
            if groups == 1 and not isinstance(padding, str):
                return QuickConvolution.apply(*args[:6])
        return function(*args, **kwargs)


class QuickConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, *how: tuple) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = how
        ctx.bias = bias is not None
        return F.conv2d(x, weight, bias, *how)

    @staticmethod
    def backward(ctx, g: Tensor):
        x, weight = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return gradient_in_images(g, x, weight, ctx.how), None, None, None, None, None
        wanted = (not x.is_leaf, True, ctx.bias)  # the first gradient, in the weights
        slopes = QuickConvolutionBackward.apply(g, x, weight, ctx.how, wanted)
        return *slopes, None, None, None


class QuickConvolutionBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, g: Tensor, x: Tensor, weight: Tensor, how: tuple, wanted: tuple):
        ctx.save_for_backward(g, x, weight)
        ctx.set_materialize_grads(False)
        ctx.how = how
        return convolution_backward(g, x, weight, [len(weight)], *how, False, (0, 0), 1, wanted)

    @staticmethod
    def backward(ctx, p: Tensor | None, q: Tensor, r: Tensor | None):
        """The gradient of Σ p · (first) + Σ q · (second) + Σ r · (third) in g and in x."""
        g, x, weight = ctx.saved_tensors
        if p is None:
            in_g = F.conv2d(x, q, r, *ctx.how)
        else:
            in_g = F.conv2d(torch.cat([p, x], 1), torch.cat([weight, q], 1), r, *ctx.how)
        return in_g, gradient_in_images(g, x, q, ctx.how), None, None, None


def gradient_in_images(g: Tensor, x: Tensor, weight: Tensor, how: tuple) -> Tensor:
    """The gradient of a convolution in its images.

    For few channels a matrix product is faster than PyTorch's way.
    """
    if weight.shape[1] > 3:
        wanted = (True, False, False)
        return convolution_backward(g, x, weight, None, *how, False, (0, 0), 1, wanted)[0]
    stride, padding, dilation = how
    columns = torch.bmm(weight.flatten(1).T.expand(len(g), -1, -1), g.flatten(2))
    return F.fold(columns, x.shape[2:], weight.shape[2:], dilation, padding, stride)


class QuickNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, scale = norm_forward(x, weight, bias, None, None, True, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, scale)
        return y

    @staticmethod
    def backward(ctx, g: Tensor):
        return *QuickNormBackward.apply(g, *ctx.saved_tensors), None


class QuickNormBackward(torch.autograd.Function):
    """The three gradients of batch norm, with h = (x − mean) · scale, of n values per channel.

    scale · weight · (g − Σg / n − h · Σgh / n), then Σgh and Σg.
    """

    @staticmethod
    def forward(ctx, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor):
        out = norm_backward(g, x, weight, None, None, mean, scale, True, 0.0, [True] * 3)
        ctx.save_for_backward(g, x, weight, mean, scale, *out[1:])
        return out

    @staticmethod
    def backward(ctx, p: Tensor, q: Tensor, r: Tensor):
        """The gradient of S = Σ p · (first) + Σ q · (second) + Σ r · (third) in g and in x."""
        g, x, w, mean, s, gh, g1 = ctx.saved_tensors
        n = x.numel() / x.shape[1]
        shape = (1, -1, *[1] * (x.dim() - 2))
        others = [0, *range(2, x.dim())]
        in_g, ph, p1 = norm_backward(p, x, w, None, None, mean, s, True, 0.0, [True] * 3)
        # In place where possible: fresh memory costs more than the arithmetic.
        in_g.addcmul_(x, (s * q).view(shape)).add_((r - mean * s * q).view(shape))
        in_x = p * g
        of_p = -w * s * gh / n  # ∂S/∂h = of_p · p + of_g · g
        of_g = q - w * s * ph / n
        in_s = w * (in_x.sum(others) - p1 * g1 / n - ph * gh / n)  # ∂S/∂scale with h held
        of_h = -(of_p * ph + of_g * gh + s * in_s) / n
        rest = -s * (of_p * p1 + of_g * g1) / n - s * s * of_h * mean
        torch.mul(p, (s * of_p).view(shape), out=in_x)
        in_x.addcmul_(g, (s * of_g).view(shape)).addcmul_(x, (s * s * of_h).view(shape))
        return in_g, in_x.add_(rest.view(shape)), None, None, None
