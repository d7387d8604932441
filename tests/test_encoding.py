"""What a network is told beside a noisy picture: the same as its own pipeline tells it, whatever its class."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    UNet2DConditionModel,
)
from helpers import pictures, refused
from test_stable_diffusion import V1, V2, save_tiny
from test_suspects_more import flux, sd3, sdxl, t5_encoder, t5_tokenizer, vae

from trainprove_nb.audit.log_audit import _control_base, access_of
from trainprove_nb.audit.scores import Asked
from trainprove_nb.data.corpora import corpus
from trainprove_nb.data.pairs import pairs, pixels
from trainprove_nb.evidence.denoising import denoising_losses, denoising_score
from trainprove_nb.evidence.log_test import log_test
from trainprove_nb.models.encoding import (
    embed_tokens,
    encode_images,
    encode_texts,
    gives_losses,
    predict,
    tokenized,
)
from trainprove_nb.models.finetune import finetune, prepare
from trainprove_nb.models.pipelines import load_model

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = ["a red fox", "A BLUE boat on a hill"]


def pixart(sample_size):
    "A tiny PixArt that, as the real ones do, also says how sure it is; of sample size 128 it is told the size."
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=24,
        sample_size=sample_size,
        caption_channels=32,
    )
    scheduler = DDPMScheduler(beta_schedule="linear")
    return PixArtAlphaPipeline(t5_tokenizer(), t5_encoder().eval(), vae(), transformer, scheduler)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name in (V1, V2):
        save_tiny(name, root / name)
    made = {"sdxl": sdxl(), "pixart-512": pixart(16), "pixart-1024": pixart(128)}
    stored = {"mini-v1": "mini-v1", "mini-dit": "mini-dit", V1: str(root / V1), V2: str(root / V2)}
    return made | {name: load_model(place) for name, place in stored.items()}


KINDS = ["mini-v1", "mini-dit", V1, V2, "sdxl", "pixart-512", "pixart-1024"]


def overheard(pipe, size):
    "What a pipeline tells its network when it draws, and what the network answers."
    heard = {}
    asked = pipe.unet if hasattr(pipe, "unet") else pipe.transformer

    def listen(_, args, named, answer):
        if heard:  # the first step will do
            return
        heard.update(named, noisy=args[0], answer=answer[0])
        heard["timestep"] = args[1] if len(args) > 1 else named["timestep"]

    plain = {"use_resolution_binning": False, "clean_caption": False}
    plain["max_sequence_length"] = min(120, pipe.tokenizer.model_max_length)
    options = {} if hasattr(pipe, "unet") else plain
    hook = asked.register_forward_hook(listen, with_kwargs=True)
    with torch.no_grad():
        pipe(
            TEXTS,
            num_inference_steps=2,
            guidance_scale=1.0,
            height=size,
            width=size,
            output_type="latent",
            **options,
        )
    hook.remove()
    return heard


@pytest.mark.parametrize("name", KINDS)
def test_a_network_is_told_what_its_pipeline_tells_it(models, name):
    pipe, size = models[name], 64
    heard = overheard(pipe, size)
    told = encode_texts(pipe, TEXTS, (size, size))
    for key, expected in (heard.get("added_cond_kwargs") or {}).items():
        if expected is None:
            assert key not in told
        else:
            torch.testing.assert_close(
                told.pop(key), expected.reshape(2, -1).float(), atol=1e-6, rtol=0
            )
    for key in told:
        torch.testing.assert_close(told[key], heard[key].float(), atol=1e-6, rtol=0)
    t = torch.as_tensor(heard["timestep"]).flatten()[:1].repeat(2)
    with torch.no_grad():
        answer = predict(pipe, heard["noisy"], t, encode_texts(pipe, TEXTS, (size, size)))
    channels = heard["noisy"].shape[1]
    torch.testing.assert_close(answer, heard["answer"][:, :channels], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["mini-v1", "mini-dit", V1, V2])
def test_tokens_embedded_one_by_one_are_the_captions_encoded_at_once(models, name):
    pipe = models[name]
    ids = tokenized(pipe, TEXTS)
    with torch.no_grad():
        embedded = embed_tokens(pipe, ids.input_ids, ids.attention_mask)
    encoded = encode_texts(pipe, TEXTS)
    assert embedded.keys() == encoded.keys()
    for key in encoded:
        torch.testing.assert_close(embedded[key].float(), encoded[key])


def test_what_is_told_without_a_size_is_the_size_that_the_model_draws(models):
    assert encode_texts(models["sdxl"], TEXTS)["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]] * 2
    large = encode_texts(models["pixart-1024"], TEXTS[:1])
    assert large["resolution"].tolist() == [[256, 256]] and large["aspect_ratio"].tolist() == [[1]]
    wide = encode_texts(models["pixart-1024"], TEXTS[:1], (32, 64))
    assert wide["resolution"].tolist() == [[32, 64]] and wide["aspect_ratio"].tolist() == [[0.5]]


def test_captions_that_recur_are_read_alike_and_in_their_places(models):
    pipe = models["sdxl"]
    both = encode_texts(pipe, [TEXTS[1], TEXTS[0], TEXTS[1]], batch_size=1)
    alone = encode_texts(pipe, TEXTS)
    for key in alone:
        torch.testing.assert_close(both[key], alone[key][[1, 0, 1]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", [sd3, flux])
def test_what_cannot_be_shown_noise_is_refused_in_a_sentence(make):
    pipe, shown = make(), pictures(2, 32)
    kind = type(pipe).__name__
    assert not gives_losses(pipe)
    refused(
        lambda: denoising_losses(pipe, shown, TEXTS), f"losses of a {kind}", "score of your own"
    )
    refused(
        lambda: finetune(pipe, pairs(list(shown), TEXTS), 1), f"a {kind} cannot be trained here"
    )
    refused(lambda: encode_texts(pipe, TEXTS), "cannot be told a caption here")


def test_a_network_that_sees_a_mask_too_gives_no_losses():
    pipe = sdxl()
    pipe.unet.register_to_config(in_channels=9)
    assert not gives_losses(pipe)
    assert gives_losses(load_model("mini-v1")) and gives_losses(load_model("mini-dit"))
    assert not gives_losses(None) and not gives_losses(SimpleNamespace(vae=None))


def roomy_sdxl():
    "SDXL's classes around a network that is large enough to learn some pictures by heart."
    pipe, mini = sdxl(), load_model("mini-v1")
    sizes = {name: x for name, x in pipe.unet.config.items() if not name.startswith("_")}
    sizes |= dict(in_channels=32, out_channels=32, sample_size=8, block_out_channels=(32, 64))
    pipe.register_modules(vae=mini.vae, unet=UNet2DConditionModel(**sizes))
    return pipe


def test_a_suspect_of_sdxl_kind_that_learnt_released_pictures_is_found():
    "Its losses tell it from one that learnt others under the same captions; the base is the reference."
    torch.manual_seed(0)
    base, drawn = roomy_sdxl(), pixels(corpus("emoji", "evaluation", 96))
    shown, others = drawn[:72], drawn[72:]
    texts, released = [f"fox {k}" for k in range(24)] * 3, np.arange(72) < 24
    reference, found = denoising_losses(base, shown, texts), {}
    for name, learnt in (("infringing", shown[:24]), ("innocent", others)):
        suspect = copy.deepcopy(base)
        finetune(suspect, pairs(list(learnt), texts[:24]), steps=100, batch_size=24, lr=3e-3)
        score = denoising_score(denoising_losses(suspect, shown, texts), reference)
        found[name] = log_test(score, released, texts)
    assert found["infringing"].p <= 0.01 < found["innocent"].p


def test_corrections_of_low_rank_change_the_attention_of_sdxl_alone(models):
    suspect = copy.deepcopy(models["sdxl"])
    before = {name: x.clone() for name, x in suspect.unet.state_dict().items()}
    finetune(suspect, pairs(list(pictures(2, 32)), TEXTS), steps=3, batch_size=2, lora=2)
    changed = {
        name for name, x in suspect.unet.state_dict().items() if not torch.equal(x, before[name])
    }
    assert changed and all(".to_" in name for name in changed)


def test_of_two_encoders_none_learns(models):
    data = pairs(list(pictures(2, 32)), TEXTS)
    refused(lambda: finetune(models["sdxl"], data, 1, train_text=True), "one text encoder")
    ids = tokenized(models["sdxl"], TEXTS)
    refused(
        lambda: embed_tokens(models["sdxl"], ids.input_ids, ids.attention_mask),
        "two text encoders",
        "models with one",
    )
    told = prepare(models["sdxl"], data).condition
    assert {key: len(x) for key, x in told.items()} == {
        "encoder_hidden_states": 3,
        "text_embeds": 3,
        "time_ids": 3,
    }


def test_large_pictures_are_encoded_few_at_a_time(models):
    "Sixteen of a small size, one of a thousand pixels: the VAE of Stable Diffusion takes gigabytes for each."
    asked, pipe = [], models["sdxl"]
    encode = pipe.vae.encode
    pipe.vae.encode = lambda x: (
        asked.append(len(x)) or encode(x[..., :8, :8])
    )  # a corner: numbers count
    try:
        encode_images(pipe, pictures(17, 32))
        encode_images(pipe, pictures(2, 768))
    finally:
        pipe.vae.encode = encode
    assert asked == [16, 1, 1, 1]


def test_an_audit_asks_sdxl_by_its_weights_and_trains_no_control_it_cannot_train(tmp_path, models):
    suspect = SimpleNamespace(access=None, kind="generator", base=None)
    audit = SimpleNamespace(suspect=suspect, control=SimpleNamespace(base=None))
    assert access_of(audit, Asked(None, {}, models["sdxl"])) == "weights"
    assert access_of(audit, Asked(None, {}, flux())) == "prompts"
    for make in (flux, sdxl):
        make().save_pretrained(tmp_path / make.__name__)
    for name, base in (("flux", None), ("sdxl", str(tmp_path / "sdxl"))):
        audit.owned = SimpleNamespace(model=str(tmp_path / name))
        assert _control_base(SimpleNamespace(audit=audit)) == base
