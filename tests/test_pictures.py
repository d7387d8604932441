"Pictures from files as the eye sees them, folders with faults, and pictures that are nearly the same."

import errno
import gc
import io
import itertools
import json
import re
import socket
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from helpers import GOOD, folder_of, image, pictures, png, refused, run, write_imagefolder
from PIL import ExifTags, Image, ImageCms

from trainprove_nb.data import folders
from trainprove_nb.data.distance import distance
from trainprove_nb.data.duplicates import _means, group_ranks, near_groups, told_groups
from trainprove_nb.data.pairs import as_seen, pairs, pixels
from trainprove_nb.data.pictures import LARGEST, read_picture

NOISE = pictures(1, 16)[0]
ALPHA = pictures(1, 16, seed=1)[0, ..., :1]


def file_of(picture, kind, **settings):
    "The bytes of a file."
    out = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(
        out, kind, **settings
    )
    return out.getvalue()


# What the eye sees


def on_white(colour, alpha):
    "What shows of a colour on white paper, computed by hand."
    a = alpha / 255
    return colour * a + 255 * (1 - a)


def test_what_is_transparent_lies_on_white():
    seen = np.asarray(read_picture(file_of(np.concatenate([NOISE, ALPHA], 2), "png")))
    assert np.abs(seen - on_white(NOISE.astype(float), ALPHA)).max() <= 1
    grey = np.concatenate([NOISE[..., :1], ALPHA], 2)
    seen = np.asarray(read_picture(file_of(Image.fromarray(grey, "LA"), "png")))
    assert np.abs(seen - on_white(NOISE[..., :1].astype(float), ALPHA)).max() <= 1


def test_a_palette_with_a_transparent_colour():
    palette = Image.fromarray(NOISE).quantize(8)
    hole = np.asarray(palette) == 3
    seen = np.asarray(read_picture(file_of(palette, "png", transparency=3)))
    assert hole.any() and (seen[hole] == 255).all()
    assert (seen[~hole] == np.asarray(palette.convert("RGB"))[~hole]).all()


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_greys_of_16_bits_keep_their_shades(kind):
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    seen = np.asarray(read_picture(file_of(deep, kind)))
    assert np.abs(seen - deep[..., None] / 257).max() <= 0.5


def test_numbers_of_32_bits_are_refused():
    for numbers in (np.full((4, 4), 0.5, np.float32), np.full((4, 4), 7, np.int32)):
        refused(
            lambda x=numbers: read_picture(file_of(x, "tiff"), name="x.tif"), "x.tif", "32 bits"
        )


UPRIGHT = {  # orientation -> from what is stored to what is seen, as the EXIF standard has it
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
    8: lambda x: np.rot90(x, 1),
}


