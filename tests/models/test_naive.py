"""Both families against models written once more: plain loops over tokens, no operator of ours.

Nothing here shares code with the models but their parameters: scan orders are lists of indices,
scans are loops in time, and every layer is a function of torch. In float64 outputs and gradients
must agree to rounding, on the grids where an off-by-one of the class token would show: odd ones.
"""

import math

import pytest
import timm
import torch
import torch.nn.functional as F

import rsmamba.models  # noqa: F401 - registers them

#: Relative; a wrong slot, order or share is wrong in the first digits.
TOLERANCE = 1e-9


def layer_norm(module, x):
    return F.layer_norm(x, x.shape[-1:], module.weight, module.bias, 1e-5)


# --- RoMA --------------------------------------------------------------------------------------


def token_order(rows, columns, class_slot, direction):
    """Positions in the sequence as the scan visits them; directions as section 3 of RoMA has them.

    0 along the rows, 1 backwards, 2 down the columns, 3 backwards; the class token keeps its place
    in the middle of every one of them.
    """
    sequence = list(range(rows * columns + (class_slot is not None)))
    patches = [i for i in sequence if i != class_slot]
    if direction in (2, 3):
        patches = [patches[row * columns + column]
                   for column in range(columns) for row in range(rows)]  # fmt: skip
    if class_slot is not None:
        patches.insert(class_slot, class_slot)
    return patches[::-1] if direction in (1, 3) else patches


def selective_scan(u, dt, A, B, C, D):
    """State by state: h = exp(dt A) h + dt B u, y = C h + D u; (B, L, D) in and out."""
    state = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    outputs = []
    for t in range(u.shape[1]):
        step = dt[:, t, :, None]
        state = (step * A).exp() * state + step * u[:, t, :, None] * B[:, t, None, :]
        outputs.append(torch.einsum("bdn,bn->bd", state, C[:, t]) + D * u[:, t])
    return torch.stack(outputs, 1)


def naive_mixer(mixer, tokens, rows, columns, class_slot):
    x, z = F.linear(tokens, mixer.in_proj.weight).chunk(2, -1)
    total = torch.zeros_like(x)
    for direction, scan in enumerate(mixer.scans):
        order = token_order(rows, columns, class_slot, direction)
        u = torch.zeros_like(x)
        for t in range(len(order)):  # causal: this token of the order and three before it
            taps = range(max(0, t - 3), t + 1)
            u[:, t] = scan.conv1d.bias + sum(
                scan.conv1d.weight[:, 0, 3 - (t - s)] * x[:, order[s]] for s in taps
            )
        u = F.silu(u)
        dt, B, C = F.linear(u, scan.x_proj.weight).split([scan.dt_rank, 16, 16], -1)
        dt = F.softplus(F.linear(dt, scan.dt_proj.weight, scan.dt_proj.bias))
        y = selective_scan(u, dt, -scan.A_log.exp(), B, C, scan.D)
        back = sorted(range(len(order)), key=order.__getitem__)
        total = total + y[:, back]
    return F.linear(total / len(mixer.scans) * F.silu(z), mixer.out_proj.weight)


def naive_roma(model, image, patch, pool):
    """Class scores; the image size is the one that the position embedding is made for."""
    height, width = image.shape[-2:]
    rows, columns = math.ceil(height / patch), math.ceil(width / patch)
    image = F.pad(image, (0, columns * patch - width, 0, rows * patch - height))
    stem = model.patch_embed.proj
    x = F.conv2d(image, stem.weight, stem.bias, stride=patch).flatten(2).transpose(1, 2)
    # As many patches before the class token as after it, or one fewer.
    slot = (rows * columns) // 2 if model.cls_token is not None else None
    if slot is not None:
        token = model.cls_token.repeat(image.shape[0], 1, 1)
        x = torch.cat((x[:, :slot], token, x[:, slot:]), 1)
    x = x + model.pos_embed
    for block in model.blocks:
        x = x + naive_mixer(block.mixer, layer_norm(block.norm1, x), rows, columns, slot)
        y = layer_norm(block.norm2, x)
        y = F.silu(F.linear(y, block.mlp.fc1_g.weight, block.mlp.fc1_g.bias)) * F.linear(
            y, block.mlp.fc1_x.weight, block.mlp.fc1_x.bias
        )
        x = x + F.linear(y, block.mlp.fc2.weight, block.mlp.fc2.bias)
    x = layer_norm(model.norm, x)
    patches = [i for i in range(x.shape[1]) if i != slot]
    pooled = x[:, slot] if pool == "token" else x[:, patches].mean(1)
    return F.linear(pooled, model.head.weight, model.head.bias)


# --- Spatial-Mamba -----------------------------------------------------------------------------


def conv(module, x, groups=1):
    """A convolution on (B, C, H, W) with the padding that keeps the size at stride 1."""
    side = module.weight.shape[-1] // 2
    return F.conv2d(x, module.weight, module.bias, module.stride, side, groups=groups)


def depthwise(module, x):
    return conv(module, x, x.shape[1])


def conv_norm(module, x):
    """Convolution and batch norm in evaluation."""
    norm, x = module.bn, conv(module.conv, x)
    scale = norm.weight / (norm.running_var + 1e-5).sqrt()
    return (x - norm.running_mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1) + norm.bias.view(
        1, -1, 1, 1
    )


