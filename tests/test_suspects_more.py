"Suspects of every kind that people have: real files, a real hub and real services on this machine."

import base64
import hashlib
import json
import os
import re
import shutil
import threading
import time
import warnings
import zlib
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from helpers import image, pictures, png, refused, run
from peft import LoHaConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file
from test_stable_diffusion import V1, V2, save_tiny
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from trainprove_nb.data.pairs import PicturesOnDisk
from trainprove_nb.models.bundled import WEIGHTS
from trainprove_nb.models.pipelines import load_model
from trainprove_nb.models.sampling import generate
from trainprove_nb.suspects.adapters import load_adapter, load_single_file
from trainprove_nb.suspects.checks import check_answers, try_suspect
from trainprove_nb.suspects.generators import FolderSuspect, PipelineSuspect, ask
from trainprove_nb.suspects.hosted import ServiceSuspect
from trainprove_nb.suspects.opening import open_suspect, suspect_kind
from trainprove_nb.suspects.own_settings import own_settings, own_suspect
from trainprove_nb.suspects.patience import Pace
from trainprove_nb.suspects.service_recipes import RECIPES, Recipe
from trainprove_nb.suspects.services import HTTPSuspect
from trainprove_nb.suspects.transport import headers_for, identity, scrubbed, send, shown

pytestmark = pytest.mark.usefixtures("one_thread")

# Tiny models of the classes that people have


def clip_tokenizer():
    return CLIPTokenizer.from_pretrained(WEIGHTS / "mini-v1/tokenizer")


def t5_tokenizer():
    words = "a red fox blue boat on hill big owl tree in".split()
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{w}" for w in words), *map(chr, range(97, 123))]
    vocab = [(piece, -float(k)) for k, piece in enumerate(pieces)]
    return T5Tokenizer(vocab=vocab, model_max_length=512, extra_ids=0)


def t5_encoder():
    sizes = dict(vocab_size=64, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
    return T5EncoderModel(T5Config(**sizes))


def clip_encoder(kind=CLIPTextModel, width=32):
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        hidden_size=width,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        projection_dim=32,
    )
    return kind(config)


def vae(channels=4, **options):
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=32,
        **options,
    )


def flow_vae(channels):
    shift = dict(shift_factor=0.06, scaling_factor=1.5)
    return vae(channels, use_quant_conv=False, use_post_quant_conv=False, **shift)


def sdxl():
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
    )
    return StableDiffusionXLPipeline(
        vae=vae(),
        unet=unet,
        text_encoder=clip_encoder(),
        text_encoder_2=clip_encoder(CLIPTextModelWithProjection),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
    )


def sd3():
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=64,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=flow_vae(4),
        text_encoder=clip_encoder(CLIPTextModelWithProjection, 16),
        text_encoder_2=clip_encoder(CLIPTextModelWithProjection, 16),
        text_encoder_3=t5_encoder(),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=t5_tokenizer(),
    )


def flux():
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=True,
    )
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=flow_vae(1),
        text_encoder=clip_encoder(),
        text_encoder_2=t5_encoder(),
        tokenizer=clip_tokenizer(),
        tokenizer_2=t5_tokenizer(),
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    "A folder of tiny models of many classes."
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for make in (sdxl, sd3, flux):
        make().save_pretrained(root / make.__name__)
    for name in (V1, V2):
        save_tiny(name, root / name)
    for name in ("mini-lcm", "mini-dit"):
        shutil.copytree(WEIGHTS / name, root / name)
    return root


OWN = {  # class, steps, guidance and size of each, as its class or its scheduler has them
    V1: ("StableDiffusionPipeline", 50, 7.5, 64),
    V2: ("StableDiffusionPipeline", 50, 7.5, 96),
    "sdxl": ("StableDiffusionXLPipeline", 50, 5.0, 32),
    "sd3": ("StableDiffusion3Pipeline", 28, 7.0, 32),
    "flux": ("FluxPipeline", 28, 3.5, None),
    "mini-lcm": ("LatentConsistencyModelPipeline", 4, 2.0, 32),
    "mini-dit": ("PixArtAlphaPipeline", 10, 2.0, 32),
}


@pytest.mark.parametrize("name", OWN)
def test_every_class_is_asked_in_its_own_way(models, name):
    "Pictures are those that diffusers itself draws with the same settings."
    pipe = load_model(str(models / name))
    own = own_settings(pipe)
    assert (type(pipe).__name__, own["steps"], own["guidance"], own["size"]) == OWN[name]
    told = json.loads((models / name / "scheduler/scheduler_config.json").read_text())
    assert own["scheduler"] == told["_class_name"] == type(pipe.scheduler).__name__
    assert own_settings(models / name) == own
    suspect = own_suspect(pipe, steps=2, size=32)
    assert suspect.settings == {"steps": 2, "guidance": own["guidance"], "size": 32}
    answers = ask(suspect, ["a red fox", "a blue boat"], [1, 2])
    assert answers.shape == (2, 32, 32, 3) and (answers[0] != answers[1]).any()
    length = {"max_sequence_length": 24} if name == "mini-dit" else {}
    plain = pipe(
        ["a red fox", "a blue boat"],
        generator=[torch.Generator().manual_seed(k) for k in (1, 2)],
        num_inference_steps=2,
        guidance_scale=own["guidance"],
        height=32,
        width=32,
        output_type="np",
        **length,
        **({"use_resolution_binning": False, "clean_caption": False} if length else {}),
    ).images
    assert np.abs(answers.astype(int) - (plain * 255).round()).max() <= 1


def test_a_long_prompt_is_read_by_the_encoder_that_reads_most(models):
    "Not cut where CLIP stops, after 24 tokens here: T5 reads 512."
    pipe = load_model(str(models / "flux"))
    start = "a red fox on a hill " * 5
    a, b = generate(pipe, [start + "blue", start + "tree"], [1, 1], steps=1, size=32)
    assert (a != b).any()


def test_pictures_that_are_no_numbers_are_not_taken_for_black():
    pipe = load_model("mini-v1")
    pipe.vae.decode = lambda z, **_: (torch.full((len(z), 3, 32, 32), torch.nan),)
    refused(lambda: generate(pipe, ["a fox"], [1], steps=1), "no picture", "'a fox'", "precision")


# What a card, a name and a scheduler tell

CARD = """# Turbo
```py
image = pipe(prompt, num_inference_steps = 1, guidance_scale=0.0,
             height=24, width=24).images[0]
image = other(prompt, num_inference_steps=30, guidance_scale=9).images[0]
```
"""


@pytest.fixture
def v1(models, tmp_path):
    "A copy of the tiny Stable Diffusion, free to be changed."
    return shutil.copytree(models / V1, tmp_path / "mine")


def test_the_card_counts_most_and_can_be_overruled(v1):
    (v1 / "README.md").write_text(CARD)
    own = own_settings(v1)
    assert (own["steps"], own["guidance"], own["size"]) == (1, 0.0, 24)
    assert own["where"] == {"steps": "card", "guidance": "card", "size": "card"}
    suspect = own_suspect(load_model(str(v1)), guidance=3.0)
    assert suspect.settings == {"steps": 1, "guidance": 3.0, "size": 24}
    assert ask(suspect, ["a fox"], [1]).shape == (1, 24, 24, 3)