@pytest.mark.parametrize("kind", ["png", "tiff"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_pictures_that_lie_are_put_upright(orientation, kind):
    note = Image.Exif()
    note[ExifTags.Base.Orientation] = orientation
    wide = NOISE[:8]
    seen = read_picture(file_of(wide, kind, exif=note))
    assert np.array_equal(np.asarray(seen), UPRIGHT[orientation](wide))
    seen = as_seen(seen)  # and are not turned twice
    assert np.array_equal(np.asarray(seen), UPRIGHT[orientation](wide))


def test_inks_without_a_profile_are_as_pil_mixes_them():
    inks = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert read_picture(file_of(inks, "tiff")).getpixel((0, 0)) == (255, 0, 0)


def test_inks_with_a_profile_are_as_it_says(monkeypatch):
    "No CMYK profile is at hand, so the conversion is listened to."
    asked = []

    def converted(image, inks, screen, outputMode):
        asked.append((image.mode, outputMode, inks.tobytes()))
        return Image.new("RGB", image.size, (1, 2, 3))

    monkeypatch.setattr(ImageCms, "profileToProfile", converted)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file = file_of(Image.new("CMYK", (8, 8)), "tiff", icc_profile=profile)
    assert read_picture(file).getpixel((0, 0)) == (1, 2, 3)
    assert asked == [("CMYK", "RGB", profile)]


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_of_frames_the_first_is_seen(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    lossless = {"lossless": True} if kind == "webp" else {}
    file = file_of(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    assert Image.open(io.BytesIO(file)).n_frames == 3
    assert read_picture(file).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "YCbCr"])
def test_plain_pictures_are_read_as_ever(mode):
    "The recipes' bytes hang on this."
    plain = Image.fromarray(NOISE).convert(mode)
    kind = "jpeg" if mode == "YCbCr" else "png"
    file = file_of(plain, kind)
    seen, ever = read_picture(file), Image.open(io.BytesIO(file)).convert("RGB")
    assert np.array_equal(seen, ever) and seen.format is None  # else it would be saved as JPEG
    opaque = file_of(np.dstack([NOISE, np.full((16, 16), 255, np.uint8)]), "png")
    assert np.array_equal(read_picture(opaque), NOISE)


def test_pixels_of_pairs_are_as_seen():
    clear = Image.fromarray(np.concatenate([NOISE, ALPHA * 0], 2))
    assert (pixels([clear]) == 255).all() and (pixels(pairs([clear], ["nothing"])) == 255).all()
    many = [Image.new("RGB", (k, 8)) for k in range(1, 40)]
    refused(lambda: pixels(many), "39 different sizes", "one size")


# Too large, or none


def test_a_large_jpeg_is_read_in_little_memory(tmp_path):
    "13,000 pixels a side: half a gigabyte if it were unfolded."
    stripes = np.repeat(np.arange(0, 250, 10, dtype=np.uint8), 520)[:, None]
    large = Image.fromarray(np.ascontiguousarray(np.broadcast_to(stripes, (13000, 13000))))
    large.convert("L").save(tmp_path / "large.jpg", quality=50)
    program = (
        "import resource, numpy as np; from trainprove_nb.data.pictures import read_picture\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"seen = np.asarray(read_picture({str(tmp_path / 'large.jpg')!r}, 25))[:, 0, 0]\n"
        "print(*seen, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1000)"
    )
    done = run("-W", "error", "-c", program)
    assert done.returncode == 0, done.stderr[-500:]
    *seen, megabytes = map(int, done.stdout.split())
    assert np.abs(np.array(seen) - np.arange(0, 250, 10)).max() <= 6 and megabytes < 100
    refused(lambda: read_picture(tmp_path / "large.jpg"), "large.jpg", "13000×13000", "replace")


def claimed(side):
    "A PNG of a few bytes that says that it has so many pixels a side."
    file = bytearray(png())
    file[16:24] = side.to_bytes(4, "big") * 2
    file[29:33] = zlib.crc32(file[12:29]).to_bytes(4, "big")
    return bytes(file)


@pytest.mark.parametrize("side", [9460, 13_000, 20_000, 2**31 - 1])
def test_bombs_are_refused(side):
    assert 9459**2 <= LARGEST < 9460**2
    refused(lambda: read_picture(claimed(side), 64, "x.png"), r"^x\.png", "cannot be decoded")


def test_a_large_progressive_jpeg_is_refused(tmp_path):
    Image.new("L", (9500, 9500)).save(tmp_path / "x.jpg", progressive=True)
    refused(lambda: read_picture(tmp_path / "x.jpg", 64), r"x\.jpg", "9500×9500")


@pytest.mark.parametrize(
    "content", [b"", b"text", png()[:-40], png()[:30], b"\xff\xd8\xff\xe0", b"GIF89a"]
)
def test_what_is_no_picture(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    refused(lambda: read_picture(tmp_path / "x.png"), r"x\.png", "cannot be decoded", "replace")
    refused(lambda: read_picture(content, name="the third"), "^the third cannot be decoded")
    refused(lambda: read_picture(tmp_path / "no.png"), r"no\.png", "FileNotFound")


# Lists of captions


def listed(folder, text, encoding="utf-8"):
    "A folder with a picture a.png and this list."
    (folder / "a.png").write_bytes(png())
    (folder / "metadata.jsonl").write_bytes(text.encode(encoding))
    return folder


def line(text, name="a.png"):
    return json.dumps({"file_name": name, "text": text}, ensure_ascii=False) + "\n"


def test_marks_and_separators_in_captions(tmp_path):
    "A byte-order mark is dropped; a separator within a caption ends no line; empty lines say nothing."
    texts = ["one\u2028line", "two\x85lines", "three\x0blines", "\ufeffmarked"]
    text = "\ufeff" + "\r\n\n".join(map(line, texts))
    read = folders.read_pairs(listed(tmp_path, text))["text"][:]
    assert read == ["one\u2028line", "two\x85lines", "three\x0blines", "marked"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-be"])
def test_lists_in_another_alphabet(tmp_path, encoding):
    folder = listed(tmp_path, line("ein Bär"), encoding)
    refused(
        lambda: folders.read_pairs(folder), re.escape(str(folder / "metadata.jsonl")), "save|JSON"
    )


@pytest.mark.parametrize("text", [7, 1.5, True, ["a", "b"], {"en": "a"}, "\ud800"])
def test_captions_that_are_no_text(tmp_path, text):
    "In a list and in parquet alike; several captions are refused, not chosen from."
    listed(tmp_path, json.dumps({"file_name": "a.png", "text": text}))
    says = ("caption", r"a\.png", re.escape(str(tmp_path)))
    refused(lambda: folders.read_pairs(tmp_path), *says)
    refused(lambda: folders.read_metadata(tmp_path), *says)
    if text == ["a", "b"]:
        table = {"image": [{"path": "a.png", "bytes": png()}], "text": [text]}
        Dataset.from_dict(table).to_parquet(tmp_path / "x.parquet")
        refused(lambda: folders.read_pairs(tmp_path), "a list of 2", "needs a text")


@pytest.mark.parametrize("name", [5, None, ["a.png"], ""])
def test_names_of_files_that_are_none(tmp_path, name):
    folder = listed(tmp_path, json.dumps({"file_name": name, "text": "a"}))
    refused(lambda: folders.read_pairs(folder), "metadata.jsonl")


# What leads out of a folder


@pytest.fixture
def outside(tmp_path):
    "A folder to read, and beside it a picture that is not for it."
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "mine" / "way").symlink_to(tmp_path)
    return tmp_path / "mine"


WAYS_OUT = ["../secret.png", "link.png", "way/secret.png", "{}/secret.png", "x/../../secret.png"]


@pytest.mark.parametrize("way", WAYS_OUT)
def test_files_outside_a_folder_are_not_read(outside, way):
    way = way.format(outside.parent)
    listed(outside, line("a", way))
    refused(lambda: folders.read_pairs(outside), "leads out of", re.escape(str(outside)), "copy")
    (outside / "metadata.jsonl").unlink()
    for column in ([{"bytes": None, "path": way}], [way]):
        pq.write_table(pa.table({"image": column, "text": ["a"]}), outside / "x.parquet")
        refused(lambda: folders.read_pairs(outside), "leads out of", "copy")


def test_links_within_a_folder_are_followed(tmp_path):
    listed(tmp_path, line("a", "b.png"))
    (tmp_path / "b.png").symlink_to("a.png")
    assert len(folders.read_pairs(tmp_path)) == 1
    through = tmp_path.parent / f"{tmp_path.name}-link"
    through.symlink_to(tmp_path)
    assert len(folders.read_pairs(through)) == 1


def test_paths_and_bytes_in_parquet(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    for column in ([{"bytes": None, "path": "a.png"}], ["a.png"], [png()]):
        pq.write_table(pa.table({"image": column, "text": ["a"]}), tmp_path / "x.parquet")
        assert (pixels(folders.read_pairs(tmp_path)) == np.asarray(image())).all()
    nothing = pa.array([None], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    pq.write_table(pa.table({"image": nothing, "text": ["a"]}), tmp_path / "x.parquet")
    refused(lambda: folders.read_pairs(tmp_path), "pair 0", "no picture")


# Splits


def test_files_of_two_splits_are_not_merged(tmp_path):
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        pairs([image()], [name]).to_parquet(tmp_path / f"{name}.parquet")
    refused(lambda: folders.read_pairs(tmp_path), "test, train", "one of them")
    (tmp_path / "test-00000-of-00001.parquet").rename(tmp_path / "train-00001-of-00001.parquet")
    assert len(folders.read_pairs(tmp_path)) == 2
    for name in ("contest", "latest", "evaluate", "trained"):  # no names of splits
        pairs([image()], [name]).to_parquet(tmp_path / f"{name}.parquet")
    assert len(folders.read_pairs(tmp_path)) == 6


def test_a_list_of_two_splits_is_not_taken_as_one(tmp_path):
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png())
    listed(tmp_path, line("a", "train/a.png") + line("b", "test/a.png"))
    refused(lambda: folders.read_pairs(tmp_path), "test, train")
    listed(tmp_path, line("a", "train/a.png"))
    assert len(folders.read_pairs(tmp_path)) == 1


# Saved datasets


@pytest.fixture
def saved(tmp_path):
    "A saved dataset of 2,500 pairs, in several batches; its folder and its file."
    pairs(pictures(2500, 2), [f"{k}" for k in range(2500)]).save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    return tmp_path / "saved", file


def batch_ends(data):
    "Where batches of an arrow file end."
    reader, ends = pa.ipc.open_stream(pa.py_buffer(data)), []
    source = pa.BufferReader(data)
    reader = pa.ipc.MessageReader.open_stream(source)
    for _ in reader:
        ends.append(source.tell())
    return ends


def test_a_saved_dataset_that_was_cut(saved):
    "Also where a batch ends, so that arrow itself sees nothing wrong."
    folder, file = saved
    data = file.read_bytes()
    assert len(folders.read_pairs(folder)) == 2500 and len(batch_ends(data)) >= 3
    for end in (*batch_ends(data)[:-1], len(data) - 8, len(data) // 2, len(data) - 3, 100, 0):
        file.write_bytes(data[:end])
        refused(lambda: folders.read_pairs(folder), re.escape(str(folder)), "copy it again")
    file.unlink()
    refused(lambda: folders.read_pairs(folder), re.escape(str(folder)), "copy it again")


def test_saved_datasets_of_nothing(tmp_path):
    none = pairs([image()], ["a"]).select([])
    for name, ds in (("empty", none), ("no splits", DatasetDict()), ("split", DatasetDict(a=none))):
        ds.save_to_disk(tmp_path / name)
        refused(lambda f=tmp_path / name: folders.read_pairs(f), name, "holds no pairs")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "dataset_info.json").write_text("{}")
    refused(lambda: folders.read_pairs(tmp_path / "bare"), "bare", "no pairs")


def test_of_saved_splits_train_is_meant(tmp_path):
    both = DatasetDict(test=pairs([image()], ["test"]), train=pairs([image()], ["train"]))
    both.save_to_disk(tmp_path / "both")
    assert folders.read_pairs(tmp_path / "both")["text"][:] == ["train"]
    assert folders.read_pairs(tmp_path / "both" / "test")["text"][:] == ["test"]


def test_a_mistyped_folder_is_not_looked_for_on_the_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("it asked the network"))
    refused(lambda: folders.read_pairs("lambdalabs/pokemn"), "no folder", error=FileNotFoundError)


# In memory, or not


def test_plain_pictures_keep_their_pixels_and_are_written_alike_each_time(tmp_path):
    "What is stored of them is named by its recipe, and must not depend on when it was made."
    images, texts = pictures(70, 16), [f"picture {k}" for k in range(70)]
    write_imagefolder(tmp_path, images, texts)
    for name in ("now", "again"):
        folders.read_pairs(tmp_path).to_parquet(tmp_path.with_name(name))
    assert tmp_path.with_name("now").read_bytes() == tmp_path.with_name("again").read_bytes()
    read = folders.read_pairs(tmp_path)
    assert (pixels(read) == images).all() and read["text"][:] == texts


def test_what_is_large_stays_in_a_file_as_long_as_it_is_needed(tmp_path, monkeypatch):
    images = pictures(70, 16)
    write_imagefolder(tmp_path, images, [f"{k}" for k in range(70)])
    monkeypatch.setattr(folders, "SMALL", 0)
    whole = folders.read_pairs(tmp_path)
    file = Path(whole.cache_files[0]["filename"])
    some, row = whole.select([69, 3, 5]), whole.select(range(60, 65))
    assert file.is_file()
    del whole
    gc.collect()
    assert not file.parent.exists()
    assert (pixels(some) == images[[69, 3, 5]]).all() and (pixels(row) == images[60:65]).all()


def test_pictures_are_read_one_by_one(tmp_path, monkeypatch):
    "When the last is decoded, few are in memory that were decoded before."
    write_imagefolder(tmp_path, pictures(300, 8), ["text"] * 300)
    alive, most = set(), []

    class Counted(Image.Image):
        pass

    def read(file, size, name):
        picture = Counted()
        picture.__dict__.update(read_picture(file, size, name).__dict__)
        alive.add(id(picture))
        monkeypatch.setattr(Counted, "__del__", lambda self: alive.discard(id(self)), raising=False)
        most.append(len(alive))
        return picture

    monkeypatch.setattr(folders, "read_picture", read)
    assert len(folders.read_pairs(tmp_path)) == 300
    assert max(most) < 100


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, [GOOD], {"a.png": png()})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders.ArrowWriter, "write", full)
    refused(lambda: folders.read_pairs(folder), "TMPDIR", error=OSError)


# Nearly the same


@pytest.mark.parametrize("shape", [(8, 8), (16, 24), (17, 9), (5, 3), (1, 1), (64, 50)])
def test_means_are_never_further_apart_than_pictures(shape):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (2, 20, *shape, 3), dtype=np.uint8)
    y[:5] = x[:5] // 2  # all blocks differ in one direction: the bound is nearly met
    few = np.array([[_means(p) for p in part] for part in (x, y)])
    below, exact = np.linalg.norm(few[0] - few[1], axis=1), distance("rms")(x, y)
    assert (below <= exact + 1e-6).all() and (below > 0).all()
    even = np.full((1, *shape, 3), 100, np.uint8)
    apart = np.linalg.norm(_means(even[0]) - _means(even[0] + 51))
    assert np.isclose(apart, 0.2, atol=1e-6)


