"What bfloat16 saves on this machine, as ratios of processor time: `python tools/precision.py`. Single thread."

import statistics
from functools import partial

import torch
from benchmark import seconds

from trainprove_nb.data.corpora import corpus
from trainprove_nb.evidence.denoising import denoising_losses
from trainprove_nb.evidence.restoring import PipelineRestorer, restoring_losses
from trainprove_nb.models.bundled import MINI
from trainprove_nb.models.finetune import finetune
from trainprove_nb.models.pipelines import load_model
from trainprove_nb.models.sampling import fast_precision, generate

ROUNDS, PICTURES = 5, 50


def works(name):
    "What the mini lab does for most of its time: a function of the precision for each."
    shown = corpus("avatars", "evaluation", PICTURES)
    model, learner, texts = load_model(name), load_model(name), list(shown["text"])

    def restored(precision):
        restoring_losses(PipelineRestorer(model, mixed_precision=precision), shown, texts)

    return {
        "fine-tuning": lambda p: finetune(learner, shown, 5, 16, mixed_precision=p),
        "sampling": lambda p: generate(model, texts, range(PICTURES), 5, mixed_precision=p),
        "denoising losses": lambda p: denoising_losses(model, shown, texts, mixed_precision=p),
        "restoring": restored,
    }


def ratio(work) -> float:
    "Processor time in bf16 by that in float32, in the median of some rounds."
    ways = [partial(work, precision) for precision in ("bf16", "no")]
    for way in ways:
        way()  # whatever is done once
    rounds = [[seconds(way)[1] for way in ways] for _ in range(ROUNDS)]
    return statistics.median(fast / usual for fast, usual in rounds)


def main():
    torch.set_num_threads(1)
    print(f"The lab computes in {fast_precision()!r} here. bf16 / float32:")
    for name in MINI:
        for label, work in works(name).items():
            print(f"{name:<10}{label:<20}{ratio(work):>6.2f}", flush=True)


if __name__ == "__main__":
    main()
