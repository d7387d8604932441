"Pictures and their captions: the corpora, folders on disk, mixtures and distances."

import io
import itertools
import random
import re
import sys
import types
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import scipy.stats
import torch
from datasets import Dataset, DatasetDict
from helpers import (
    ANIMALS,
    GOOD,
    folder_of,
    image,
    numbered,
    pictures,
    png,
    refused,
    write_imagefolder,
)
from PIL import Image

from trainprove_nb.data import avatars, corpora, folders, scenes
from trainprove_nb.data import pairs as pair_sets
from trainprove_nb.data.corpora import corpus, named
from trainprove_nb.data.distance import distance
from trainprove_nb.data.mix import check_rho, mix

# Corpora


def test_splits_share_no_place():
    places = [k for split in corpora.SPLITS.values() for k in split]
    assert len(places) == len(set(places))


# A scene's wording is said, not drawn; hair colour does not show on somebody with neither hair nor beard
DRAWN = {
    "avatars": lambda s: s[:1] + s[2:] if s[0] == "no" and s[3] == "no beard" else s,
    "emoji": lambda s: s[:4] + s[5:],
}


@pytest.mark.parametrize("name", corpora.CORPORA)
def test_no_picture_is_in_two_splits(name):
    specs, home = corpora._specs(name, max(r.stop for r in corpora.SPLITS.values())), {}
    for split, places in corpora.SPLITS.items():
        for k in places:
            home.setdefault(DRAWN[name](specs[k]), set()).add(split)
    shared = [sorted(splits) for splits in home.values() if len(splits) > 1]
    assert shared == [], f"{len(shared)} drawings are in several splits"


@pytest.mark.parametrize("name", corpora.CORPORA)
def test_drawn_splits_share_no_bytes(name):
    drawn = [
        i.tobytes() for split in corpora.SPLITS for i in corpora.corpus(name, split, 12)["image"]
    ]
    assert len(drawn) == len(set(drawn)) == 12 * len(corpora.SPLITS)


def test_a_longer_sample_begins_with_the_shorter():
    short, long = corpora.corpus("emoji", "source", 3), corpora.corpus("emoji", "source", 6)
    assert (
        short["text"] == long["text"][:3]
        and (pair_sets.pixels(short) == pair_sets.pixels(long)[:3]).all()
    )


def test_avatar_captions_name_the_five_attributes():
    meanings = {}
    for five in itertools.product(
        avatars.HAIR, avatars.HAIR_COLOUR, avatars.GLASSES, avatars.BEARD, avatars.MOUTH
    ):
        caption = avatars.avatar_caption(five + ("uncaptioned",) * 5)
        hair, colour, *rest = five
        assert "no hair" in caption if hair == "no" else f"{colour} " in caption and hair in caption
        assert all(word in caption for word in rest) and "uncaptioned" not in caption
        meanings.setdefault(caption, set()).add(five[2:] if hair == "no" else five)
    assert all(len(m) == 1 for m in meanings.values())  # a caption means one thing only


def test_scene_captions_name_subject_size_and_outer_colour():
    rng = random.Random(0)
    for spec in (scenes.scene_spec(rng) for _ in range(500)):
        subject, style, size, outer, wording, *_ = spec
        caption = scenes.scene_caption(spec)
        assert caption.endswith(f"a {size} {subject} on {outer}") and (style in caption) == (
            "style" in wording
        )


@pytest.mark.parametrize("n", [1001, 0, -1])
def test_corpus_of_more_pairs_than_there_are(n):
    refused(
        lambda: corpora.corpus("avatars", "evaluation", n),
        f"^{n} pairs",
        "avatars/evaluation",
        "ask for 1 to 1000",
    )


NAMES = {
    "corpus": (lambda: corpora.corpus("cats"), "'cats'", "avatars, emoji", "choose"),
    "split": (
        lambda: corpora.corpus("emoji", "tests"),
        "'tests'",
        "pretrain, source, real",
        "choose",
    ),
    "distance": (lambda: distance("l3"), "'l3'", "rms, tile_max", "choose"),
}


@pytest.mark.parametrize("name", NAMES)
def test_unknown_name(name):
    refused(*NAMES[name])


def test_pictures_of_classes_are_those_that_their_captions_name(labelled):
    ds = corpus("emoji", "labelled", 8, classes=ANIMALS)
    assert all(ANIMALS[y] in text for text, y in zip(ds["text"], labelled[1], strict=True))
    assert named(
        ["a small cat face on cream", "a scat facet", "A Frog and a cat face", "Cat Face"], ANIMALS
    ).tolist() == [0, -1, 0, 0]
    refused(
        lambda: corpus("emoji", "evaluation", 500, classes=ANIMALS), "'cat face'", "ask for fewer"
    )


