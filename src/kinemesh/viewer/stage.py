"""The scene of the page: the photo as the camera's backdrop, and the people before it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kinemesh.inference.person import Person
from kinemesh.rendering.overlay import TINTS
from kinemesh.viewer.scenes import Figure, Scene
from kinemesh.viewer.skeleton_lines import SkeletonLines, joint_places, skeleton_lines
from kinemesh.viewer.viewpoints import backdrop_depth_m

if TYPE_CHECKING:
    import viser

_JPEG_QUALITY = 85
_BEFORE_BACKDROP = 0.999  # joints without a depth stand this little before the photo


@dataclass(frozen=True)
class Look:
    """What is to be seen of a scene.

    Attributes:
        backdrop: The photo.
        meshes: Surfaces.
        skeletons: Joints and bones.
        names: A label over each person.
        opacity: Of the surfaces, in 0..1.
        hidden: Names of people who are not shown.
    """

    backdrop: bool = True
    meshes: bool = True
    skeletons: bool = True
    names: bool = False
    opacity: float = 0.7
    hidden: frozenset[str] = frozenset()


class Stage:
    """Scenes as nodes of a viser server; a node is changed only where its person did.

    Args:
        server: The server; its world is the camera frame of the photo.
    """

    def __init__(self, server: "viser.ViserServer") -> None:
        self._server = server
        self._backdrop: viser.ImageHandle | None = None
        self._actors: dict[str, _Actor] = {}
        self._scene: Scene | None = None
        server.scene.set_up_direction("-y")
        server.scene.world_axes.visible = False

    def show(self, scene: Scene | None, look: Look) -> None:
        """Show a scene, or nothing; the page changes at once, not piece by piece."""
        with self._server.atomic():
            figures = () if scene is None else scene.figures
            depth_m = backdrop_depth_m(figures)
            if scene is not self._scene:
                self._replace_backdrop(scene, depth_m)
                self._replace_figures(figures, depth_m)
                self._scene = scene
            if self._backdrop is not None:
                shown = look.backdrop and scene is not None and scene.backdrop is not None
                self._backdrop.visible = shown
            for name, actor in self._actors.items():
                actor.dress(look, hidden=name in look.hidden)

    def _replace_backdrop(self, scene: Scene | None, depth_m: float) -> None:
        if scene is None or scene.backdrop is None:
            return  # hidden by `show`
        camera = scene.camera
        scale = depth_m / camera.focal_px
        width, height = (side * scale for side in camera.image_size)
        middle = (np.array(camera.image_size) / 2 - camera.principal_px) * scale
        place = (float(middle[0]), float(middle[1]), depth_m)
        if self._backdrop is None:
            self._backdrop = self._server.scene.add_image(
                "/backdrop",
                scene.backdrop,
                width,
                height,
                format="jpeg",
                jpeg_quality=_JPEG_QUALITY,
                cast_shadow=False,
                receive_shadow=False,
                position=place,
            )
            return
        self._backdrop.image = scene.backdrop
        self._backdrop.render_width, self._backdrop.render_height = width, height
        self._backdrop.position = place

    def _replace_figures(self, figures: tuple[Figure, ...], depth_m: float) -> None:
        for name in self._actors.keys() - {figure.name for figure in figures}:
            self._actors.pop(name).remove()
        for figure in figures:
            actor = self._actors.get(figure.name)
            if actor is None or not actor.can_be(figure.person):
                if actor is not None:
                    actor.remove()
                actor = self._actors[figure.name] = _Actor(self._server.scene, figure)
            actor.pose(figure, _BEFORE_BACKDROP * depth_m)


class _Actor:
    """One person as nodes: a surface, bones, joints and a label."""

    def __init__(self, scene: "viser.SceneApi", figure: Figure) -> None:
        self._scene = scene
        self._root = f"/people/{figure.name}"
        self._frame = scene.add_frame(self._root, show_axes=False)
        self._person = figure.person
        self._mesh: viser.MeshHandle | None = None
        self._bones: viser.LineSegmentsHandle | None = None
        self._joints: viser.PointCloudHandle | None = None
        self._label: viser.LabelHandle | None = None
        self._has_skeleton = False

    def can_be(self, person: Person) -> bool:
        """Whether a person differs only in where the vertices and joints are."""
        return (
            person.skeleton == self._person.skeleton
            and person.vertices.shape == self._person.vertices.shape
            and np.array_equal(person.faces, self._person.faces)
        )

    def remove(self) -> None:
        """Take the nodes away."""
        self._frame.remove()

    def dress(self, look: Look, *, hidden: bool) -> None:
        """Show what is to be seen of the person."""
        self._frame.visible = not hidden
        if self._mesh is not None:
            self._mesh.visible = look.meshes
            self._mesh.opacity = None if look.opacity >= 1 else look.opacity
        for part in (self._bones, self._joints):
            if part is not None:
                part.visible = look.skeletons and self._has_skeleton
        if self._label is not None:
            self._label.visible = look.names

    def pose(self, figure: Figure, flat_depth_m: float) -> None:
        """Put the person where the figure is."""
        person = self._person = figure.person
        if person.has_mesh and self._mesh is None:
            tint = TINTS[figure.number % len(TINTS)]
            color = (round(255 * tint[0]), round(255 * tint[1]), round(255 * tint[2]))
            self._mesh = self._scene.add_mesh_simple(
                f"{self._root}/mesh", person.vertices, person.faces, color=color, side="double"
            )
        elif self._mesh is not None:
            self._mesh.vertices = person.vertices
        self._place_skeleton(skeleton_lines(person, flat_depth_m))
        self._place_label(figure, flat_depth_m)

    def _place_skeleton(self, lines: SkeletonLines | None) -> None:
        self._has_skeleton = lines is not None
        if lines is None:
            return
        if self._bones is None or self._joints is None:
            self._bones = self._scene.add_line_segments(
                f"{self._root}/bones", lines.lines, lines.line_colors, thickness=lines.width_m
            )
            self._joints = self._scene.add_point_cloud(
                f"{self._root}/joints",
                lines.points,
                lines.point_colors,
                point_size=lines.width_m,
                point_shape="circle",
                precision="float32",
            )
            return
        self._bones.points, self._joints.points = lines.lines, lines.points
        self._bones.thickness = self._joints.point_size = lines.width_m

    def _place_label(self, figure: Figure, flat_depth_m: float) -> None:
        person = figure.person
        points: Any = person.vertices if person.has_mesh else joint_places(person, flat_depth_m)
        middle = (points.min(0) + points.max(0)) / 2
        over = (float(middle[0]), float(points[:, 1].min()), float(middle[2]))
        text = f"{figure.name}  {person.score:.2f}"
        if self._label is None:
            self._label = self._scene.add_label(
                f"{self._root}/label", text, position=over, anchor="bottom-center"
            )
            return
        self._label.text, self._label.position = text, over
