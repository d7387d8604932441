"""Fine-tuning beside diffusers' own script, in processor seconds a step: `python tools/against_script.py SCRIPT`.

SCRIPT is train_text_to_image.py of diffusers' repository, in examples/text_to_image, at the tag of the installed
version. Both train a model of Stable Diffusion's shape with every width divided by four, on 256 pixels, two
pictures a step, one thread."""

import argparse
import json
import os
import resource
import runpy
import statistics
import subprocess
import sys
import types
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from trainprove_nb.data.corpora import corpus
from trainprove_nb.data.folders import read_pairs
from trainprove_nb.models.finetune import finetune
from trainprove_nb.models.pipelines import load_model

SIDE, BATCH, RATE, PICTURES = 256, 2, 1e-5, 16
CROSS = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")


def unet():
    "Stable Diffusion's network: 320, 640, 1280 and 1280 channels, by four."
    return UNet2DConditionModel(
        sample_size=SIDE // 8,
        block_out_channels=(80, 160, 320, 320),
        down_block_types=(*[CROSS[0]] * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *[CROSS[1]] * 3),
        cross_attention_dim=192,
        attention_head_dim=8,  # which in this class is the number of heads
        norm_num_groups=16,
    )


def autoencoder():
    "Its autoencoder: 128, 256, 512 and 512 channels, by four."
    return AutoencoderKL(
        block_out_channels=(32, 64, 128, 128),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
        norm_num_groups=16,
    )


def text_encoder(tokenizer):
    "Its text encoder: 768 numbers a word, by four."
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos")}
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=12,
        num_attention_heads=3,
        max_position_embeddings=tokenizer.model_max_length,
        pad_token_id=tokenizer.pad_token_id,
        **ids,
    )
    return CLIPTextModel(config)


def write_model(folder):
    "An untrained pipeline of that shape."
    torch.manual_seed(0)
    tokenizer = load_model("mini-v1").tokenizer
    noising = DDPMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)
    pipe = StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=unet(),
        scheduler=noising,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)


def write_pictures(folder):
    "A folder as `datasets` reads it."
    folder.mkdir()
    found = corpus("emoji", "evaluation", PICTURES, SIDE)
    rows = []
    for k, (image, text) in enumerate(zip(found["image"], found["text"], strict=True)):
        image.save(folder / f"{k}.png")
        rows.append(json.dumps({"file_name": f"{k}.png", "text": text}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))


def _chain(steps):
    def through(image):
        for step in steps:
            image = step(image)
        return image

    return through


def stand_in():
    "What the script asks of torchvision, for pictures that have the right size already."
    same, t = (lambda *args, **kwargs: lambda x: x), types.ModuleType("torchvision.transforms")
    t.Compose, t.Lambda = _chain, lambda function: function
    t.Resize = t.CenterCrop = t.RandomCrop = t.RandomHorizontalFlip = same
    t.InterpolationMode = types.SimpleNamespace(LANCZOS=Image.LANCZOS)
    t.ToTensor = lambda: lambda image: torch.tensor(np.array(image)).permute(2, 0, 1).float() / 255
    t.Normalize = lambda mean, deviation: lambda x: 2 * x - 1
    vision = types.ModuleType("torchvision")
    vision.transforms = t
    sys.modules |= {"torchvision": vision, "torchvision.transforms": t}


def run_script(script, folder, steps):
    "The script itself, in this process."
    try:
        import torchvision  # noqa: F401
    except ImportError:
        stand_in()
    sys.argv = [
        script,
        f"--pretrained_model_name_or_path={folder}/model",
        f"--train_data_dir={folder}/pictures",
        f"--resolution={SIDE}",
        f"--train_batch_size={BATCH}",
        f"--max_train_steps={steps}",
        f"--learning_rate={RATE}",
        f"--output_dir={folder}/out",
        "--report_to=all",
        "--seed=0",
    ]
    runpy.run_path(script, run_name="__main__")


def run_ours(script, folder, steps):
    "The same with this package."
    pipe, pairs = load_model(f"{folder}/model"), read_pairs(f"{folder}/pictures", SIDE)
    finetune(pipe, pairs, steps=steps, batch_size=BATCH, lr=RATE)


WAYS = {"script": run_script, "ours": run_ours}


def processor_seconds(way, script, folder, steps):
    "Of a process that trains for so many steps."
    command = [
        sys.executable,
        __file__,
        script,
        "--way",
        way,
        "--steps",
        str(steps),
        "--in",
        folder,
    ]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def a_step(way, script, folder, steps):
    "Processor seconds of one step: a long run less a short one."
    few, many = (processor_seconds(way, script, folder, n) for n in (2, 2 + steps))
    return (many - few) / steps


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("script", help="diffusers' train_text_to_image.py")
    parser.add_argument("--repeats", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--in", dest="folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        torch.set_num_threads(1)
        return WAYS[args.way](args.script, args.folder, args.steps)
    with TemporaryDirectory() as folder:
        write_model(f"{folder}/model")
        write_pictures(Path(folder) / "pictures")
        ratios = []
        for _ in range(args.repeats):
            script, ours = (a_step(way, args.script, folder, args.steps) for way in WAYS)
            ratios.append(script / ours)
            print(f"script {script:.2f} s, ours {ours:.2f} s, ratio {ratios[-1]:.2f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