# Pairs and pixels


def test_pictures_that_do_not_match():
    refused(
        lambda: distance("rms")(np.zeros((2, 8, 8, 3)), np.zeros((2, 9, 9, 3))),
        r"\(2, 8, 8, 3\)",
        r"\(2, 9, 9, 3\)",
        "bring",
    )
    refused(
        lambda: distance("tile_max")(np.zeros((2, 9, 8, 3)), np.zeros((2, 9, 8, 3))),
        "4 tiles",
        "9×8",
        "choose",
    )
    refused(lambda: pair_sets.pixels([image(8), image(9)]), r"8, 8", r"9, 9", "read")
    refused(lambda: pair_sets.pairs([image()], ["a", "b"]), "1 images but 2 captions", "give")


# Pairs on disk

WRITERS = {
    "imagefolder": write_imagefolder,
    "saved dataset": lambda folder, images, texts: pair_sets.pairs(
        list(images), texts
    ).save_to_disk(folder / "saved"),
    "saved splits": lambda folder, images, texts: DatasetDict(
        train=pair_sets.pairs(list(images), texts)
    ).save_to_disk(folder / "saved"),
    "parquet": lambda folder, images, texts: pair_sets.pairs(list(images), texts).to_parquet(
        folder / "part.parquet"
    ),
}


@pytest.mark.parametrize("form", WRITERS)
def test_every_form_on_disk_gives_the_same_pixels(tmp_path, form):
    images, texts = pictures(5), [f"picture {k}" for k in range(5)]
    WRITERS[form](tmp_path, images, texts)
    back = folders.read_pairs(tmp_path / "saved" if (tmp_path / "saved").exists() else tmp_path)
    assert back["text"][:] == texts and (pair_sets.pixels(back) == images).all()


@pytest.mark.parametrize("form", WRITERS)
def test_a_folder_is_found_from_where_one_stands(tmp_path, form, monkeypatch):
    "A name such as `pairs`, not from the root: what is told of a file starts at the folder, or is whole."
    (tmp_path / "pairs").mkdir()
    WRITERS[form](tmp_path / "pairs", pictures(2), ["a", "b"])
    monkeypatch.chdir(tmp_path)
    place = "pairs/saved" if form.startswith("saved") else "pairs"
    for read in (folders.read_pairs, folders.read_files):
        assert (pair_sets.pixels(read(place)) == pictures(2)).all()


@pytest.mark.parametrize("form", ["imagefolder", "parquet", "saved dataset"])
def test_files_stay_as_they_are(tmp_path, form):
    "A JPEG that is read and written again would hide how it was made."
    jpeg = io.BytesIO()
    image().save(jpeg, "jpeg", quality=40)
    there = Dataset.from_list(
        [{"image": {"bytes": jpeg.getvalue()}, "text": "a"}], features=pair_sets.PAIRS
    )
    if form == "imagefolder":
        folder_of(tmp_path, [GOOD], {"a.png": jpeg.getvalue()})
    elif form == "parquet":
        there.to_parquet(tmp_path / "part.parquet")
    else:
        there.save_to_disk(tmp_path)
    read = pair_sets.LazyPixels(folders.read_files(tmp_path))
    assert read.file(0) == jpeg.getvalue() and (read[0] == pair_sets.pixels(there)[0]).all()


def test_pictures_that_are_decoded_later_are_the_same():
    images = pictures(7)
    lazy = pair_sets.LazyPixels(pair_sets.pairs(list(images), ["a"] * 7))
    assert (len(lazy), lazy.shape, lazy.dtype) == (7, images.shape, images.dtype)
    chosen = [3, slice(2, 5), slice(None), [5, 0, 5], images[:, 0, 0, 0] > 99, np.int64(6), -1]
    for which in chosen:
        assert lazy[which].shape == images[which].shape and (lazy[which] == images[which]).all()
    with pytest.raises(IndexError):
        lazy[7]


