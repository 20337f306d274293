"""Shaded pictures: the formula pixel by pixel, shadows, samples, batches."""

import dataclasses

import numpy as np
import pytest
import torch
import trimesh

from kinemesh.errors import InputError
from kinemesh.rendering import (
    Lighting,
    SurfaceNoise,
    linear_to_srgb,
    project_points,
    rasterize,
    reference,
    shade,
    srgb_to_linear,
    vertex_normals,
)
from kinemesh.rendering.shadow import ShadowMap

SIZE = 40


def random_lighting(batch, generator):
    def rows(columns, low=0.0, high=1.0):
        return low + (high - low) * torch.rand(batch, columns, generator=generator)

    def unit():
        return torch.nn.functional.normalize(torch.randn(batch, 3, generator=generator), dim=-1)

    return Lighting(
        sky=rows(3),
        ground=rows(3),
        up=unit(),
        sun_direction=unit(),
        sun_color=rows(3, 0.5, 2),
        fill_direction=unit(),
        fill_color=rows(3),
        specular=rows(1)[:, 0],
        gloss=rows(1, 3, 50)[:, 0],
        wrap=rows(1, 0, 0.5)[:, 0],
        shadow=rows(1)[:, 0],
        bump=rows(1, 0.02, 0.1)[:, 0],
    )


