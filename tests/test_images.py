import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kinemesh.errors import InputError
from kinemesh.inference.images import (
    find_images,
    image_from_array,
    image_suffixes,
    load_image,
    skipped_pictures,
)

RED, BLUE = (250, 10, 20), (10, 20, 250)


@pytest.fixture
def two_halves() -> np.ndarray:
    """Left half red, right half blue, 24 wide and 16 high."""
    pixels = np.empty((16, 24, 3), np.uint8)
    pixels[:, :12], pixels[:, 12:] = RED, BLUE
    return pixels


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def near(pixel: np.ndarray, colour: tuple[int, int, int], tolerance: int = 12) -> bool:
    return bool(np.abs(pixel.astype(int) - colour).max() <= tolerance)


def test_png_comes_back_exactly(tmp_path: Path, two_halves: np.ndarray) -> None:
    Image.fromarray(two_halves).save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    np.testing.assert_array_equal(loaded.pixels, two_halves)
    assert loaded.pixels.flags.writeable
    assert loaded.size == (24, 16)
    assert loaded.focal_px is None


def test_exif_orientation_and_focal_length(tmp_path: Path, two_halves: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: to be turned clockwise
    exif.get_ifd(0x8769)[41989] = 50
    Image.fromarray(two_halves).save(tmp_path / "a.jpg", exif=exif, quality=95)
    loaded = load_image(tmp_path / "a.jpg")
    assert loaded.size == (16, 24)
    assert near(loaded.pixels[2, 8], RED)
    assert near(loaded.pixels[-3, 8], BLUE)
    assert loaded.focal_px == pytest.approx(50 * np.hypot(24, 16) / np.hypot(36, 24))


def test_alpha_is_composited_on_white(tmp_path: Path, two_halves: np.ndarray) -> None:
    alpha = np.full((16, 24, 1), 255, np.uint8)
    alpha[:8] = 0
    Image.fromarray(np.concatenate([two_halves, alpha], 2)).save(tmp_path / "a.png")
    pixels = load_image(tmp_path / "a.png").pixels
    assert near(pixels[2, 2], (255, 255, 255), 0)
    assert near(pixels[12, 2], RED, 0)


def test_16_bit_grey(tmp_path: Path) -> None:
    values = np.array([[0, 257 * 100, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png").pixels[0, :, 1], [0, 100, 255])


def test_float_tiff(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(load_image(tmp_path / "a.tif").pixels[0, :, 0], [0, 128, 255])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr"])
def test_colour_modes_become_rgb(tmp_path: Path, two_halves: np.ndarray, mode: str) -> None:
    name = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    Image.fromarray(two_halves).convert(mode).save(name)
    pixels = load_image(name).pixels
    assert pixels.shape == (16, 24, 3)
    assert pixels.dtype == np.uint8
    if mode in ("P", "CMYK", "YCbCr"):
        assert near(pixels[8, 3], RED, 20)
        assert near(pixels[8, 20], BLUE, 20)


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "a.gif", transparency=1)
    assert near(load_image(tmp_path / "a.gif").pixels[0, 0], (255, 255, 255), 0)


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert near(load_image(tmp_path / "a.gif").pixels[3, 3], RED)


def test_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), RED).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png").pixels, [[RED]])


def test_damaged_exif_does_not_cost_the_photo(tmp_path: Path, two_halves: np.ndarray) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40
    Image.fromarray(two_halves).save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg").size == (24, 16)


class TestRefusals:
    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"no file '.*gone\.jpg'.*ls"):
            load_image(tmp_path / "gone.jpg")

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="found the folder"):
            load_image(tmp_path)

    def test_truncated_jpeg(self, tmp_path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "a.jpg")
        whole = (tmp_path / "a.jpg").read_bytes()
        for length in (len(whole) // 2, 30, 3):
            (tmp_path / "b.jpg").write_bytes(whole[:length])
            with pytest.raises(InputError, match=r"b\.jpg"):
                load_image(tmp_path / "b.jpg")
        (tmp_path / "b.jpg").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match="truncated"):
            load_image(tmp_path / "b.jpg")

    def test_truncated_png(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(png_header(50, 50)[:60])
        with pytest.raises(InputError, match="truncated or damaged"):
            load_image(tmp_path / "a.png")

    def test_text_named_jpg(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").write_text("hello")
        with pytest.raises(InputError, match=r"Expected an image.*5 bytes"):
            load_image(tmp_path / "a.jpg")

    def test_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").touch()
        with pytest.raises(InputError, match="empty file"):
            load_image(tmp_path / "a.jpg")

    @pytest.mark.parametrize("side", [12_000, 20_000])
    def test_huge_header_is_refused_before_decoding(self, tmp_path: Path, side: int) -> None:
        (tmp_path / "a.png").write_bytes(png_header(side, side))
        wanted = rf"at most 100 megapixels, found {side * side // 1_000_000} .*not decoded"
        with pytest.raises(InputError, match=wanted):
            load_image(tmp_path / "a.png")

    def test_no_pixels(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(png_header(0, 0))
        (tmp_path / "a.ppm").write_bytes(b"P6\n0 0\n255\n")
        for name in ("a.png", "a.ppm"):
            with pytest.raises(InputError, match=name):
                load_image(tmp_path / name)
        with pytest.raises(InputError, match="1x1"):
            image_from_array(np.zeros((0, 0, 3), np.uint8))

    def test_no_permission(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "a.png").write_bytes(png_header(5, 5))

        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
        with pytest.raises(InputError, match="permission denied"):
            load_image(tmp_path / "a.png")

    def test_a_reading_error_is_no_damaged_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a.png").write_bytes(png_header(5, 5))

        def fail(*_: object) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(Path, "open", fail)
        with pytest.raises(InputError, match=r"Cannot read .*Input/output error"):
            load_image(tmp_path / "a.png")

    @pytest.mark.parametrize(
        "array", [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8)]
    )
    def test_other_arrays(self, array: np.ndarray) -> None:
        with pytest.raises(InputError, match="uint8"):
            image_from_array(array)


class TestFindImages:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "inner").mkdir()
        names = ["b.jpg", "a.PNG", "notes.txt", ".hidden.jpg", "inner/c.webp", "b_overlay.png"]
        for name in names:
            (tmp_path / name).touch()
        return tmp_path

    def names(self, source: object, folder: Path) -> list[str]:
        return [str(path.relative_to(folder)) for path in find_images(source)]

    def test_folder_is_sorted_and_holds_only_photos(self, folder: Path) -> None:
        assert self.names(folder, folder) == ["a.PNG", "b.jpg"]

    def test_pattern(self, folder: Path) -> None:
        assert self.names(f"{folder}/**/*", folder) == ["a.PNG", "b.jpg", "inner/c.webp"]

    def test_each_file_once_in_the_order_given(self, folder: Path) -> None:
        assert self.names([folder / "b.jpg", folder], folder) == ["b.jpg", "a.PNG"]

    def test_a_file_may_have_any_name(self, folder: Path) -> None:
        assert self.names(folder / "notes.txt", folder) == ["notes.txt"]

    def test_name_with_brackets(self, folder: Path) -> None:
        (folder / "x[1].jpg").touch()
        assert self.names(str(folder / "x[1].jpg"), folder) == ["x[1].jpg"]

    def test_pictures_that_pillow_does_not_read(self, folder: Path) -> None:
        for name in ("x.NEF", "y.avif", "z.heic"):
            (folder / name).touch()
        unread = [
            folder / name
            for name in ("x.NEF", "y.avif", "z.heic")
            if Path(name).suffix.lower() not in image_suffixes()
        ]
        assert folder / "x.NEF" in unread
        for source in (folder, f"{folder}/*"):
            assert skipped_pictures(source) == unread
            assert not set(unread) & set(find_images(source))
        assert skipped_pictures([folder / "b.jpg"]) == []

    def test_refusals(self, folder: Path) -> None:
        (folder / "empty").mkdir()
        for source, message in [
            (folder / "empty", "has no images"),
            (f"{folder}/*.gif", "matches no image"),
            (folder / "gone.jpg", "no file"),
            ([], "No image was named"),
            ("", "name of an image is empty"),
            ("a" * 300, "Cannot look up"),
            ("a\0b", "no file"),
        ]:
            with pytest.raises(InputError, match=message):
                find_images(source)