def test_pictures_laid_aside_come_back_the_same(tmp_path):
    images, aside = pictures(7), pair_sets.PicturesOnDisk(tmp_path)
    assert len(aside) == 0 and aside[:].shape == (0, 0, 0, 3)
    aside.add(images[:3])
    assert (aside[2] == images[2]).all()  # what is read in between moves no end
    aside.add(images[::2][1:])  # rows that do not lie side by side
    images = np.concatenate([images[:3], images[::2][1:]])
    assert (len(aside), aside.shape, aside.dtype) == (6, images.shape, images.dtype)
    chosen = [3, slice(2, 5), slice(None), [5, 0, 5], images[:, 0, 0, 0] > 99, np.int64(5), -1]
    for which in chosen:
        assert aside[which].shape == images[which].shape and (aside[which] == images[which]).all()
    with pytest.raises(IndexError):
        aside[6]
    refused(lambda: aside.add(pictures(1, 9)), "2 different sizes", "one size")
    assert len(aside) == 6 and (aside[:] == images).all() and not list(tmp_path.iterdir())


def test_pictures_of_two_sizes_are_told_before_one_is_decoded(tmp_path):
    "Turned by their own note, too: 8×4 that lies on its side is seen as 4×8."
    upright, lying = Image.new("RGB", (8, 4)), Image.new("RGB", (4, 8))
    note = lying.getexif()
    note[0x0112] = 6  # orientation
    lying.save(tmp_path / "lying.jpg", exif=note)
    upright.save(tmp_path / "upright.jpg")
    rows = [
        {"image": {"path": str(tmp_path / f"{n}.jpg")}, "text": n} for n in ("upright", "lying")
    ]
    seen = Dataset.from_list(rows, features=pair_sets.PAIRS)
    assert pair_sets.LazyPixels(seen).shape == (2, 4, 8, 3)
    others = pair_sets.pairs([image(8), image(9)], ["a", "b"])
    refused(lambda: pair_sets.LazyPixels(others), "2 different sizes", "one size")


def test_crop_is_square_and_central(tmp_path):
    wide = pictures(1, 6)[:, :4]  # 4 high, 6 wide
    write_imagefolder(tmp_path, wide, ["wide"])
    assert (pair_sets.pixels(folders.read_pairs(tmp_path, size=4)) == wide[:, :, 1:5]).all()


@pytest.mark.parametrize(
    "content",
    [b"", b"not a picture", png()[:-40], png()[:30]],
    ids=["empty", "text", "cut", "cut early"],
)
def test_image_that_cannot_be_decoded(tmp_path, content):
    folder = folder_of(
        tmp_path, [GOOD, {"file_name": "b.png", "text": "b"}], {"a.png": png(), "b.png": content}
    )
    refused(
        lambda: folders.read_pairs(folder), r"^b\.png", re.escape(str(folder)), "replace or remove"
    )


@pytest.mark.parametrize("text", ["", "  ", None])
def test_caption_missing(tmp_path, text):
    folder = folder_of(
        tmp_path, [GOOD, {"file_name": "b.png", "text": text}], {"a.png": png(), "b.png": png()}
    )
    refused(
        lambda: folders.read_pairs(folder),
        r"^b\.png",
        re.escape(str(folder)),
        "caption",
        "needs a text",
    )


def test_captions_that_are_no_texts(tmp_path):
    Dataset.from_dict({"image": [{"path": "a.png", "bytes": png()}], "text": [7]}).to_parquet(
        tmp_path / "part.parquet"
    )
    refused(
        lambda: folders.read_pairs(tmp_path), r"a\.png", re.escape(str(tmp_path)), "is 7", "text"
    )


def test_imagefolder_that_names_a_missing_file(tmp_path):
    folder = folder_of(tmp_path, [GOOD, {"file_name": "b.png", "text": "b"}], {"a.png": png()})
    refused(
        lambda: folders.read_pairs(folder),
        re.escape(str(folder / "metadata.jsonl")),
        r"b\.png",
        "1 missing",
        "add|remove|copy",
    )


def test_imagefolder_line_without_a_file(tmp_path):
    folder = folder_of(tmp_path, [GOOD, {"text": "b"}], {"a.png": png()})
    refused(
        lambda: folders.read_pairs(folder), re.escape(str(folder / "metadata.jsonl")), "file_name"
    )


@pytest.mark.parametrize(
    "lines", ["", '{"file_name": "a.png", "te', "not json\n"], ids=["empty", "cut", "not JSON"]
)
def test_metadata_that_cannot_be_read(tmp_path, lines):
    (tmp_path / "metadata.jsonl").write_text(lines)
    refused(
        lambda: folders.read_pairs(tmp_path),
        re.escape(str(tmp_path / "metadata.jsonl")),
        "file_name and text",
    )