@pytest.mark.parametrize(
    "card, told",
    [
        ("trained for 12000 steps of 32 pairs, guidance 2", (50, 7.5, 64)),
        ("```\npipe(p, num_inference_steps=n_steps, height=512, width=768)\n```", (50, 7.5, 64)),
        ("```\nnum_inference_steps = 4\npipe(p, guidance_scale = 8.0)\n```", (4, 8.0, 64)),
    ],
)
def test_only_code_is_taken_from_a_card(v1, card, told):
    (v1 / "README.md").write_text(card)
    own = own_settings(v1)
    assert (own["steps"], own["guidance"], own["size"]) == told


def test_a_model_that_was_saved_again_remembers_its_name(v1):
    index = json.loads((v1 / "model_index.json").read_text())
    for origin, told in (
        ("stabilityai/sd-turbo", (4, 0.0, "name")),
        ("ByteDance/SDXL-Lightning-8step", (8, 0.0, "name")),
        ("somebody/checkpoint-12000-steps", (50, 7.5, "class")),
        ("somebody/tried-at-30-steps", (50, 7.5, "class")),
        ("somebody/hyperion", (50, 7.5, "class")),
    ):
        (v1 / "model_index.json").write_text(json.dumps(index | {"_name_or_path": origin}))
        for model in (v1, load_model(str(v1))):
            own = own_settings(model)
            assert (own["steps"], own["guidance"], own["where"]["steps"]) == told, origin


def test_a_scheduler_for_few_steps_is_asked_for_few(v1):
    pipe = load_model(str(v1))
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    own = own_settings(pipe)
    assert (own["steps"], own["guidance"], own["where"]["steps"]) == (4, 0.0, "scheduler")


def test_a_model_that_came_from_nowhere_has_no_card(v1, monkeypatch, tmp_path):
    "Not the README of the folder that one happens to be in."
    (tmp_path / "README.md").write_text(CARD)
    monkeypatch.chdir(tmp_path)
    pipe = StableDiffusionPipeline(**load_model(str(v1)).components, requires_safety_checker=False)
    assert own_settings(pipe)["steps"] == 50
    refused(lambda: own_settings(tmp_path), re.escape(str(tmp_path)), "no folder of a diffusers")


# Whole, or not at all


def changed(file, change):
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def without_one(weights):
    weights.pop(sorted(weights)[3])
    return weights