def scene(batch=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mesh = trimesh.creation.icosphere(subdivisions=3)
    rest = torch.tensor(mesh.vertices).float() * torch.tensor([0.3, 0.5, 0.3])
    vertices = rest + torch.randn(batch, 1, 3, generator=generator) * 0.05
    noise = SurfaceNoise(
        frequency=torch.randn(batch, 6, 3, generator=generator) * 30,
        phase=torch.rand(batch, 6, generator=generator) * 6,
        amplitude=torch.rand(batch, 6, 3, generator=generator) * 0.1,
        relief=torch.rand(batch, 3, generator=generator),
    )
    return {
        "vertices": vertices + torch.tensor([0.0, 0.0, 2.0]),
        "faces": torch.tensor(mesh.faces),
        "focal_px": torch.full((batch,), 70.0),
        "principal_px": torch.tensor([19.0, 21.5]).expand(batch, 2),
        "height": SIZE,
        "width": SIZE,
        "albedo": torch.rand(batch, len(rest), 4, generator=generator),
        "rest": rest,
        "lighting": random_lighting(batch, generator),
        "noise": noise,
    }


def unit(v):
    return v / np.linalg.norm(v)


def shade_one_pixel(scene, image, row, column, face):
    """The formulas of the lighting and texture docstrings for one pixel, in doubles."""

    def number(x):
        return np.asarray(x[image], dtype=np.float64)

    light = {
        f.name: number(getattr(scene["lighting"], f.name)) for f in dataclasses.fields(Lighting)
    }
    noise = {
        f.name: number(getattr(scene["noise"], f.name)) for f in dataclasses.fields(SurfaceNoise)
    }
    vertices = scene["vertices"].double()
    points = project_points(vertices, scene["focal_px"].double(), scene["principal_px"].double())
    corner = scene["faces"][face].numpy()
    screen = reference.screen_weights(points[image].numpy()[corner], column + 0.5, row + 0.5)
    weight, depth = reference.to_surface(screen, points[image].numpy()[corner])

    def blend(attribute):
        return weight @ attribute.double().numpy()[corner]

    normal = unit(blend(vertex_normals(vertices, scene["faces"])[image]))
    albedo, rest = blend(scene["albedo"][image]), blend(scene["rest"])
    phase = noise["frequency"] @ rest + noise["phase"]
    factor = np.maximum(1 + np.sin(phase) @ noise["amplitude"], 0)
    bumpy = len(noise["relief"])
    direction = noise["frequency"][-bumpy:]
    direction = direction / np.linalg.norm(direction, axis=1, keepdims=True)
    tilt = (noise["relief"] * np.cos(phase[-bumpy:])) @ direction
    n = unit(normal + light["bump"] * tilt)
    view = unit(-blend(vertices[image]))

    def diffuse(towards):
        return max(n @ towards + light["wrap"], 0) / (1 + light["wrap"])

    sky = light["ground"] + (light["sky"] - light["ground"]) * (1 + n @ light["up"]) / 2
    received = sky + light["sun_color"] * diffuse(light["sun_direction"])
    received = received + light["fill_color"] * diffuse(light["fill_direction"])
    half = unit(light["sun_direction"] + view)
    shine = light["specular"] * albedo[3] * max(n @ half, 0) ** light["gloss"]
    color = albedo[:3] * factor * received + light["sun_color"] * shine
    return color, depth, normal


def test_pixels_equal_the_formula():
    arguments = scene()
    rendering = shade(**arguments, shadow_resolution=0)
    rng = np.random.default_rng(0)
    hits = (rendering.face >= 0).nonzero().numpy()
    assert len(hits) > 1000
    for image, row, column in rng.permutation(hits)[:60]:
        face = int(rendering.face[image, row, column])
        color, depth, normal = shade_one_pixel(arguments, image, row, column, face)
        found = rendering.rgba[image, row, column].numpy()
        # A highlight x^50 amplifies the float32 rounding of x fifty times.
        np.testing.assert_allclose(found[:3], color, rtol=1e-3, atol=1e-4)
        assert found[3] == 1
        assert rendering.depth[image, row, column] == pytest.approx(depth, rel=1e-5)
        np.testing.assert_allclose(rendering.normals[image, row, column], normal, atol=1e-5)


def test_empty_pixels_hold_nothing():
    rendering = shade(**scene())
    empty = rendering.face < 0
    assert empty.any()
    assert (rendering.rgba[empty] == 0).all()
    assert (rendering.normals[empty] == 0).all()
    assert rendering.depth[empty].isinf().all()


def test_a_mesh_out_of_sight_gives_an_empty_picture():
    arguments = scene()
    arguments["vertices"] = arguments["vertices"] - torch.tensor([0.0, 0.0, 9.0])
    assert (shade(**arguments, supersample=2).rgba == 0).all()


def test_an_image_does_not_depend_on_its_batch_to_the_last_bit():
    arguments = scene(5)
    together = shade(**arguments)
    for k in range(5):
        alone = dict(arguments)
        for name in ("vertices", "focal_px", "principal_px", "albedo", "lighting", "noise"):
            alone[name] = arguments[name][k : k + 1]
        single = shade(**alone)
        for field in ("rgba", "depth", "normals", "face"):
            assert torch.equal(getattr(single, field)[0], getattr(together, field)[k]), field


def test_rest_positions_may_differ_between_images():
    arguments = scene()
    shared = shade(**arguments)
    arguments["rest"] = arguments["rest"].repeat(3, 1, 1)
    assert torch.equal(shade(**arguments).rgba, shared.rgba)


def test_supersampling_averages_color_and_takes_the_nearest_surface():
    arguments = scene(2)
    coarse = shade(**arguments, supersample=2, shadow_resolution=0)
    arguments |= {
        "focal_px": arguments["focal_px"] * 2,
        "principal_px": arguments["principal_px"] * 2,
        "height": 2 * SIZE,
        "width": 2 * SIZE,
    }
    fine = shade(**arguments, shadow_resolution=0)
    blocks = fine.rgba.view(2, SIZE, 2, SIZE, 2, 4)
    torch.testing.assert_close(coarse.rgba, blocks.mean((2, 4)), rtol=1e-4, atol=1e-4)
    depth = fine.depth.view(2, SIZE, 2, SIZE, 2)
    assert torch.equal(coarse.depth, depth.amin((2, 4)))
    for row, column in ((20, 19), (12, 22), (0, 0)):
        block = (slice(0, 1), slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2))
        nearest = fine.depth[block].reshape(-1).argmin()
        assert coarse.face[0, row, column] == fine.face[block].reshape(-1)[nearest]
        expected = fine.normals[block].reshape(-1, 3)[nearest]
        assert torch.equal(coarse.normals[0, row, column], expected)


def square(half, z):
    points = torch.tensor([[-half, -half, z], [-half, half, z], [half, half, z], [half, -half, z]])
    return points, torch.tensor([[0, 1, 2], [0, 2, 3]])


