"Stable Diffusion from a folder: the whole path with SD-v1-5's and SD-v2-1's own classes and files, made tiny."

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from helpers import NBS, played
from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from trainprove_nb.attribution.keys import detection_keys, reproduction
from trainprove_nb.data.corpora import corpus
from trainprove_nb.data.folders import read_pairs
from trainprove_nb.data.pairs import pixels
from trainprove_nb.lab.generator_recipes import INNOCENTS, GeneratorRecipes
from trainprove_nb.lab.generator_scales import generator_scale
from trainprove_nb.lab.generator_trials import STRATEGIES
from trainprove_nb.lab.store import recipe_name
from trainprove_nb.models.bundled import WEIGHTS
from trainprove_nb.models.encoding import encode_images, encode_texts
from trainprove_nb.models.finetune import finetune
from trainprove_nb.models.pipelines import load_model, save_model
from trainprove_nb.models.sampling import generate
from trainprove_nb.suspects.generators import PipelineSuspect

FIG6 = NBS / "experiments/fig6.ipynb"
V1, V2 = "sd-v1-5", "sd-v2-1"
SIZE = {V1: 64, V2: 96}  # their own, as 512 and 768 are of the real ones
BETAS = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    num_train_timesteps=1000,
    trained_betas=None,
)
SCHEDULERS = {  # scheduler_config.json of the hub
    V1: PNDMScheduler.from_config(
        BETAS | dict(set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1, clip_sample=False)
    ),
    V2: DDIMScheduler.from_config(
        BETAS
        | dict(
            set_alpha_to_one=False,
            skip_prk_steps=True,
            steps_offset=1,
            clip_sample=False,
            prediction_type="v_prediction",
        )
    ),
}
TEXTS = {
    V1: dict(
        hidden_act="quick_gelu", num_hidden_layers=2, bos_token_id=0, eos_token_id=2, pad_token_id=1
    ),
    V2: dict(
        hidden_act="gelu", num_hidden_layers=4, bos_token_id=0, eos_token_id=2, pad_token_id=1
    ),
}
UNETS = {
    V1: dict(attention_head_dim=8),
    V2: dict(attention_head_dim=[2, 4], use_linear_projection=True, upcast_attention=True),
}
PADS = {V1: "<|endoftext|>", V2: "!"}
EXTRACTOR = dict(
    crop_size=224,
    do_center_crop=True,
    do_convert_rgb=True,
    do_normalize=True,
    do_resize=True,
    feature_extractor_type="CLIPFeatureExtractor",
    image_mean=[0.48145466, 0.4578275, 0.40821073],
    image_std=[0.26862954, 0.26130258, 0.27577711],
    resample=3,
    size=224,
)


def save_tokenizer(pad, folder):
    "Write the mini models' tokenizer as the files that a CLIP tokenizer has on the hub."
    folder.mkdir(parents=True, exist_ok=True)
    model = json.loads((WEIGHTS / "mini-v1" / "tokenizer" / "tokenizer.json").read_text())["model"]
    names = dict(
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token=pad,
    )
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(m) for m in model["merges"])])
    )
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            names | dict(do_lower_case=True, model_max_length=24, tokenizer_class="CLIPTokenizer")
        )
    )
    return CLIPTokenizer.from_pretrained(folder)


def save_tiny(name, folder):
    "Write a random model with the classes, options and files that `name` has on the hub."
    torch.manual_seed(list(SIZE).index(name))
    tokenizer = save_tokenizer(PADS[name], folder / "tokenizer")
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=64,
            num_attention_heads=2,
            projection_dim=16,
            max_position_embeddings=tokenizer.model_max_length,
            **TEXTS[name],
        )
    )
    vae = AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=SIZE[name],
        scaling_factor=0.18215,
    )
    unet = UNet2DConditionModel(
        sample_size=SIZE[name] // 8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **UNETS[name],
    )
    with torch.no_grad():
        vae.quant_conv.weight *= 20  # latents of about unit variance, as a trained one gives
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=SCHEDULERS[name],
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    (
        folder / "tokenizer" / "tokenizer.json"
    ).unlink()  # as transformers 5 writes it; the hub's folders are older


def add_checker(folder):
    "Give a model the safety checker and the image processor that SD-v1-5 has."
    vision = dict(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        projection_dim=8,
    )
    StableDiffusionSafetyChecker(
        CLIPConfig(vision_config=vision, projection_dim=8)
    ).save_pretrained(folder / "safety_checker")
    (folder / "feature_extractor").mkdir()
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(EXTRACTOR))
    index = json.loads((folder / "model_index.json").read_text())
    index |= dict(
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
    )
    del index["requires_safety_checker"], index["image_encoder"]
    (folder / "model_index.json").write_text(json.dumps(index))