def half(weights):
    return dict(sorted(weights.items())[: len(weights) // 2])


def prefixed(weights):
    return {f"model.{k}": w for k, w in weights.items()}


def with_nan(weights):
    weights[sorted(weights)[3]][..., 0] = torch.nan
    return weights


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize(
    "change, says",
    [
        (without_one, "1 of the"),
        (half, "in no file"),
        (prefixed, "in no file"),
        (with_nan, "1 of the .* not finite"),
    ],
)
def test_a_model_that_is_not_whole_is_refused(v1, part, change, says):
    changed(next((v1 / part).glob("*.safetensors")), change)
    says = f"weights of its {part} are|{says}", says, "copy it again"
    refused(lambda: load_model(str(v1)), re.escape(str(v1)), *says)


@pytest.mark.parametrize("lost", ["vocab.json", "*"])
def test_a_tokenizer_without_words_is_refused(v1, lost):
    for file in (v1 / "tokenizer").glob(lost):
        file.unlink()
    refused(lambda: load_model(str(v1)), re.escape(str(v1)), "copy it again|tokenizer")


def test_a_tokenizer_of_the_second_encoder_counts_too(models, tmp_path):
    mine = shutil.copytree(models / "sdxl", tmp_path / "mine")
    (mine / "tokenizer_2/tokenizer.json").unlink()
    refused(lambda: load_model(str(mine)), "tokenizer_2 reads", "the same")


def test_half_precision_alone_is_read(v1, tmp_path):
    whole = load_model(str(v1))
    whole.save_pretrained(tmp_path / "fp16", variant="fp16")
    assert list((tmp_path / "fp16/unet").glob("*.fp16.safetensors"))
    a, b = (generate(p, ["a fox"], [1], steps=1) for p in (whole, load_model(tmp_path / "fp16")))
    assert (a == b).all()


def test_pickles_are_named_and_not_opened(v1):
    weights = next((v1 / "unet").glob("*.safetensors"))
    torch.save(load_file(weights), v1 / "unet/diffusion_pytorch_model.bin")
    weights.unlink()
    refused(lambda: load_model(str(v1)), "only safetensors", "safe_serialization=True", "answers")


def test_no_code_of_a_model_is_run_and_nobody_is_asked(v1, monkeypatch, tmp_path):
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w')\nclass Mine: pass\n"
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    (v1 / "tokenizer/mine.py").write_text(code)
    config = json.loads((v1 / "tokenizer/tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": ["mine.Mine", None]}, "tokenizer_class": "Mine"}
    (v1 / "tokenizer/tokenizer_config.json").write_text(json.dumps(config))
    index = json.loads((v1 / "model_index.json").read_text())
    (v1 / "model_index.json").write_text(
        json.dumps(index | {"tokenizer": ["transformers", "AutoTokenizer"]})
    )
    try:
        load_model(str(v1))
    except ValueError as e:
        assert str(v1) in str(e)
    (v1 / "pipeline.py").write_text(code)
    (v1 / "model_index.json").write_text(json.dumps(index | {"_class_name": ["pipeline", "Mine"]}))
    refused(lambda: load_model(str(v1)), re.escape(str(v1)))
    assert not ran.exists()


def test_a_pipeline_that_wants_more_than_a_text_is_refused(v1):
    index = json.loads((v1 / "model_index.json").read_text())
    for kind in ("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"):
        (v1 / "model_index.json").write_text(json.dumps(index | {"_class_name": kind}))
        refused(lambda: load_model(str(v1)), kind, "image", "text-to-image")


def test_a_mistyped_folder_is_not_looked_for_on_the_hub(models, monkeypatch):
    monkeypatch.chdir(models.parent)
    refused(
        lambda: load_model(f"{models.name}/sdlx"), "no folder", "sdlx", "has .*sdxl", "owner/model"
    )
    refused(lambda: load_model("my models/sdxl"), "no folder", "my models/sdxl")


# The hub, on this machine

SHA = "a" * 40


@pytest.fixture
def serve(monkeypatch):
    "Start servers of a handler's class on this machine; a function that gives their addresses."
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers = []

    def start(handler):
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        servers.append(server)
        serving = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        serving.start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class Quiet(BaseHTTPRequestHandler):
    "A handler that logs nothing, and replies in one call."

    def say(self, status=200, data=b"", kind="application/octet-stream", **headers):
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            try:
                self.wfile.write(data)
            except OSError:
                pass

    def log_message(self, *_):
        pass


def hub_of(folders):
    "A hub as huggingface_hub talks to it: name -> folder; `owner/gated` is for those who agree."

    class Hub(Quiet):
        def do_GET(self):
            path = self.path.partition("?")[0]
            name = next((n for n in folders if f"/{n}/" in f"{path}/"), None)
            if "owner/gated" in path:
                return self.say(403, X_Error_Code="GatedRepo", X_Error_Message="restricted")
            if name is None:
                return self.say(401, X_Error_Code="RepoNotFound", X_Error_Message="not found")
            files = [f for f in folders[name].rglob("*") if f.is_file()]
            names = [f.relative_to(folders[name]).as_posix() for f in files]
            if "/tree/" in path:
                pairs = zip(names, files, strict=True)
                sizes = [(n, f.stat().st_size) for n, f in pairs]
                rows = [{"type": "file", "path": n, "size": s, "oid": n} for n, s in sizes]
                return self.say(data=rows, kind="application/json")
            if path.startswith("/api/models/"):
                siblings = [{"rfilename": n} for n in names]
                info = {"id": name, "sha": SHA, "siblings": siblings}
                return self.say(data=info, kind="application/json")
            file = folders[name] / path.partition("/resolve/")[2].partition("/")[2]
            if not file.is_file():
                return self.say(404, X_Error_Code="EntryNotFound")
            data = file.read_bytes()
            tag = f'"{hashlib.sha1(data).hexdigest()}"'
            self.say(data=data, ETag=tag, X_Repo_Commit=SHA)

        do_HEAD = do_GET

    return Hub


ASK_HUB = """
from huggingface_hub import constants
from trainprove_nb.suspects.opening import open_suspect
from trainprove_nb.suspects.own_settings import own_settings
for name, base in (("owner/tiny", None), ("owner/half", None), ("owner/lora", "owner/tiny"),
                   ("owner/gated", None), ("owner/nobody", None), ("owner/pickled", None),
                   ("owner/later", None)):
    constants.HF_HUB_OFFLINE = name == "owner/later"
    try:
        suspect = open_suspect(name, base)
        print(name, type(suspect.pipe).__name__, suspect.settings, own_settings(suspect.pipe)["where"])
    except ValueError as e:
        print(e)
"""


def lora_of(pipe, folder, seed=0):
    "Draw a LoRA at random, and save it as a training script does."
    torch.manual_seed(seed)
    recipe = dict(r=2, lora_alpha=2, init_lora_weights=False)
    pipe.unet.add_adapter(LoraConfig(**recipe, target_modules=["to_q", "to_v"]))
    change = get_peft_model_state_dict(pipe.unet)
    type(pipe).save_lora_weights(str(folder), unet_lora_layers=change)
    return folder / "pytorch_lora_weights.safetensors"


def test_names_of_the_hub(models, serve, tmp_path):
    tiny = shutil.copytree(models / V1, tmp_path / "tiny")
    (tiny / "README.md").write_text(CARD)
    pickled = shutil.copytree(models / V1, tmp_path / "pickled")
    (pickled / "unet/diffusion_pytorch_model.safetensors").rename(
        pickled / "unet/diffusion_pytorch_model.bin"
    )
    load_model(str(tiny)).save_pretrained(tmp_path / "half", variant="fp16")
    lora_of(load_model(str(tiny)), tmp_path / "lora")
    url = serve(hub_of({f"owner/{n}": tmp_path / n for n in ("tiny", "half", "lora", "pickled")}))
    home = str(tmp_path / "home")
    done = run("-c", ASK_HUB, cwd=tmp_path, HF_ENDPOINT=url, HF_HOME=home, PYTHONPATH=os.getcwd())
    told = done.stdout.splitlines()
    assert len(told) == 7, done.stdout + done.stderr
    assert "StableDiffusionPipeline {'steps': 1, 'guidance': 0.0, 'size': 24}" in told[0]
    assert "StableDiffusionPipeline {'steps': 50" in told[1]
    assert "StableDiffusionPipeline {'steps': 1, 'guidance': 0.0, 'size': 24}" in told[2]
    assert "accept them at https://huggingface.co/owner/gated" in told[3]
    assert "hub has no such model" in told[4] and "hf auth login" in told[4]
    assert "only safetensors are read" in told[5]
    assert "the hub cannot be reached" in told[6] and "give the folder" in told[6]


# Adapters


def draw(pipe, **settings):
    return generate(pipe, ["a fox", "a boat"], [1, 2], **{"steps": 2, **settings}).astype(int)


@pytest.fixture(scope="module")
def lora(models, tmp_path_factory):
    "A LoRA of the tiny Stable Diffusion, its file and what it draws."
    pipe = load_model(str(models / V1))
    file = lora_of(pipe, tmp_path_factory.mktemp("lora"))
    return file, draw(pipe)


def test_a_lora_is_a_file_or_a_folder(models, lora):
    file, expected = lora
    base = draw(load_model(str(models / V1)))
    assert np.abs(expected - base).max() > 5
    for given in (file, file.parent):
        assert suspect_kind(str(given)) == "adapter"
        pipe = load_adapter(given, str(models / V1))
        assert (draw(pipe) == expected).all()
    assert (draw(load_adapter(file, str(models / V1), strength=0.0)) == base).all()


def test_a_lora_of_many_encoders_is_whole(models, tmp_path):
    "SDXL's: of the network that draws and of both that read."
    pipe = load_model(str(models / "sdxl"))
    torch.manual_seed(1)
    recipe = dict(r=2, lora_alpha=2, init_lora_weights=False)
    pipe.unet.add_adapter(LoraConfig(**recipe, target_modules=["to_q", "to_v"]))
    for encoder in (pipe.text_encoder, pipe.text_encoder_2):
        encoder.add_adapter(LoraConfig(**recipe, target_modules=["q_proj"]))
    networks = dict(
        unet_lora_layers=pipe.unet,
        text_encoder_lora_layers=pipe.text_encoder,
        text_encoder_2_lora_layers=pipe.text_encoder_2,
    )
    layers = {k: get_peft_model_state_dict(n) for k, n in networks.items()}
    type(pipe).save_lora_weights(str(tmp_path), **layers)
    assert (draw(load_adapter(tmp_path, str(models / "sdxl"))) == draw(pipe)).all()


def test_a_lora_of_a_transformer(models, tmp_path):
    pipe = load_model(str(models / "flux"))
    torch.manual_seed(1)
    modules = ["to_q", "to_v"]
    recipe = LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=modules)
    pipe.transformer.add_adapter(recipe)
    change = get_peft_model_state_dict(pipe.transformer)
    type(pipe).save_lora_weights(str(tmp_path), transformer_lora_layers=change)
    loaded = load_adapter(tmp_path, str(models / "flux"))
    assert (draw(loaded, size=32) == draw(pipe, size=32)).all()


@pytest.mark.parametrize("config", [LoraConfig, LoHaConfig])
def test_an_adapter_of_peft_itself(models, tmp_path, config):
    pipe = load_model(str(models / V1))
    torch.manual_seed(2)
    name = "init_lora_weights" if config is LoraConfig else "init_weights"
    recipe = config(r=2, target_modules=["to_q", "to_v"], **{name: False})
    pipe.unet = get_peft_model(pipe.unet, recipe)
    pipe.unet.save_pretrained(tmp_path)
    assert (draw(load_adapter(tmp_path, str(models / V1))) == draw(pipe)).all()
    refused(lambda: load_adapter(tmp_path, str(models / "sdxl")), "does not fit", "give the base")


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda w: {k.replace("unet.", "net."): v for k, v in w.items()}, "does not fit"),
        (without_one, "does not fit"),
        (lambda w: {k.replace("to_q", "to_quack"): v for k, v in w.items()}, "does not fit"),
        (with_nan, "not finite|does not fit"),
        (lambda w: {"emb_params": torch.zeros(2, 8)}, "no adapter"),
    ],
    ids=["prefix", "missing", "other names", "NaN", "no LoRA"],
)
def test_an_adapter_that_does_not_arrive_whole_is_refused(models, lora, tmp_path, change, says):
    file = shutil.copy(lora[0], tmp_path)
    changed(file, change)
    refused(lambda: load_adapter(file, str(models / V1)), says)