def test_a_small_square_casts_its_shadow_on_a_large_one():
    wall, faces = square(1.0, 4.0)
    card, _ = square(0.2, 3.0)
    vertices = torch.cat([wall, card])[None]
    lighting = Lighting.studio()
    slant = torch.nn.functional.normalize(torch.tensor([[-0.5, 0.0, -1.0]]), dim=-1)
    lighting = dataclasses.replace(lighting, sun_direction=slant, specular=torch.zeros(1))
    arguments = {
        "vertices": vertices,
        "faces": torch.cat([faces, faces + 4]),
        "focal_px": torch.tensor([64.0]),
        "principal_px": torch.tensor([[32.0, 32.0]]),
        "height": 64,
        "width": 64,
        "albedo": torch.ones(1, 8, 4),
        "rest": vertices[0],
        "lighting": lighting,
    }
    lit = shade(**arguments, shadow_resolution=0).rgba[0]
    dark = shade(**arguments, shadow_resolution=256).rgba[0]
    # The card is 1 m before the wall and the sun is 0.5 m to the left: its shadow falls at +0.5 m.
    row, column = 32, int(32 + 64 * 0.5 / 4)
    part = float(lighting.shadow)
    diffuse = (1 / np.sqrt(1.25) + float(lighting.wrap)) / (1 + float(lighting.wrap))
    expected = lit[row, column, :3] - part * lighting.sun_color[0] * diffuse
    torch.testing.assert_close(dark[row, column, :3], expected, rtol=1e-4, atol=1e-4)
    for elsewhere in ((32, 24), (20, 40), (32, 32)):
        torch.testing.assert_close(dark[elsewhere], lit[elsewhere])


def test_a_convex_body_does_not_shadow_its_lit_side():
    arguments = scene(1)
    normals = vertex_normals(arguments["vertices"], arguments["faces"])
    sun = arguments["lighting"].sun_direction
    shadow = ShadowMap.cast(arguments["vertices"], normals, arguments["faces"], sun, 128)
    image = torch.zeros(normals.shape[1], dtype=torch.int64)
    hidden = shadow.occlusion(image, shadow.receivers[0].t())[0]
    facing = (normals[0] * sun[0]).sum(-1)
    # At a slant the outermost texel of the filter may still see the surface before the receiver.
    assert hidden[facing > 0.4].max() < 0.01
    assert hidden[facing < -0.6].min() > 1 - 1e-5
    assert hidden.min() >= 0
    assert hidden.max() <= 1 + 1e-6


def test_culling_shows_or_hides_the_inside():
    arguments = scene(1)
    arguments["faces"] = arguments["faces"].flip(1)
    outside = shade(**arguments, cull=False)
    inside = shade(**arguments, cull=True)
    assert ((inside.face >= 0) != (outside.face >= 0)).float().mean() < 0.02
    hit = (inside.face >= 0) & (outside.face >= 0)
    assert (inside.depth[hit] > outside.depth[hit]).float().mean() > 0.95


def test_the_picture_shows_what_the_rasteriser_finds():
    arguments = scene()
    points = project_points(arguments["vertices"], arguments["focal_px"], arguments["principal_px"])
    fragments = rasterize(points, arguments["faces"], SIZE, SIZE, cull=True)
    rendering = shade(**arguments)
    assert torch.equal(rendering.face, fragments.face)
    assert torch.equal(rendering.depth, fragments.depth)


def test_settings_can_be_sliced():
    lighting = random_lighting(4, torch.Generator().manual_seed(0))
    assert torch.equal(lighting[1:3].gloss, lighting.gloss[1:3])
    assert torch.equal(lighting[torch.tensor([2])].sky, lighting.sky[2:3])
    assert lighting.to("cpu").sky.device.type == "cpu"


def test_srgb_round_trip_and_known_values():
    encoded = torch.linspace(0, 1, 256)
    torch.testing.assert_close(linear_to_srgb(srgb_to_linear(encoded)), encoded)
    assert float(srgb_to_linear(torch.tensor(0.5))) == pytest.approx(0.21404, abs=1e-5)
    assert float(linear_to_srgb(torch.tensor(7.0))) == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"albedo": torch.zeros(3, 5, 4)}, "albedo"),
        ({"rest": torch.zeros(7, 3)}, "rest"),
        ({"lighting": Lighting.studio(2)}, "lighting"),
        ({"supersample": 0}, "supersample"),
    ],
)
def test_bad_input_is_refused(change, word):
    with pytest.raises(InputError, match=word):
        shade(**(scene() | change))