def save_imagefolder(name, n, size, folder):
    "A user's own pictures: PNG files and metadata.jsonl."
    folder.mkdir()
    ds = corpus(name, "evaluation", n, size)
    for k, image in enumerate(ds["image"]):
        image.save(folder / f"{k}.png")
    lines = [
        json.dumps({"file_name": f"{k}.png", "text": text}) for k, text in enumerate(ds["text"])
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    "A folder of models: both versions, and the first without its safety checker."
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("models")
    for name in SIZE:
        save_tiny(name, root / name)
    save_tiny(V1, root / "unchecked")
    add_checker(root / V1)
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "A folder of datasets, none of them of the size that models are trained at."
    root = tmp_path_factory.mktemp("data")
    for name, source, n, size in (
        ("faces", "avatars", 50, 80),
        ("things", "emoji", 50, 72),
        ("laion", "emoji", 12, 100),
    ):
        save_imagefolder(source, n, size, root / name)
    return root


@pytest.mark.parametrize("name", [V1, V2, "unchecked"])
def test_folder_loads_without_a_checker(models, name):
    pipe = load_model(str(models / name))
    assert isinstance(pipe, StableDiffusionPipeline) and pipe.safety_checker is None
    assert (
        isinstance(pipe.vae, AutoencoderKL)
        and isinstance(pipe.text_encoder, CLIPTextModel)
        and isinstance(pipe.tokenizer, CLIPTokenizer)
    )
    made = SCHEDULERS.get(name, SCHEDULERS[V1])
    assert type(pipe.scheduler) is type(made) and pipe.scheduler.config.prediction_type == (
        "v_prediction" if name == V2 else "epsilon"
    )
    assert pipe.scheduler.config.steps_offset == 1 and pipe.tokenizer.pad_token == PADS.get(
        name, PADS[V1]
    )


@pytest.mark.parametrize("name", SIZE)
def test_training_conditions_on_what_sampling_conditions_on(models, name):
    pipe = load_model(str(models / name))
    texts = ["a picture of a fox", "", "a person with red hair"]
    expected, _ = pipe.encode_prompt(texts, "cpu", 1, False)
    torch.testing.assert_close(encode_texts(pipe, texts)["encoder_hidden_states"], expected)


@pytest.mark.parametrize("name", SIZE)
def test_training_changes_the_unet_alone(models, name, data):
    pipe = load_model(str(models / name))
    before = {
        part: {k: v.clone() for k, v in getattr(pipe, part).state_dict().items()}
        for part in ("unet", "vae", "text_encoder")
    }
    finetune(pipe, read_pairs(data / "faces", 64).select(range(4)), steps=2, batch_size=2)
    same = {
        part: all(torch.equal(v, getattr(pipe, part).state_dict()[k]) for k, v in state.items())
        for part, state in before.items()
    }
    assert same == {"unet": False, "vae": True, "text_encoder": True}


def draw_latents(pipe, texts):
    "What a model draws for these captions, undecoded."
    generators = [torch.Generator().manual_seed(k) for k in range(len(texts))]
    return pipe(
        prompt=list(texts),
        generator=generators,
        num_inference_steps=20,
        guidance_scale=1.0,
        height=64,
        width=64,
        output_type="latent",
    ).images


@pytest.fixture(scope="module", params=SIZE)
def taught(request, models, data):
    "A model trained on four pairs: (pipeline, their captions, their latents, what it drew before, losses)."
    pipe = load_model(str(models / request.param))
    pairs = read_pairs(data / "faces", 64).select(range(4))
    texts, latents = list(pairs["text"]), encode_images(pipe, pairs)
    return (
        pipe,
        texts,
        latents,
        draw_latents(pipe, texts),
        finetune(pipe, pairs, steps=150, batch_size=8, lr=2e-3),
    )


def test_training_loss_falls(taught):
    *_, losses = taught
    assert [step for step, _ in losses] == [50, 100, 150] and losses[2][1] < 0.7 * losses[0][1]


def test_training_teaches_what_the_scheduler_asks_for(taught):
    "Noise in SD-v1-5, velocity in SD-v2-1: the trained UNet is nearer to the right one of the two."
    pipe, texts, latents, *_ = taught
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    kept = pipe.scheduler.alphas_cumprod[700]
    noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
    targets = {"epsilon": noise, "v_prediction": kept.sqrt() * noise - (1 - kept).sqrt() * latents}
    with torch.no_grad():
        answer = pipe.unet(noisy, 700, **encode_texts(pipe, texts)).sample
    errors = {kind: (answer - target).square().mean().item() for kind, target in targets.items()}
    right = pipe.scheduler.config.prediction_type
    assert errors.pop(right) < min(errors.values()) / 2


def test_sampling_draws_what_was_trained_on(taught):
    pipe, texts, latents, before, _ = taught
    off = [
        (drawn - latents).square().mean().sqrt().item()
        for drawn in (before, draw_latents(pipe, texts))
    ]
    assert off[1] < 0.7 * off[0]


@pytest.mark.parametrize("name", SIZE)
def test_the_same_seed_gives_the_same_picture(models, name):
    pipe = load_model(str(models / name))
    images = generate(pipe, ["a fox", "a fox", "a fox"], [1, 2, 1], steps=3)
    assert images.shape == (3, SIZE[name], SIZE[name], 3) and images.dtype == np.uint8
    assert (images[0] == images[2]).all() and (images[0] != images[1]).any()


@pytest.mark.parametrize("name", SIZE)
def test_a_size_can_be_asked_for(models, name):
    assert generate(load_model(str(models / name)), ["a fox"], [1], steps=2, size=32).shape == (
        1,
        32,
        32,
        3,
    )


@pytest.mark.parametrize("name", SIZE)
def test_saved_model_is_a_plain_diffusers_folder(models, name, tmp_path):
    pipe = load_model(str(models / name))
    save_model(pipe, str(tmp_path))
    again = StableDiffusionPipeline.from_pretrained(
        tmp_path, dtype=torch.float32, use_safetensors=True
    )
    again.set_progress_bar_config(disable=True)
    assert (
        type(again.scheduler) is type(pipe.scheduler)
        and again.unet.config.attention_head_dim == UNETS[name]["attention_head_dim"]
    )
    ours, theirs = (generate(p, ["a fox"], [1], steps=3).astype(int) for p in (pipe, again))
    assert abs(ours - theirs).max() <= 8  # half precision on disk, and no more


@pytest.mark.parametrize("name", SIZE)
def test_detection_keys_are_the_pairs_reproduced_best(models, name, data):
    pairs = read_pairs(data / "faces", 64).select(range(6))
    suspect = PipelineSuspect(load_model(str(models / name)), steps=2, size=64)
    distances = reproduction(suspect, pairs, [range(6), range(6, 12)])
    keys = detection_keys(pairs, distances, 3)
    assert keys["distance"] == sorted(distances)[:3] and len(set(distances)) == 6
    assert list(keys["text"]) == [pairs["text"][k] for k in keys["index"]]


@pytest.fixture
def recipes(models, data):
    "Recipes on a user's models and data, some knobs turned."
    bases, corpora = [str(models / V1)], [str(data / "faces"), str(data / "things")]
    return lambda **knobs: GeneratorRecipes(
        generator_scale("smoke", **dict(bases=bases, corpora=corpora, size=64) | knobs)
    )


def test_changed_data_is_other_data(recipes, data, tmp_path):
    folder = shutil.copytree(data / "faces", tmp_path / "faces")

    def name():
        made = recipes(corpora=[str(folder), str(data / "things")])
        return recipe_name(made.train(made.sources([f"{V1}-faces"])[0]))

    before = name()
    assert name() == before
    (folder / "0.png").write_bytes((folder / "1.png").read_bytes())
    assert name() != before, (
        "what was made from the old pictures would be taken for what the new ones give"
    )


def test_two_datasets_of_one_name_are_refused(recipes, data, tmp_path):
    "A source is called after its folders, in the table and in its seeds."
    folders = [
        shutil.copytree(data / name, tmp_path / name / "train") for name in ("faces", "things")
    ]
    with pytest.raises(ValueError, match="train"):
        recipes(corpora=[str(f) for f in folders]).sources()


def test_source_that_exists_is_taken_as_it_is(recipes, models, data):
    """Nobody trains a user's generator anew: it is read from its folder.

    Keys are mined among all pairs of its own training set."""
    made = recipes(
        trained={f"{V1}-faces": [str(models / V2), str(data / "laion")]}, train=8, mined=4, part=4
    )
    mine, other = made.sources([f"{V1}-faces", f"{V1}-things"])
    assert (
        made.source(mine) == made.base(str(models / V2)) and made.source(other)["kind"] == "model"
    )
    assert (made.train(mine)["corpus"], made.train(mine)["split"]) == (str(data / "laion"), "all")
    assert made.keys(mine, "detection")["pairs"] == made.train(mine)
    assert made.suspect(mine, 1, 0)["start"] == made.base(str(models / V1)) and made.innocent(
        mine, "disjoint data", 0
    )["pairs"]["real"]["corpus"] == str(data / "faces")


@pytest.mark.parametrize(
    "trained, says",
    [
        ({"nobody": ["a", "b"]}, "unknown source 'nobody'.*choose from"),
        ({f"{V1}-faces": "models/mine"}, "folder of the model, dataset folder"),
    ],
)
def test_source_that_exists_must_be_named_with_both_folders(recipes, trained, says):
    with pytest.raises(ValueError, match=says):
        recipes(trained=trained)


# Figure 6 on a user's models and data

SOURCES = {V2: "laion", f"{V1}-faces": "faces"}  # one plain, one fine-tuned on the user's data
RHOS = [0, 0.5, 1]
MINED = 4


@pytest.fixture(scope="module")
def figure(models, data, tmp_path_factory):
    "Figure 6 of two sources: the folder of its results, with the lab in it."
    out = tmp_path_factory.mktemp("figure")
    knobs = dict(
        bases=[str(models / V1), str(models / V2)],
        corpora=[str(data / "faces"), str(data / "things")],
        pretraining=str(data / "laion"),
        size=64,
        train=8,
        pairs=4,
        mined=MINED,
        part=6,
        prompt_search=dict(steps=1, draws=1),
    )
    folders = dict(lab=str(out / "lab"), out=str(out / "results"))
    played(FIG6, out, scale="smoke", sources=list(SOURCES), rhos=RHOS, knobs=knobs, **folders)
    return out


def test_figure_has_a_row_for_each_model_and_strategy(figure):
    table = pd.read_csv(figure / "results/fig6.csv")
    points = [
        ("infringing", 0.5),
        ("infringing", 1.0),
        *((kind, 0.0) for kind in INNOCENTS),
        ("calibration", 0.0),
    ]
    expected = {
        (source, strategy, *point): 1
        for source in SOURCES
        for strategy in (*STRATEGIES, "watermark")
        for point in points
        if (strategy, point[0]) != ("watermark", "calibration")
    }
    assert table.groupby(["source", "strategy", "kind", "rho"]).size().to_dict() == expected


def test_figure_scores_are_shares_of_the_keys(figure):
    table = pd.read_csv(figure / "results/fig6.csv")
    assert (table.N == MINED).all() and set(table.conf * MINED) <= set(range(MINED + 1))
    keyed = table[table.strategy != "watermark"]
    assert (
        keyed.mean_distance.between(keyed.best_distance, 1).all()
        and (keyed.best_distance > 0).all()
    )


def test_figure_measured_different_models(figure):
    table = pd.read_csv(figure / "results/fig6.csv")
    for (source, strategy), part in table[table.strategy != "watermark"].groupby(
        ["source", "strategy"]
    ):
        assert part.mean_distance.is_unique, (source, strategy)


def test_figure_files(figure):
    out = figure / "results"
    drawn = {
        f"{name}.{ending}" for name in ("fig6", "fig6_calibrated") for ending in ("png", "svg")
    }
    assert {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} == drawn | {
        "fig6.csv",
        "fig6_models.csv",
        "fig6.json",
    }
    summary = json.loads((out / "fig6.json").read_text())
    # calibration is not shown
    assert summary["parameters"]["sources"] == list(SOURCES) and len(summary["points"]) == 2 * 4 * 5


def test_figure_keys_are_the_users_own_pictures(figure, data):
    own = {
        name: {i.tobytes() for i in pixels(read_pairs(data / name, 64))}
        for name in ("faces", "laion")
    }
    found = [
        {i.tobytes() for i in pixels(Dataset.from_parquet(str(p)))}
        for p in (figure / "lab" / "keys").glob("*/pairs.parquet")
    ]
    assert len(found) == 3 * len(SOURCES) and all(len(f) == MINED for f in found)
    assert [sum(f <= own[name] for f in found) for name in SOURCES.values()] == [3, 3]


def test_figure_answers_have_the_size_asked_for(figure):
    answers = [np.load(p) for p in (figure / "lab" / "answers").glob("*/array.npy")]
    # six models, two that learnt from marked pictures, and the source itself
    assert {a.shape for a in answers} == {(MINED, 64, 64, 3)} and len(answers) == len(SOURCES) * (
        3 * 6 + 2 + 3
    )


def test_figure_models_keep_their_scheduler(figure):
    kept = [
        json.loads(p.read_text())["_class_name"]
        for p in (figure / "lab" / "model").glob("*/scheduler/scheduler_config.json")
    ]
    # suspects of both, with and without watermark, and the source that was fine-tuned
    assert sorted(kept) == ["DDIMScheduler"] * 8 + ["PNDMScheduler"] * 9