def twins(seed=0):
    "Sixty pictures, some of them with neighbours that are nearly the same, in any order."
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (20, 16, 16, 3))
    changed = [base]
    for size in (3, 8, 30):
        changed.append(base + rng.integers(-size, size + 1, base.shape))
    images = np.concatenate(changed).clip(0, 255).astype(np.uint8)[:60]
    return images[rng.permutation(60)]


@pytest.mark.parametrize("metric, near", [("rms", None), ("rms", 0.01), ("tile_max", None)])
def test_groups_are_those_of_all_pairs(metric, near):
    "Against every pair compared, and grown together by hand."
    images, d = twins(), distance(metric)
    most = near or {"rms": 0.03, "tile_max": 0.06}[metric]
    expected = list(range(60))
    for i, j in itertools.combinations(range(60), 2):
        if d(images[i : i + 1], images[j : j + 1])[0] <= most:
            old, new = sorted((expected[i], expected[j]), reverse=True)
            expected = [new if g == old else g for g in expected]
    assert 20 <= len(set(expected)) < 60
    assert near_groups(images, metric, near).tolist() == expected
    assert near_groups(pairs(images, ["text"] * 60), metric, near).tolist() == expected


def test_chains_are_one_group():
    "Each is near the next, the first not near the last; and far more than one batch of candidates."
    chain = np.arange(0, 200, 4, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 8, 8, 3), np.uint8
    )
    assert (near_groups(chain, near=0.02) == 0).all()
    many = np.repeat(pictures(2, 8), 150, axis=0)
    assert near_groups(many).tolist() == [0] * 150 + [150] * 150
    assert told_groups(near_groups(many)).startswith("300 of 300 pictures")
    assert "None of 2" in told_groups(near_groups(pictures(2)))


def test_no_cut_goes_through_a_group():
    images = twins()
    group, order = near_groups(images), np.random.default_rng(1).permutation(60)
    rank = group_ranks(order, group)
    for cut in range(61):
        left = {group[i] for i, r in zip(order, rank, strict=True) if r < cut}
        right = {group[i] for i, r in zip(order, rank, strict=True) if r >= cut}
        assert not left & right
    assert group_ranks(order, np.arange(60)).tolist() == list(range(60))  # nothing changes


def test_what_cannot_be_compared():
    refused(lambda: near_groups(pictures(3), near=0), "near = 0", "above 0")
    refused(lambda: near_groups(pictures(3), near=float("nan")), "near = nan")
    refused(lambda: near_groups(pictures(3), "l3"), "'l3'", "rms")


def test_twins_of_two_sizes():
    "A picture and its larger copy, among others of both sizes; wide ones too."
    drawn = Image.fromarray(np.kron(pictures(1, 4)[0], np.ones((4, 8, 1), np.uint8)))  # 32 wide
    larger = drawn.resize((96, 48), Image.NEAREST)
    mixed = pairs([image(8), drawn, larger, image(9), larger], ["text"] * 5)
    assert near_groups(mixed).tolist() == [0, 1, 1, 3, 1]