def test_an_adapter_says_what_it_needs(models, lora, tmp_path, capfd):
    file = Path(shutil.copy(lora[0], tmp_path))
    refused(lambda: load_adapter(file), re.escape(str(file)), "name its base")
    (tmp_path / "README.md").write_text(
        f"---\nbase_model: {models / V1}\n---\n"
        "    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)\n"
        "    pipe(prompt, num_inference_steps=4, guidance_scale=1.0)\n"
    )
    suspect = open_suspect(str(tmp_path))
    assert suspect.settings == {"steps": 4, "guidance": 1.0, "size": 64}
    assert type(suspect.pipe.scheduler).__name__ == "LCMScheduler"
    capfd.readouterr()
    refused(lambda: load_adapter(file, str(models / "sdxl")), "does not fit", "give the base")
    assert capfd.readouterr() == ("", "")
    refused(lambda: load_adapter(file, str(models / "mini-dit")), "takes no LoRA")
    (tmp_path / "second.safetensors").write_bytes(file.read_bytes())
    file.rename(tmp_path / "first.safetensors")
    refused(lambda: load_adapter(tmp_path, V1), "first.safetensors, second", "give the file")
    torch.save({}, tmp_path / "lora.bin")
    refused(lambda: load_adapter(tmp_path / "lora.bin", V1), "lora.bin", "may run code", "answers")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((tmp_path / "first.safetensors").read_bytes()[:-50])
    refused(lambda: load_adapter(cut, str(models / V1)), "cut.safetensors", "copy it again")


# A single file

UNET_NAMES = [  # of diffusers -> of the first code, for one resnet a level and two levels
    (r"^time_embedding\.linear_1", "time_embed.0"),
    (r"^time_embedding\.linear_2", "time_embed.2"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    (r"^down_blocks\.0\.downsamplers\.0\.conv", "input_blocks.2.0.op"),
    (r"^down_blocks\.0\.(resnets|attentions)\.0", "input_blocks.1.KIND"),
    (r"^down_blocks\.1\.(resnets|attentions)\.0", "input_blocks.3.KIND"),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^mid_block\.resnets\.0", "middle_block.0"),
    (r"^mid_block\.resnets\.1", "middle_block.2"),
    (r"^up_blocks\.0\.upsamplers\.0", "output_blocks.1.1"),
    (r"^up_blocks\.0\.(resnets|attentions)\.0", "output_blocks.0.KIND"),
    (r"^up_blocks\.0\.(resnets|attentions)\.1", "output_blocks.1.KIND"),
    (r"^up_blocks\.1\.(resnets|attentions)\.0", "output_blocks.2.KIND"),
    (r"^up_blocks\.1\.(resnets|attentions)\.1", "output_blocks.3.KIND"),
    (r"\.norm1\.(?=\w+$)(?<!transformer_blocks\.0\.norm1\.)", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.norm2\.(?=\w+$)(?<!transformer_blocks\.0\.norm2\.)", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.conv_shortcut\.", ".skip_connection."),
]
VAE_NAMES = [  # for one resnet a level on the way down, and four levels
    (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d)\.resnets\.(\d)", r"up.UP\1.block.\2"),
    (r"up_blocks\.(\d)\.upsamplers\.0", r"up.UP\1.upsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"attn_1\.group_norm", "attn_1.norm"),
    (r"attn_1\.to_([qkv])", r"attn_1.\1"),
    (r"attn_1\.to_out\.0", "attn_1.proj_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
]


def renamed(weights, names):
    for old, new in names:
        weights = {re.sub(old, lambda m, new=new: m.expand(new), k): v for k, v in weights.items()}
    return weights


def single_file(pipe, file):
    "All weights of a Stable Diffusion in one file, under the names of its first code."
    unet = {}
    for name, weight in pipe.unet.state_dict().items():
        kind = "0" if ".resnets." in name else "1"
        (new,) = renamed({name: weight}, UNET_NAMES)
        unet[new.replace("KIND", kind)] = weight
    vae = renamed(pipe.vae.state_dict(), VAE_NAMES)
    vae = {re.sub(r"UP(\d)", lambda m: str(3 - int(m[1])), k): v for k, v in vae.items()}
    vae = {
        k: v[..., None, None] if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", k) else v
        for k, v in vae.items()
    }
    text = pipe.text_encoder.state_dict()
    weights = {
        **{f"model.diffusion_model.{k}": v for k, v in unet.items()},
        **{f"first_stage_model.{k}": v for k, v in vae.items()},
        **{f"cond_stage_model.transformer.text_model.{k}": v for k, v in text.items()},
    }
    save_file({k: v.contiguous() for k, v in weights.items()}, file)
    return file


@pytest.fixture(scope="module")
def single(models, tmp_path_factory):
    return single_file(
        load_model(str(models / V1)), tmp_path_factory.mktemp("single") / "model.safetensors"
    )


def test_a_single_file_draws_what_its_folder_draws(models, single):
    assert suspect_kind(str(single)) == "file"
    pipe = load_single_file(single, str(models / V1))
    assert type(pipe).__name__ == "StableDiffusionPipeline" and pipe.safety_checker is None
    assert (draw(pipe) == draw(load_model(str(models / V1)))).all()
    suspect = open_suspect(str(single), base=str(models / V1), steps=2)
    assert suspect.settings == {"steps": 2, "guidance": 7.5, "size": 64}


SINGLE_PARTS = (
    "model.diffusion_model.out",
    "first_stage_model.decoder.mid",
    "cond_stage_model.transformer.text_model.encoder.layers.1",
)


@pytest.mark.parametrize("part", SINGLE_PARTS)
def test_a_single_file_without_some_weights_is_refused(models, single, tmp_path, part):
    file = shutil.copy(single, tmp_path)
    changed(file, lambda w: {k: v for k, v in w.items() if not k.startswith(part)})
    refused(lambda: load_single_file(file, str(models / V1)), re.escape(str(file)), "copy it again")


def test_other_single_files_are_refused(models, single, lora, tmp_path):
    refused(lambda: load_single_file(lora[0]), "holds an adapter", "load_adapter")
    refused(
        lambda: load_single_file(single, str(models / "mini-dit")), "single file|one file", "folder"
    )
    network = models / V1 / "unet/diffusion_pytorch_model.safetensors"
    refused(lambda: load_single_file(network), "no known kind", "diffusers folder")
    pickle = tmp_path / "model.ckpt"
    torch.save({"state_dict": {}}, pickle)
    for load in (load_single_file, open_suspect):
        refused(lambda load=load: load(pickle), "model.ckpt", "may run code", "convert", "answers")


# Collected answers


ROWS = [
    {"file_name": "a.png", "text": "a fox"},
    {"file_name": "b.png", "text": 'a "red" boat,\non a lake'},
    {"file_name": "sub/c.png", "text": "ein Bär"},
]


def saved(folder, rows=ROWS, side=8):
    "The pictures that rows name, each of another grey; returns these greys."
    for k, row in enumerate(rows):
        file = folder / row["file_name"]
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side), (10 * k + 10,) * 3).save(file)
    return [10 * k + 10 for k in range(len(rows))]


def as_jsonl(rows, folder, encoding="utf-8"):
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    (folder / "metadata.jsonl").write_bytes(text.encode(encoding))


def as_csv(rows, folder, encoding="utf-8"):
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False, encoding=encoding)


def as_parquet(rows, folder):
    pd.DataFrame(rows).to_parquet(folder / "metadata.parquet")