def test_folder_that_holds_no_pairs(tmp_path):
    refused(
        lambda: folders.read_pairs(tmp_path / "none"),
        str(tmp_path / "none"),
        "give",
        error=FileNotFoundError,
    )
    refused(lambda: folders.read_pairs(tmp_path), str(tmp_path), "expected metadata.jsonl")


def test_columns_missing(tmp_path):
    Dataset.from_dict({"picture": ["a"], "text": ["b"]}).to_parquet(tmp_path / "part.parquet")
    refused(
        lambda: folders.read_pairs(tmp_path),
        str(tmp_path),
        "lacks the column.* image",
        "picture",
        "rename",
    )


def test_parquet_that_was_cut(tmp_path):
    pair_sets.pairs([image()], ["a"]).to_parquet(tmp_path / "part.parquet")
    (tmp_path / "part.parquet").write_bytes((tmp_path / "part.parquet").read_bytes()[:-20])
    refused(
        lambda: folders.read_pairs(tmp_path),
        re.escape(str(tmp_path)),
        "could not be read",
        "copy|replace|give",
    )


# Mixtures


@pytest.mark.parametrize("n", [1, 7, 10, 30, 500])
@pytest.mark.parametrize("rho", [0, 0.05, 0.1, 0.15, 0.29, 0.3, 1 / 3, 0.5, 0.57, 0.7, 0.95, 1])
def test_rho_is_exact_to_the_sample(rho, n):
    mixed = mix(numbered("real", 600), numbered("generated", 600), rho, n)["text"][:]
    generated = sum(t.startswith("generated") for t in mixed)
    assert len(mixed) == n and abs(generated - Fraction(str(rho)) * n) <= Fraction(1, 2)


def test_mix_draws_without_replacement():
    mixed = mix(numbered("real", 20), numbered("generated", 20), 0.5, 40)["text"][:]
    assert sorted(mixed) == sorted(
        [f"{word} {k}" for word in ("real", "generated") for k in range(20)]
    )


def test_mix_is_shuffled_and_repeats_with_its_seed():
    def draw(seed):
        mixed = mix(numbered("real", 90), numbered("generated", 90), 0.5, 60, seed)
        return mixed["text"][:]

    assert draw(1) == draw(1) and set(draw(1)) != set(draw(2))
    assert len({t.split()[0] for t in draw(1)[:20]}) == 2


@pytest.mark.parametrize("rho", [1.5, -0.1, float("nan"), float("inf"), "0.3", None, True])
def test_rho_outside_0_to_1(rho):
    refused(lambda: check_rho(rho), re.escape(f"rho = {rho!r}"), "give .* 0 .* 1")
    refused(
        lambda: mix(numbered("text", 9), numbered("text", 9), rho, 4), re.escape(f"rho = {rho!r}")
    )


def test_mix_of_more_pairs_than_there_are():
    refused(
        lambda: mix(numbered("text", 90), numbered("text", 10), 0.5, 60),
        "rho = 0.5",
        "60 pairs",
        "30 generated",
        "10 are there",
        "(?i)give|ask for|lower|choose",
    )
    refused(
        lambda: mix(numbered("text", 10), numbered("text", 90), 0.5, 60), "30 real", "10 are there"
    )


@pytest.mark.parametrize("n", [0, -5])
def test_mix_of_no_pairs(n):
    refused(lambda: mix(numbered("text", 9), numbered("text", 9), 0.5, n), f"n = {n}", "at least 1")


# Distances


