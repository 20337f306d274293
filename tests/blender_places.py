"""Run by Blender's Python: import a file and say where its bones and vertices are.

Arguments: the file, the .npz to write, frames a second, and the frames.
"""

import sys
from pathlib import Path

import bpy
import numpy as np


def main(source: Path, target: Path, rate: int, frames: list[int]) -> None:
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.context.scene.render.fps = rate
    if source.suffix == ".bvh":
        bpy.ops.import_anim.bvh(filepath=str(source), frame_start=0)
    else:
        bpy.ops.import_scene.gltf(filepath=str(source))
    found = {}
    for frame in frames:
        bpy.context.scene.frame_set(frame)
        graph = bpy.context.evaluated_depsgraph_get()
        for thing in bpy.data.objects:
            world = np.array(thing.matrix_world)
            if thing.type == "ARMATURE":
                heads = [np.array(world @ np.append(b.head, 1))[:3] for b in thing.pose.bones]
                found[f"bones {thing.name} {frame}"] = np.array(heads)
                found[f"names {thing.name}"] = np.array([bone.name for bone in thing.pose.bones])
            elif thing.type == "MESH" and thing.find_armature() is not None:
                mesh = thing.evaluated_get(graph).to_mesh()
                places = np.array([tuple(vertex.co) for vertex in mesh.vertices])
                found[f"vertices {thing.name} {frame}"] = places @ world[:3, :3].T + world[:3, 3]
    np.savez(target, **found)


main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), [int(word) for word in sys.argv[4:]])
