"""Reading ASF/AMC motion capture and chaining its bones."""

from pathlib import Path

import numpy as np
import pytest

from kinemesh.data.synthetic.motions import (
    euler_rotation,
    forward_kinematics,
    read_amc,
    read_asf,
)
from kinemesh.errors import InputError

ASF = """\
:version 1.10
:name arm
:units
  length 0.5
  angle deg
:root
  order TX TY TZ RX RY RZ
  axis XYZ
  position 0 0 0
  orientation 0 0 0
:bonedata
  begin
    id 1
    name upper
    direction 2 0 0
    length 10
    axis 0 0 90 XYZ
    dof rz rx
    limits (-90 90)
           (0 45)
  end
  begin
    id 2
    name lower
    direction 0 1 0   # a comment
    length 20
    axis 0 0 0 XYZ
  end
:hierarchy
  begin
    root upper
    upper lower
  end
"""
AMC = """\
# made by hand
:FULLY-SPECIFIED
:DEGREES
1
root 10 0 0 0 0 0
upper 90 0
2
root 0 0 0 0 90 0
upper 0 90
"""
METRES = 0.0254 / 0.5


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    asf, amc = tmp_path / "arm.asf", tmp_path / "arm.amc"
    asf.write_text(ASF)
    amc.write_text(AMC)
    return asf, amc


def test_skeleton_is_read_in_metres_and_radians(files):
    skeleton = read_asf(files[0])
    assert skeleton.names == ("root", "upper", "lower")
    assert [bone.parent for bone in skeleton.bones] == [-1, 0, 1]
    upper = skeleton["upper"]
    assert upper.length_m == pytest.approx(10 * METRES)
    np.testing.assert_allclose(upper.direction, [1, 0, 0])
    assert upper.channels == ("rz", "rx")
    np.testing.assert_allclose(np.degrees(upper.limits), [[-90, 90], [0, 45]])
    np.testing.assert_allclose(upper.axes @ [1, 0, 0], [0, 1, 0], atol=1e-12)


def test_angle_unit_of_the_skeleton(files):
    asf = files[0]
    asf.write_text(ASF.replace("angle deg", "angle rad").replace("0 0 90 XYZ", "0 0 1.5707963 XYZ"))
    np.testing.assert_allclose(read_asf(asf)["upper"].axes @ [1, 0, 0], [0, 1, 0], atol=1e-6)


def test_forward_kinematics_of_known_angles(files):
    skeleton = read_asf(files[0])
    pose = forward_kinematics(read_amc(files[1], skeleton))
    # frame 1: the upper bone turns 90 degrees about z, its local z is the world's
    np.testing.assert_allclose(pose.heads_m[0, 1] / METRES, [10, 0, 0], atol=1e-9)
    np.testing.assert_allclose(pose.tails_m[0, 1] / METRES, [10, 10, 0], atol=1e-9)
    np.testing.assert_allclose(pose.tails_m[0, 2] / METRES, [-10, 10, 0], atol=1e-9)
    # frame 2: its local x is the world's y, x -> -z; the root turns by 90 degrees about y too
    np.testing.assert_allclose(pose.tails_m[1, 1] / METRES, [-10, 0, 0], atol=1e-9)
    np.testing.assert_allclose(pose.tails_m[1, 2] / METRES, [-10, 20, 0], atol=1e-9)


def test_order_of_channels_decides_the_order_of_turns():
    x, z = np.radians(30), np.radians(50)
    rx = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    rz = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    np.testing.assert_allclose(euler_rotation(np.array([x, z]), "xz"), rz @ rx, atol=1e-12)
    np.testing.assert_allclose(euler_rotation(np.array([z, x]), "zx"), rx @ rz, atol=1e-12)