def test_rms_is_the_root_of_the_mean_square():
    x, y = pictures(6), pictures(6, seed=1)
    by_hand = [
        float(
            np.sqrt(
                sum((int(a) - int(b)) ** 2 for a, b in zip(p.ravel(), q.ravel(), strict=True))
                / p.size
            )
            / 255
        )
        for p, q in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(distance("rms")(x, y), by_hand, rtol=1e-5)


@pytest.mark.parametrize("shift, expected", [(0, 0), (51, 0.2), (255, 1)])
@pytest.mark.parametrize("name", ["rms", "tile_max"])
def test_distance_of_an_even_shift_is_the_shift(name, shift, expected):
    x = np.zeros((2, 8, 8, 3), np.uint8)
    np.testing.assert_allclose(distance(name)(x, x + np.uint8(shift)), expected, atol=1e-6)


@pytest.mark.parametrize("tiles", [1, 2, 4, 8])
def test_tile_max_is_the_worst_tile(tiles):
    x, y = pictures(5, 16), pictures(5, 16, seed=1)
    side, expected = 16 // tiles, []
    for p, q in zip(x / 255, y / 255, strict=True):
        corners = itertools.product(range(0, 16, side), repeat=2)
        expected.append(
            max(np.sqrt(((p - q)[i : i + side, j : j + side] ** 2).mean()) for i, j in corners)
        )
    np.testing.assert_allclose(distance("tile_max")(x, y, tiles=tiles), expected, rtol=1e-5)


def test_tile_max_agrees_with_scipy():
    x, y = pictures(1, 16), pictures(1, 16, seed=1)
    # the middle of each 4×4 tile
    means = scipy.ndimage.uniform_filter(((x / 255.0 - y / 255.0) ** 2).mean(-1)[0], 4)[2::4, 2::4]
    np.testing.assert_allclose(distance("tile_max")(x, y), np.sqrt(means.max()), rtol=1e-5)


def test_tile_max_is_never_below_rms():
    x, y = pictures(50), pictures(50, seed=1)
    y[:25, :4] = x[:25, :4]
    assert (distance("tile_max")(x, y) >= distance("rms")(x, y) - 1e-6).all()


@pytest.mark.parametrize("name", ["rms", "tile_max"])
def test_distances_are_symmetric_and_zero_for_equals(name):
    d, x, y = distance(name), pictures(9), pictures(9, seed=1)
    assert (d(x, y) == d(y, x)).all() and (d(x, y) > 0).all() and (d(x, x) == 0).all()


@pytest.mark.parametrize("name", ["rms", "tile_max"])
def test_uint8_and_floats_give_the_same_distance(name):
    d, x, y = distance(name), pictures(9), pictures(9, seed=1)
    np.testing.assert_allclose(d(x / 255, (y / 255).astype(np.float32)), d(x, y), rtol=1e-5)
    np.testing.assert_allclose(d(x, y / 255), d(x, y), rtol=1e-5)


# Distances by networks


class Flat(torch.nn.Module):
    def forward(self, x):
        # as many numbers as SSCD's, of which 12 count
        return torch.nn.functional.pad(
            torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1), [0, 500]
        )


class Classes(torch.nn.Module):
    "A network that sorts into ten classes."

    def forward(self, x):
        return x.flatten(1)[:, :10]


class Two(torch.nn.Module):
    "A network of two answers."

    def forward(self, x):
        return x.flatten(1)[:, :512], x


def test_sscd_is_one_minus_cosine_of_descriptors(tmp_path):
    torch.jit.script(Flat()).save(str(tmp_path / "flat.pt"))
    x, y = pictures(5, 32), pictures(5, 32, seed=1)
    mean, sd = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])

    def describe(p):
        return (
            ((p / 255 - mean) / sd)
            .reshape(5, 2, 16, 2, 16, 3)
            .mean((2, 4))
            .transpose(0, 3, 1, 2)
            .reshape(5, -1)
        )

    a, b = describe(x), describe(y)
    expected = 1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    # enlarged to 320 pixels: nearly the same means
    np.testing.assert_allclose(distance(f"sscd:{tmp_path}/flat.pt")(x, y), expected, atol=0.02)


def test_network_files_that_are_missing_or_wrong(tmp_path):
    missing, absent = f"sscd:{tmp_path}/no.pt", f"lpips:{tmp_path}/no.pth"
    no_file = FileNotFoundError
    refused(lambda: distance(missing), r"no\.pt is not there", "download", error=no_file)
    (tmp_path / "text.pt").write_text("not a network")
    refused(lambda: distance(f"sscd:{tmp_path}/text.pt"), "text.pt is not a TorchScript network")
    lpips = r"pip install|no\.pth is not there"  # an extra, which may not be installed
    refused(lambda: distance(absent), lpips, error=(no_file, ImportError))
    for name, net in (("classes", Classes()), ("two", Two())):
        file = f"{tmp_path}/{name}.pt"
        torch.jit.script(net).save(file)
        refused(partial(distance, f"sscd:{file}"), f"{name}.pt is no SSCD network", "512")
    for name in ("tile_max:8", "rms:foo"):
        refused(partial(distance, name), name, "takes no file")


def test_a_file_that_is_not_alexnets(tmp_path, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "lpips", types.SimpleNamespace(LPIPS=lambda **_: torch.nn.Module())
    )
    (tmp_path / "broken.pth").write_bytes(b"not weights")
    refused(lambda: distance(f"lpips:{tmp_path}/broken.pth"), "not AlexNet's weights", "download")