def naive_fusion(fusion, h, padding):
    """Sum over three dilations and nine neighbours of share * weight * shifted states."""
    height, width = h.shape[-2:]
    fused = torch.zeros_like(h)
    kernels = {1: fusion.kernel_1, 3: fusion.kernel_3, 5: fusion.kernel_5}
    for share, (dilation, kernel) in zip(fusion.alpha, kernels.items(), strict=True):
        mode = "constant" if padding == "zeros" else "replicate"
        wide = F.pad(h, (dilation,) * 4, mode)
        for i in range(3):
            for j in range(3):
                top, left = i * dilation, j * dilation
                window = wide[..., top : top + height, left : left + width]
                fused = fused + share * kernel[:, i, j].view(1, -1, 1, 1) * window
    return fused


def naive_spatial_mixer(mixer, x, padding):
    x, z = F.linear(x, mixer.in_proj.weight).chunk(2, -1)
    x = F.silu(depthwise(mixer.conv, x.movedim(-1, 1)))
    u = x.flatten(2).transpose(1, 2)  # raster order
    dt, B, C = F.linear(u, mixer.x_proj.weight).split([mixer.dt_rank, 1, 1], -1)
    dt = F.softplus(F.linear(dt, mixer.dt_proj.weight, mixer.dt_proj.bias))
    state, states = torch.zeros_like(u[:, 0]), []
    for t in range(u.shape[1]):
        decay = (-mixer.A_log.exp() * dt[:, t]).exp()
        state = decay * state + dt[:, t] * B[:, t] * u[:, t]
        states.append(state)
    h = torch.stack(states, -1).view_as(x)
    fused = naive_fusion(mixer.fusion, h, padding).flatten(2).transpose(1, 2)
    y = (C * fused + mixer.D * u).view(z.shape)
    return F.linear(layer_norm(mixer.out_norm, y) * F.silu(z), mixer.out_proj.weight)


def naive_spatial_mamba(model, image, padding):
    stem = model.stem
    x = conv_norm(stem.conv1, image).relu()
    x = x + conv_norm(stem.conv2[1], conv_norm(stem.conv2[0], x).relu())
    x = conv_norm(stem.conv3[1], conv_norm(stem.conv3[0], x).relu())
    for level, stage in enumerate(model.stages):
        if level:
            down = stage.downsample
            x = depthwise(down.depthwise, conv(down.expand, x).relu()).relu()
            x = conv_norm(down.reduce, x)
        for block in stage.blocks:
            x = x + depthwise(block.cpe1, x)
            y = naive_spatial_mixer(block.mixer, layer_norm(block.norm1, x.movedim(1, -1)), padding)
            x = x + y.movedim(-1, 1)
            x = x + depthwise(block.cpe2, x)
            y = layer_norm(block.norm2, x.movedim(1, -1))
            y = F.gelu(F.linear(y, block.mlp.fc1.weight, block.mlp.fc1.bias))
            y = F.linear(y, block.mlp.fc2.weight, block.mlp.fc2.bias)
            x = x + y.movedim(-1, 1)
    pooled = layer_norm(model.norm, x.movedim(1, -1)).mean((1, 2))
    return F.linear(pooled, model.head.weight, model.head.bias)


# --- comparison --------------------------------------------------------------------------------


def build(name, **options):
    """In doubles, evaluating, with every parameter and statistic moved off its start."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **options).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += 0.1 * noise
        for key, statistic in model.named_buffers():
            if "running" in key:
                statistic += 0.3 * torch.rand(
                    statistic.shape, generator=generator, dtype=torch.float64
                )
    return model


def compare(model, naive, shape):
    """Outputs, and gradients of the image and of every parameter."""
    image = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    image.requires_grad_()
    leaves = {"image": image, **dict(model.named_parameters())}
    results = []
    for forward in (model, naive):
        logits = forward(image)
        gradients = torch.autograd.grad(logits.sin().sum(), list(leaves.values()))
        results.append({"logits": logits.detach(), **dict(zip(leaves, gradients, strict=True))})
    assert results[1]["image"].any()
    for key, expected in results[1].items():
        scale = float(expected.abs().max())
        error = float((results[0][key] - expected).abs().max())
        assert error <= TOLERANCE * scale, f"{key}: {error / scale:.1e}"


@pytest.mark.parametrize(
    ("grid", "patch", "options"),
    [
        ((15, 15), 4, {"in_chans": 1}),
        ((15, 15), 2, {"global_pool": "avg"}),
        ((3, 5), 16, {"in_chans": 13}),
        ((5, 3), 8, {"directions": 1}),
        ((4, 6), 4, {}),
        ((1, 7), 4, {}),
        ((1, 1), 16, {}),
        ((5, 2), 7, {"class_token": False, "global_pool": "avg"}),
        ((3, 3), 4, {"class_token": False, "global_pool": "avg", "directions": 1}),
    ],
)
def test_roma_is_the_naive_model(grid, patch, options):
    # One pixel short of whole patches: the last row and column are padded.
    size = tuple(max(1, side * patch - 1) for side in grid)
    options = {"embed_dim": 12, "depth": 2, "in_chans": 3, "global_pool": "token", **options}
    model = build("roma_tiny_patch16", img_size=size, patch_size=patch, **options)
    assert model.grid_size == grid
    compare(
        model,
        lambda image: naive_roma(model, image, patch, options["global_pool"]),
        (2, options["in_chans"], *size),
    )


@pytest.mark.parametrize(
    ("size", "padding", "bands"),
    [((60, 60), "replicate", 3), ((33, 50), "zeros", 4), ((36, 17), "replicate", 13),
     ((7, 70), "zeros", 1), ((1, 1), "replicate", 3)],
)  # fmt: skip
def test_spatial_mamba_is_the_naive_model(size, padding, bands):
    model = build(
        "spatial_mamba_tiny", embed_dim=8, depths=(1, 2, 1, 1), in_chans=bands,
        fusion_padding=padding,
    )  # fmt: skip
    compare(model, lambda image: naive_spatial_mamba(model, image, padding), (2, bands, *size))
