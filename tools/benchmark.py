"What the package adds to the bare work of its models, as ratios: `python tools/benchmark.py`. Single thread, float32."

import argparse
import statistics
import time

import torch
from diffusers import DDPMScheduler

from trainprove_nb.data.corpora import corpus
from trainprove_nb.models.bundled import MINI
from trainprove_nb.models.encoding import encode_images, encode_texts
from trainprove_nb.models.finetune import finetune, target_of
from trainprove_nb.models.pipelines import load_model
from trainprove_nb.models.sampling import generate

BATCH, GUIDANCE, TARGET = 32, 2.0, 1.15


def seconds(work):
    "Wall-clock and processor time; where other programs run too, the second is the steadier."
    start = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def training(name, steps):
    "Two ways to train on one batch: `finetune`, and forward, backward and AdamW alone."
    pairs = corpus("avatars", "evaluation", BATCH)
    ours, bare = load_model(name), load_model(name)
    latents, condition, g = (
        encode_images(bare, pairs),
        encode_texts(bare, list(pairs["text"])),
        torch.Generator().manual_seed(0),
    )
    noising = DDPMScheduler.from_config(bare.scheduler.config)
    noise, t = torch.randn(latents.shape, generator=g), torch.randint(1000, (BATCH,), generator=g)
    noisy, target = noising.add_noise(latents, noise, t), target_of(noising, latents, noise, t)
    optimizer = torch.optim.AdamW(bare.unet.train().parameters(), lr=5e-4, fused=True)

    def train():
        for _ in range(steps):
            torch.nn.functional.mse_loss(bare.unet(noisy, t, **condition).sample, target).backward()
            optimizer.step()
            optimizer.zero_grad()

    return lambda: finetune(ours, pairs, steps=steps, batch_size=BATCH), train


def sampling(name, steps):
    "Two ways to sample one batch: `generate`, and the UNet calls in it, where guidance doubles the batch."
    pipe, texts = load_model(name), list(corpus("avatars", "evaluation", BATCH)["text"])
    condition, side = encode_texts(pipe, texts + [""] * BATCH), pipe.unet.config.sample_size
    noisy = torch.randn(
        2 * BATCH,
        pipe.unet.config.in_channels,
        side,
        side,
        generator=torch.Generator().manual_seed(0),
    )

    @torch.inference_mode()
    def sample():
        for t in torch.linspace(999, 0, steps):
            pipe.unet(noisy, t, **condition)

    return lambda: generate(
        pipe, texts, range(BATCH), steps=steps, guidance=GUIDANCE, batch_size=BATCH
    ), sample


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--repeats",
        type=int,
        default=5,
        help="times that each of two ways is measured, in turn (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=10,
        help="training or denoising steps each time; what is done once is shared among them (default: %(default)s)",
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"milliseconds a step, medians of {args.repeats} times {args.steps} steps; "
        f"batch {BATCH}; target ratio {TARGET}\n"
    )
    print(f"{'':<20}{'package':>9}{'bare':>9}{'ratio':>8}{'ratio of processor time':>26}")
    for name in MINI:
        for label, pair in (("fine-tuning", training), ("sampling", sampling)):
            ways = pair(name, args.steps)
            for way in ways:
                way()  # the first time is slower
            times = [[seconds(way) for way in ways] for _ in range(args.repeats)]
            ours, bare = (
                1000 * statistics.median(wall for wall, _ in way) / args.steps
                for way in zip(*times, strict=True)
            )
            wall, processor = (
                statistics.median(a[clock] / b[clock] for a, b in times) for clock in (0, 1)
            )
            print(
                f"{f'{name} {label}':<20}{ours:>9.1f}{bare:>9.1f}{wall:>8.2f}{processor:>26.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