@pytest.mark.parametrize("write", [as_jsonl, as_csv, as_parquet])
@pytest.mark.parametrize("column", ["text", "prompt", "caption"])
def test_collected_answers_in_every_layout(tmp_path, write, column):
    greys = saved(tmp_path)
    write([{"file_name": r["file_name"], "n": 3, column: r["text"]} for r in ROWS], tmp_path)
    suspect = open_suspect(str(tmp_path))
    answers = ask(suspect, [r["text"] for r in ROWS][::-1], [0] * 3)
    assert answers[:, 0, 0, 0].tolist() == greys[::-1]


@pytest.mark.parametrize("write", [as_jsonl, as_csv])
def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path, write):
    saved(tmp_path)
    write(ROWS, tmp_path, "utf-8-sig")
    assert ask(FolderSuspect(tmp_path), ["a fox"], [0])[0, 0, 0, 0] == 10


@pytest.mark.parametrize("write", [as_jsonl, as_csv])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_another_encoding_is_told_by_the_name_of_the_file(tmp_path, write, encoding):
    saved(tmp_path)
    write(ROWS, tmp_path, encoding)
    refused(lambda: FolderSuspect(tmp_path), r"metadata\.(jsonl|csv) is not UTF-8", "save it again")


def test_tables_in_sub_folders_name_the_files_beside_them(tmp_path):
    for name, prompt in (("monday", "a fox"), ("tuesday", "a boat")):
        saved(tmp_path / name, [{"file_name": "a.png"}])
        as_csv([{"file_name": "a.png", "prompt": prompt}], tmp_path / name)
    Image.new("RGB", (8, 8), (99,) * 3).save(tmp_path / "tuesday/a.png")
    answers = ask(FolderSuspect(tmp_path), ["a boat", "a fox"], [0, 0])
    assert answers[:, 0, 0, 0].tolist() == [99, 10]


def bad(**row):
    return lambda folder: as_jsonl([row], folder)


def linked(folder):
    (folder / "a.png").symlink_to(folder.parent / "secret.png")
    as_jsonl([{"file_name": "a.png", "text": "a"}], folder)


def linked_table(folder):
    (folder / "metadata.jsonl").symlink_to(folder.parent / "table.jsonl")


def both(folder):
    as_jsonl(ROWS, folder)
    as_csv(ROWS, folder)


BAD_TABLES = {
    "../": (bad(file_name="../secret.png", text="a"), "secret.png leads out of"),
    "absolute": (bad(file_name="/etc/passwd", text="a"), "leads out of"),
    "symlink": (linked, "leads out of"),
    "linked table": (linked_table, "leads out of"),
    "no text": (bad(file_name="a.png", words="a"), "has file_name, words"),
    "several texts": (bad(file_name="a.png", text=["a", "b"]), "one text"),
    "no file": (bad(text="a"), "needs file_name"),
    "folder": (bad(file_name=".", text="a"), "needs file_name"),
    "nothing": (lambda f: (f / "metadata.jsonl").write_text("\n"), "names no picture"),
    "no table": (lambda f: (f / "metadata.csv").write_text(""), "metadata.csv cannot be read"),
    "no parquet": (lambda f: (f / "metadata.parquet").write_text("a"), "parquet cannot be read"),
    "no record": (lambda f: (f / "metadata.jsonl").write_text("[1]"), "line 1"),
    "two tables": (both, "metadata.csv and metadata.jsonl"),
    "lost file": (bad(file_name="z.png", text="a"), "z.png is named but not there"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_table_that_does_not_tell_is_refused(tmp_path, name):
    (folder := tmp_path / "answers").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    as_jsonl([{"file_name": "a.png", "text": "a"}], tmp_path)
    (tmp_path / "metadata.jsonl").rename(tmp_path / "table.jsonl")
    write, says = BAD_TABLES[name]
    write(folder)
    refused(lambda: FolderSuspect(folder), re.escape(str(folder)), says)


def test_names_of_sub_folders_are_no_prompts(tmp_path):
    saved(tmp_path, [{"file_name": "a fox/0.png"}])
    says = "no metadata.jsonl", "sub-folders are not taken for prompts"
    refused(lambda: FolderSuspect(tmp_path), *says, error=FileNotFoundError)
    (tmp_path / "answers.zip").write_bytes(b"")
    refused(lambda: FolderSuspect(tmp_path), "unpack", error=FileNotFoundError)


def test_collected_answers_take_no_settings(tmp_path):
    saved(tmp_path)
    as_jsonl(ROWS, tmp_path)
    refused(lambda: open_suspect(str(tmp_path), steps=3), "steps", "leave it out")


# Answers as a kind


@pytest.fixture(scope="module", params=["mini-v1", "mini-dit", "mini-lcm"])
def mini(request):
    return own_suspect(load_model(request.param), steps=4, guidance=2.0)


def test_no_false_alarm_on_models_that_draw(mini):
    prompts = ["a small panda on cream", "a small panda on grey", "a big lemon on cyan", "a frog"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        answers = ask(mini, prompts * 2, range(8))
        check_answers(answers, prompts * 2, range(8), size=32)
        assert try_suspect(mini, size=32).shape == (4, 32, 32, 3)


def test_a_suspect_that_ignores_what_it_is_asked(mini):
    def deaf(prompts, seeds):
        return mini(["a frog"] * len(seeds), seeds)

    def stubborn(prompts, seeds):
        return mini(prompts, [0] * len(seeds))

    refused(lambda: try_suspect(deaf), "same picture", "does not get the prompt")
    with pytest.warns(UserWarning, match="same picture for every seed"):
        try_suspect(stubborn)
    refused(lambda: try_suspect(mini, size=64), "asked for 64×64", "gave 32×32")


PROMPTS = [f"prompt {k}" for k in range(10)]


def spoilt(which, picture):
    answers = pictures(10, 16)
    answers[which] = picture
    return answers


GREY = np.random.default_rng(1).integers(100, 103, (16, 16, 3))  # a card, saved as JPEG


@pytest.mark.parametrize(
    "picture, says",
    [(0, "all black"), (GREY, "of one colour"), (pictures(1, 16, seed=9), "other prompts too")],
    ids=["black", "grey", "placeholder"],
)
def test_answers_that_are_none(picture, says):
    refused(
        lambda: check_answers(spoilt(range(6), picture), PROMPTS),
        f"6 of the 10.*{says}",
        "ask again",
    )
    with pytest.warns(UserWarning, match=f"3 of the 10.*{says}"):
        check_answers(spoilt([2, 5, 7], picture), PROMPTS)


def test_answers_that_may_be_what_they_are():
    "Answers to one prompt may repeat, and no answers are not good ones."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_answers(np.repeat(pictures(5, 16), 2, axis=0), np.repeat(PROMPTS[:5], 2).tolist())
        check_answers(pictures(10, 16), PROMPTS[:5] * 2, [0] * 5 + [1] * 5)
    refused(lambda: check_answers(pictures(10, 16)[:0], []), "no pictures")
    with pytest.warns(UserWarning, match="every seed"):
        check_answers(
            np.repeat(pictures(5, 16), 2, axis=0), np.repeat(PROMPTS[:5], 2).tolist(), [0, 1] * 5
        )


def test_answers_laid_aside_are_looked_at_like_those_in_memory():
    "Two of them share a picture, one is black: a hundred pictures apart, so never looked at together."
    answers = pictures(230, 16)
    answers[220] = answers[3]
    answers[120] = 0
    aside = PicturesOnDisk()
    aside.add(answers)
    told = []
    for given in (answers, aside):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            check_answers(given, [f"prompt {k}" for k in range(230)])
        told.append([str(w.message) for w in caught])
    assert told[0] == told[1] and len(told[0]) == 2
    assert "(number 120)" in told[0][0] and "(number 3, 220)" in told[0][1]


# Requests to strangers


@pytest.fixture
def service(serve):
    "A service: its address, what it replies to (method, path), and what it was asked."

    class Service(Quiet):
        def do_POST(self):
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length) or "null")
            path = self.path.partition("?")[0]
            asked.append((self.command, self.path, dict(self.headers), body))
            reply = replies[self.command, path]
            if isinstance(reply, list):
                reply = reply.pop(0) if len(reply) > 1 else reply[0]
            if callable(reply):
                return reply(self)
            self.say(**reply)

        do_GET = do_POST

    replies, asked = {}, []
    url = serve(Service)
    return url, replies, asked


def as_json(words, status=200, **headers):
    return dict(status=status, data=words, kind="application/json", **headers)


def b64(data):
    return base64.b64encode(data).decode()


DRAWN = dict(data=png(), kind="image/png")


def drip(handler):
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(100):
            handler.wfile.write(b".")
            time.sleep(0.05)
    except OSError:
        pass


def drip_headers(handler):
    handler.send_response(200)
    handler.flush_headers()
    try:
        for k in range(90):
            handler.wfile.write(f"X-{k}: 1\r\n".encode())
            time.sleep(0.05)
    except OSError:
        pass


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b"." * 2**16)
    except OSError:
        pass