def test_radians_in_a_motion(files):
    skeleton = read_asf(files[0])
    degrees = read_amc(files[1], skeleton).rotations
    turned = AMC.replace(":DEGREES", ":RADIANS").replace(" 90", f" {np.pi / 2}")
    files[1].write_text(turned)
    np.testing.assert_allclose(read_amc(files[1], skeleton).rotations, degrees, atol=1e-12)


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("direction 2 0 0", "direction 2 zero 0", 15, "numbers"),
        ("dof rz rx", "dof rz rw", 18, "channels"),
        ("           (0 45)\n", "", 20, "2 limits of bone 'upper'"),
        ("(-90 90)", "-90 90", 19, "(-20.0 45.0)"),
        ("0 0 90 XYZ", "0 0 90 XYY", 17, "order of axes"),
        ("upper lower", "upper hand", 32, "bone of :bonedata"),
        ("    upper lower\n", "", 32, "lower apart"),
        ("upper lower", "upper lower\n lower upper", 33, "second for 'upper'"),
        ("name lower", "name upper", 28, "new bone name"),
        ("length 0.5", "length 0", 4, "positive"),
        ("length 10", "lenght 10", 16, "property"),
    ],
)
def test_bad_skeleton_is_refused_with_its_line(files, old, new, line, said):
    assert old in ASF
    files[0].write_text(ASF.replace(old, new))
    with pytest.raises(InputError) as error:
        read_asf(files[0])
    assert f"arm.asf, line {line}:" in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("upper 90 0", "upper 90", 6, "expected 2 values for 'upper' (rz rx)"),
        ("upper 90 0", "upper 90 x", 6, "numbers"),
        ("upper 90 0", "upper nan 0", 6, "finite"),
        ("upper 90 0", "lower 90 0", 6, "degrees of freedom"),
        ("upper 90 0\n", "", 6, "none for upper"),
        ("upper 90 0", "upper 90 0\nupper 90 0", 7, "again"),
        ("1\nroot", "root", 4, "frame number"),
    ],
)
def test_bad_motion_is_refused_with_its_line(files, old, new, line, said):
    assert old in AMC
    files[1].write_text(AMC.replace(old, new, 1))
    with pytest.raises(InputError) as error:
        read_amc(files[1], read_asf(files[0]))
    assert f"arm.amc, line {line}:" in str(error.value)
    assert said in str(error.value)


def test_missing_binary_and_empty_files_are_refused(files, tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_asf(tmp_path / "none.asf")
    files[0].write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="binary"):
        read_asf(files[0])
    files[0].write_text("")
    with pytest.raises(InputError, match=":bonedata and :hierarchy"):
        read_asf(files[0])
    files[0].write_text(ASF)
    files[1].write_text(":DEGREES\n")
    with pytest.raises(InputError, match="at least one frame"):
        read_amc(files[1], read_asf(files[0]))


def test_a_captured_walk(shared):
    folder = shared / "data/cmu_mocap/asfamc/02"
    skeleton = read_asf(folder / "02.asf")
    motion = read_amc(folder / "02_01.amc", skeleton)
    assert len(motion) == 86
    assert len(skeleton.bones) == 31
    pose = forward_kinematics(motion)
    identity = pose.rotations @ pose.rotations.swapaxes(-1, -2)
    np.testing.assert_allclose(identity, np.broadcast_to(np.eye(3), identity.shape), atol=1e-9)
    head = pose.tails_m[:, skeleton.names.index("head"), 1]
    toes = pose.tails_m[:, skeleton.names.index("ltoes"), 1]
    assert 1.4 < head.min() < head.max() < 1.9  # metres above the floor, in a walk
    assert -0.1 < toes.min() < 0.1
    left = pose.tails_m[:, skeleton.names.index("lhipjoint")]
    right = pose.tails_m[:, skeleton.names.index("rhipjoint")]
    across = (left - right).mean(axis=0)
    path = motion.root_m[-1] - motion.root_m[0]
    assert np.cross([0, 1, 0], path) @ across > 0  # the left hip is on the left of the way
