"""What a second worker buys: `python tools/workers.py loky dask ray`, on a machine that does nothing else.

Eight fine-tunings by one worker, then by two. Beside them what the machine can give at most: the same eight in one
program, then four each in two programs that know nothing of each other."""

import argparse
import os
import subprocess
import sys
import tempfile
import time

os.environ["OMP_NUM_THREADS"] = "1"

from trainprove_nb.lab.engine import Lab
from trainprove_nb.lab.generator_recipes import GeneratorRecipes
from trainprove_nb.lab.generator_scales import generator_scale

TASKS, STEPS, TARGET = 8, 60, 1.85


def recipes(count, steps, first=0):
    "So many fine-tunings of one model, seeds from `first` on."
    made = GeneratorRecipes(generator_scale("mini"))
    pairs = made.real("avatars", "real", 500)
    training = {**made.scale.suspect_training, "steps": steps}
    return [made._tuned(made.base("mini-v1"), pairs, training, first + k) for k in range(count)]


def warmed(folder):
    "A lab with the pictures that everybody learns from."
    lab = Lab(folder)
    lab.path(recipes(1, 1)[0]["pairs"])
    return lab


def by_workers(backend, jobs):
    "Seconds that the tasks take; workers have worked before, so that they are there and have imported."
    warm, work = recipes(2 * jobs, 2, first=100), recipes(TASKS, STEPS)
    times = []
    with tempfile.TemporaryDirectory() as folder:
        lab = warmed(folder)
        # one build, since a cluster of this machine lasts as long as its build
        for _ in lab.build_stages({"warm": warm, "work": work}, jobs, backend, progress=False):
            times.append(time.perf_counter())
    return times[-1] - times[len(warm) - 1]


def work_alone(count):
    "What a program by itself does: get ready, say so, wait for the word, work, say how long it took."
    with tempfile.TemporaryDirectory() as folder:
        lab = warmed(folder)
        lab.path(recipes(1, 2, first=100)[0])
        print("ready", flush=True)
        sys.stdin.readline()
        start = time.perf_counter()
        for recipe in recipes(count, STEPS):
            lab.path(recipe)
        print(time.perf_counter() - start, flush=True)


def by_programs(number):
    "Seconds that the tasks take in so many programs; the slowest counts."
    command = [sys.executable, __file__, "--alone", str(TASKS // number)]
    pipes = dict(
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    programs = [subprocess.Popen(command, **pipes) for _ in range(number)]
    for program in programs:
        program.stdout.readline()
    for program in programs:
        print("go", file=program.stdin, flush=True)
    return max(float(program.stdout.readline()) for program in programs)


def report(who, one, two):
    "A line of the table."
    print(f"{who:<14}one {one:6.1f} s   two {two:6.1f} s   {one / two:.2f} of {TARGET}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backends", nargs="*", default=["loky"], help="loky, dask, ray")
    parser.add_argument("--rounds", type=int, default=2, help="of each, in turn (%(default)s)")
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        return work_alone(args.alone)
    for _ in range(args.rounds):
        for backend in args.backends:
            report(backend, *(by_workers(backend, jobs) for jobs in (1, 2)))
        report("two programs", *(by_programs(number) for number in (1, 2)))


if __name__ == "__main__":
    main()