@pytest.mark.parametrize("reply", [drip, drip_headers, endless])
def test_a_reply_ends_in_time_and_in_size(service, reply):
    url, replies, _ = service
    replies["GET", "/"] = reply
    started = time.monotonic()
    with pytest.raises((ValueError, TimeoutError), match="larger than 1 MB|within 0.3 s"):
        send("GET", url + "/", timeout=0.3, limit=2**20)
    assert time.monotonic() - started < 2


def test_other_hosts_get_no_header_and_no_question(service, serve):
    url, replies, asked = service
    key = {"X-Api-Key": "sk-abc", "Authorization": "Bearer sk-abc"}
    there = url.replace("127.0.0.1", "localhost")
    os.environ["NO_PROXY"] = "127.0.0.1,localhost"
    replies["GET", "/end"] = replies["POST", "/end"] = DRAWN
    for status, to, sent in ((302, f"{url}/end", True), (302, f"{there}/end", False)):
        replies["GET", "/start"] = dict(status=status, Location=to)
        assert send("GET", f"{url}/start", key).content == png()
        headers = asked[-1][2]
        assert (headers.get("X-Api-Key"), "Authorization" in headers) == (
            ("sk-abc", True) if sent else (None, False)
        )
    replies["POST", "/start"] = dict(status=307, Location="/end")
    send("POST", f"{url}/start", key, {"prompt": "a fox"})
    assert asked[-1][1] == "/end" and asked[-1][3] == {"prompt": "a fox"}
    n = len(asked)
    for status in (301, 302, 307, 308):
        replies["POST", "/start"] = dict(status=status, Location=f"{there}/end")
        refused(
            lambda: send("POST", f"{url}/start", key, {"prompt": "a fox"}),
            "sends on to",
            "give that",
        )
    assert len(asked) == n + 4
    replies["GET", "/start"] = dict(status=302, Location="/start")
    refused(lambda: send("GET", f"{url}/start"), "more than five times")


@pytest.mark.parametrize(
    "url", ["ftp://a/b", "file:///etc/passwd", "a fox", "http://", "http://u:p@[x"]
)
def test_other_addresses_are_refused(service, url):
    refused(lambda: send("GET", url), "http://", "https://")
    here, replies, _ = service
    replies["GET", "/"] = dict(status=302, Location=url)
    if "://" in url:
        refused(lambda: send("GET", here + "/"), "http://|Invalid")


def test_nobody_outside_sends_us_inside():
    key = {"X-Key": "sk-abc"}
    for to in (
        "http://169.254.169.254/a",
        "http://127.0.0.1/",
        "http://10.1.2.3/",
        "http://[::1]/",
    ):
        refused(lambda to=to: headers_for(key, "https://8.8.8.8/", to), "inside our own network")
    assert headers_for(key, "https://8.8.8.8/a", "https://8.8.8.8:443/b") == key
    assert headers_for(key, "https://8.8.8.8/a", "http://8.8.8.8/b") == {}
    assert headers_for(key, "http://10.1.2.3/", "http://127.0.0.1/") == {}


SECRET = "sk-a/b+c 1"


def test_a_recipe_that_was_corrected_gets_new_answers(monkeypatch):
    "Whatever tells where the picture is, or which model is meant, is part of an answer's name; a key is not."
    monkeypatch.setenv("MY_KEY", "k")
    plain = dict(url="https://x.example/draw", body={"text": "{prompt}"}, picture="a")
    same = {**plain, "headers": {"X-Key": "$MY_KEY"}}
    others = [{"picture": "b"}, {"file": "https://x.example/{name}"}, {"headers": {"X-Model": "m"}}]
    names = [
        ServiceSuspect(Recipe(**{**plain, **change})).kept_as("a fox", 1)
        for change in [{}, *others]
    ]
    assert len(set(names)) == 4
    assert ServiceSuspect(Recipe(**same)).kept_as("a fox", 1) == names[0]


def test_a_key_is_told_nobody(service, tmp_path, monkeypatch):
    "Not by a message, a name of a file or a picture of the suspect; and it is sent."
    url, replies, asked = service
    monkeypatch.setenv("MY_KEY", SECRET)
    there = url.rpartition(":")[0] + ":1"  # where nobody listens
    echo = as_json({"error": {"message": f"wrong key {SECRET}"}}, 401)
    replies["POST", "/draw"] = [echo, DRAWN]
    body, headers = {"text": "{prompt}"}, {"X-Key": "$MY_KEY"}
    told = []
    for recipe in (
        Recipe(f"{url}/draw?key=$MY_KEY", body, headers=headers),
        Recipe(f"{there}/draw?key=$MY_KEY", body, headers=headers),
    ):
        suspect = ServiceSuspect(recipe, keep=str(tmp_path / "kept"), tries=1)
        with pytest.raises(ValueError) as e:
            ask(suspect, ["a fox"], [1])
        told += [str(e.value), repr(e.value.__cause__), repr(suspect), str(suspect.recipe)]
    suspect = HTTPSuspect(f"{there}/draw?key=sk-a", tries=1)
    with pytest.raises(ValueError) as e:
        ask(suspect, ["a fox"], [1])
    told += [str(e.value), repr(suspect)]
    ask(ServiceSuspect(replace_url(url), keep=str(tmp_path / "kept"), tries=1), ["a fox"], [1])
    told += [p.name for p in (tmp_path / "kept").iterdir()]
    assert len(told) == 11 and "wrong key …" in told[0]
    assert not [t for t in told if "sk-a" in t or "a%2Fb" in t or "a/b" in t], told
    method, path, headers, body = asked[-1]
    assert headers["X-Key"] == SECRET and "key=sk-a" in path and body == {"text": "a fox"}


def replace_url(url):
    return Recipe(f"{url}/draw?key=$MY_KEY", {"text": "{prompt}"}, headers={"X-Key": "$MY_KEY"})


def test_a_new_key_finds_the_old_answers():
    a, b, c = (f"https://x.example/draw?{q}" for q in ("key=1&model=a", "key=2&model=a", "model=b"))
    assert identity(a) == identity(b) != identity(c) and identity("http://x/y") == "http://x/y"
    assert identity("https://me:secret@x.example/") == "https://x.example/"
    assert shown("https://me:secret@x.example/a?key=1#b") == "https://x.example/a?…"
    assert "secret" not in scrubbed("http://me:secret@x and se%63ret", ["se%63ret"])


# Yes, no and later


@pytest.fixture
def slept(monkeypatch):
    "How long was slept between attempts; nobody does."
    pauses = []
    clock = SimpleNamespace(sleep=pauses.append, monotonic=time.monotonic)
    monkeypatch.setattr("trainprove_nb.suspects.patience.time", clock)
    return pauses


def in_seconds(seconds):
    return formatdate(time.time() + seconds, usegmt=True)


@pytest.mark.parametrize(
    "reply, waited",
    [
        (dict(status=429, Retry_After="7"), 7),
        (lambda: dict(status=503, Retry_After=in_seconds(60)), 60),
        (as_json({"error": "loading", "estimated_time": 12.5}, 503), 12.5),
    ],
)
def test_a_service_is_asked_again_when_it_says(service, slept, reply, waited):
    url, replies, asked = service
    replies["POST", "/"] = [reply() if callable(reply) else reply, DRAWN]
    assert ask(HTTPSuspect(url + "/"), ["a fox"], [1]).shape == (1, 8, 8, 3)
    assert len(asked) == 2 and slept[0] == 0 and slept[1] == pytest.approx(waited, abs=2)


def test_pauses_grow_and_differ_by_chance(service, slept):
    url, replies, _ = service
    replies["POST", "/"] = dict(status=500)
    for _ in range(10):
        refused(lambda: ask(HTTPSuspect(url + "/", tries=4), ["a fox"], [1]), "4 tries", "500")
    pauses = np.array([s for s in slept if s]).reshape(10, 3)
    for k, (low, high) in enumerate(((0.5, 1.5), (1, 3), (2, 6))):
        assert (low <= pauses[:, k]).all() and (pauses[:, k] <= high).all()
        assert len(set(pauses[:, k])) > 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_no_is_not_asked_again(service, status):
    url, replies, asked = service
    replies["POST", "/"] = as_json({"detail": "not that prompt"}, status)
    says = "in 1 try ", str(status), "not that prompt"
    refused(lambda: ask(HTTPSuspect(url + "/", pause=0.01), ["a fox"], [1]), *says)
    assert len(asked) == 1


def test_who_asks_to_wait_too_long_is_left(service):
    url, replies, asked = service
    replies["POST", "/"] = dict(status=503, Retry_After="7200")
    refused(lambda: ask(HTTPSuspect(url + "/"), ["a fox"], [1]), "again in 120 minutes")
    assert len(asked) == 1


def sized(side):
    "A small PNG whose head says that it is so many pixels wide and high."
    data = png()
    head = data[12:16] + side.to_bytes(4, "big") * 2 + data[24:29]
    return data[:12] + head + zlib.crc32(head).to_bytes(4, "big") + data[33:]


def test_a_bomb_is_not_unfolded(service):
    "A picture that says to have 400 or 100 million pixels; and a file that starts a program."
    url, replies, _ = service
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    for data, says in (
        (sized(20000), "too many pixels"),
        (sized(10000), "10000×10000 pixels are more than"),
        (program, "not a picture"),
    ):
        replies["POST", "/"] = dict(data=data, kind="image/png")
        refused(lambda: ask(HTTPSuspect(url + "/", tries=1), ["a fox"], [1]), says)


def test_many_at_once_at_a_pace_and_within_a_budget(service, tmp_path):
    url, replies, asked = service
    here, most, lock = [], [], threading.Lock()

    def busy(handler):
        with lock:
            here.append(1)
            most.append(len(here))
        time.sleep(0.05)
        with lock:
            here.pop()
        handler.say(**DRAWN)

    replies["POST", "/"] = busy
    pace = Pace(at_once=3, budget=8)
    suspect = HTTPSuspect(url + "/", keep=str(tmp_path / "kept"), pace=pace)
    prompts = [f"prompt {k % 6}" for k in range(12)]
    assert len(ask(suspect, prompts, [0] * 12)) == 12
    assert len(asked) == 6 and max(most) == 3  # what is kept is asked once, and costs nothing
    refused(
        lambda: ask(suspect, [f"another {k}" for k in range(6)], [0] * 6),
        "budget of 8",
        "gathered is in .*kept",
    )
    assert len(asked) == 8 and len(list((tmp_path / "kept").glob("*.png"))) == 8
    started = time.monotonic()
    ask(HTTPSuspect(url + "/", pace=Pace(per_minute=600)), prompts[:4], range(4))
    assert 0.29 < time.monotonic() - started < 2
    refused(lambda: Pace(at_once=0), "at_once = 0", "above 0")


# Recipes


KEYS = dict(OPENAI_API_KEY="sk-o", REPLICATE_API_TOKEN="r8-r", HF_TOKEN="hf-h")


@pytest.fixture
def keys(monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


def asked_by(recipe, path, service, prompts=("a fox", 'a "red" {bun}'), **options):
    "What a ready recipe answers and sends, at a service on this machine."
    url, _, asked = service
    suspect = ServiceSuspect(recipe, url=url + path, tries=1, **options)
    answers = ask(suspect, list(prompts), range(7, 7 + len(prompts)))
    assert (answers == np.asarray(image())).all()
    return [a[3] for a in asked if a[0] == "POST"]


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("where", ["b64_json", "url"])
def test_recipe_of_openai_images(service, where):
    url, replies, asked = service
    there = url.replace("127.0.0.1", "localhost")
    os.environ["NO_PROXY"] = "127.0.0.1,localhost"
    found = {"b64_json": b64(png()), "url": f"{there}/files/1.png"}[where]
    replies["POST", "/v1/images/generations"] = as_json({"created": 1, "data": [{where: found}]})
    replies["GET", "/files/1.png"] = DRAWN
    bodies = asked_by("openai-images", "/v1/images/generations", service, size=512)
    assert bodies == [
        {"model": "gpt-image-1", "prompt": p, "n": 1, "size": "512x512"}
        for p in ("a fox", 'a "red" {bun}')
    ]
    assert asked[0][2]["Authorization"] == "Bearer sk-o"
    assert not [a for a in asked if a[0] == "GET" and "Authorization" in a[2]]


def test_recipe_of_automatic1111(service):
    _, replies, _ = service
    letters = [b64(png()), f"data:image/png;base64,{b64(png())}"]
    path = "/sdapi/v1/txt2img"
    replies["POST", path] = [as_json({"images": [x], "info": "{}"}) for x in letters]
    body, _ = asked_by("automatic1111", path, service, size=64, steps=4, guidance=1.5)
    expected = dict(steps=4, cfg_scale=1.5, width=64, height=64)
    assert body == {"prompt": "a fox", "seed": 7, **expected}


@pytest.mark.usefixtures("keys")
def test_recipe_of_huggingface(service):
    _, replies, asked = service
    replies["POST", "/models/somebody/tiny"] = dict(data=png(), kind="image/jpeg")
    body, _ = asked_by("huggingface", "/models/{model}", service, model="somebody/tiny")
    assert body == {"inputs": "a fox", "parameters": {"seed": 7}}
    assert asked[0][2]["Authorization"] == "Bearer hf-h"


def polling(recipe, **settings):
    settings = {"every": 0.01, **settings}
    return replaced(recipe, poll=replaced(recipe.poll, **settings))


def replaced(record, **values):
    return type(record)(**{**record.__dict__, **values})


def test_recipe_of_comfyui(service):
    _, replies, asked = service
    replies["POST", "/prompt"] = as_json({"prompt_id": "x/1", "number": 1, "node_errors": {}})
    pictured = {"filename": "a b.png", "subfolder": "", "type": "output"}
    preview = pictured | {"type": "temp"}
    done = {
        "x/1": {
            "outputs": {"9": {"images": [preview, pictured]}},
            "status": {"status_str": "success", "completed": True},
        }
    }
    replies["GET", "/history/x%2F1"] = [as_json({}), as_json(done)]
    replies["GET", "/view"] = DRAWN
    workflow = {"6": {"inputs": {"text": "{prompt}, 4k"}}, "3": {"inputs": {"seed": "{seed}"}}}
    recipe = polling(RECIPES["comfyui"])
    body, _ = asked_by(recipe, "/prompt", service, workflow=workflow)
    assert body == {
        "prompt": {"6": {"inputs": {"text": "a fox, 4k"}}, "3": {"inputs": {"seed": 7}}}
    }
    assert "/view?filename=a%20b.png&subfolder=&type=output" in [a[1] for a in asked]


def replicate(service, *states, **settings):
    "The ready recipe, and a service that says one state after another."
    url, replies, _ = service
    said = [as_json({"id": "1", "urls": {"get": f"{url}/jobs/1"}, **s}) for s in states]
    replies["POST", "/models/a/b/predictions"] = said[0]
    replies["GET", "/jobs/1"] = said[1:] or said
    return polling(RECIPES["replicate"], **settings), "/models/{model}/predictions"


@pytest.mark.usefixtures("keys")
def test_recipe_of_replicate(service):
    url, replies, asked = service
    done = {"status": "succeeded", "output": [f"{url}/1.png"]}
    states = {"status": "starting"}, {"status": "processing"}, done
    recipe, path = replicate(service, *states)
    replies["GET", "/1.png"] = [dict(status=500), DRAWN]
    suspect = ServiceSuspect(recipe, url=url + path, model="a/b", pause=0.01)
    assert ask(suspect, ["a fox"], [7]).shape == (1, 8, 8, 3)
    # the picture was fetched again, and the question was not put again
    assert [a[0] for a in asked] == ["POST", "GET", "GET", "GET", "GET"]
    assert {a[2]["Authorization"] for a in asked} == {"Bearer r8-r"}


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize(
    "states, settings, says",
    [
        ([{"status": "failed", "error": "NSFW content"}], {}, "it is failed: NSFW content"),
        ([{"status": "starting"}], {"patience": 0.1}, "still 'starting' after 0.1 s"),
        ([{"status": "succeeded", "output": None}], {}, "no text at output"),
        ([{"status": "starting", "urls": {}}], {}, "no urls.get"),
        ([{"status": "succeeded", "output": "/lost.png"}], {}, "/lost.png: 500 Internal"),
    ],
)
def test_a_service_that_will_not_be_done(service, states, settings, says):
    url, replies, asked = service
    recipe, path = replicate(service, *states, **settings)
    replies["GET", "/lost.png"] = dict(status=500)
    suspect = ServiceSuspect(recipe, url=url + path, model="a/b", pause=0.01)
    refused(lambda: ask(suspect, ["a fox"], [7]), "gave no picture to 'a fox' in 1 try", says)
    assert sum(a[0] == "POST" for a in asked) == 1


PLAIN = Recipe("http://127.0.0.1/draw", {"text": "{prompt}"}, picture="image")
BAD_RECIPES = {
    "no prompt": (dict(body={"text": "a fox"}), {}, "sends no {prompt}"),
    "no value": (dict(body={"text": "{prompt}", "m": "{model}"}), {}, "give model="),
    "no key": (dict(headers={"X": "$NO_SUCH_KEY"}), {}, "no NO_SUCH_KEY in the environment"),
    "written key": (dict(headers={"Authorization": "Bearer a"}), {}, "Authorization.*written out"),
    "written in address": (dict(url="http://a/b?api_key=a"), {}, "http://a/b?….*written out"),
    "no path": (dict(picture="data["), {}, "no JMESPath"),
    "no address": (dict(url="ftp://a/b"), {}, "http://"),
    "no name": ("midjourney", {}, "unknown recipe 'midjourney': choose from openai-images"),
}


@pytest.mark.parametrize("name", BAD_RECIPES)
def test_a_recipe_that_cannot_be_used_is_refused_at_once(name):
    change, options, says = BAD_RECIPES[name]
    recipe = change if isinstance(change, str) else replaced(PLAIN, **change)
    refused(lambda: ServiceSuspect(recipe, **options), says.replace("?", r"\?").replace("{", r"\{"))


def test_a_recipe_in_a_file(service, tmp_path):
    url, replies, asked = service
    replies["POST", "/draw"] = as_json({"out": {"picture": "/files/1.png"}})
    replies["GET", "/files/1.png"] = DRAWN
    file = tmp_path / "mine.json"
    told = {"url": f"{url}/draw", "body": {"q": ["{prompt}", "{seed}"]}, "picture": "out.picture"}
    file.write_text(json.dumps(told))
    suspect = open_suspect(str(file), keep=str(tmp_path / "kept"))
    assert ask(suspect, ["a fox"], [7]).shape == (1, 8, 8, 3)
    assert asked[0][3] == {"q": ["a fox", 7]}
    ask(suspect, ["a fox"], [7])
    assert len(asked) == 2
    file.write_text('{"adress": "http://a"}')
    refused(lambda: open_suspect(str(file)), "mine.json is no recipe", "url, body")


@pytest.mark.parametrize(
    "reply, says",
    [
        (as_json({"error": "out of credit"}), "it says: out of credit"),
        (as_json({"picture": "aGk="}), "no text at image, and says nothing else"),
        (as_json({"image": "no letters!"}), "neither base64 nor an address"),
        (as_json({"image": "aGk="}), "not a picture"),
        (dict(data=b"<html>", kind="text/html"), "text/html.* is no JSON"),
        (as_json({"image": "file:///etc/passwd"}), "neither base64"),
    ],
)
def test_a_reply_without_a_picture_is_told_in_the_services_words(service, reply, says):
    url, replies, _ = service
    replies["POST", "/draw"] = reply
    suspect = ServiceSuspect(replaced(PLAIN, url=f"{url}/draw"), tries=1)
    refused(lambda: ask(suspect, ["a fox"], [7]), re.escape(f"{url}/draw"), "'a fox'", says)


@pytest.mark.parametrize(
    "given, kind",
    [
        ("https://example.com/draw", "address"),
        ("replicate", "recipe"),
        ("mini-v1", "model"),
        ("owner/model", "model"),
    ],
)
def test_what_is_given_is_told_by_looking(given, kind):
    assert suspect_kind(given) == kind


def test_a_local_model_is_opened_with_its_own_settings():
    suspect = open_suspect("mini-lcm", guidance=3.0)
    assert isinstance(suspect, PipelineSuspect)
    assert suspect.settings == {"steps": 4, "guidance": 3.0, "size": 32}
