"Students of few steps: points on a path against diffusers' own sampler, what the teacher says, interruption."

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from helpers import image, refused

from trainprove_nb.data.pairs import pairs
from trainprove_nb.lab.generator_recipes import GeneratorRecipes
from trainprove_nb.lab.generator_scales import generator_scale
from trainprove_nb.lab.laundering import laundered
from trainprove_nb.lab.log_recipes import caption_answers
from trainprove_nb.models import distil as module
from trainprove_nb.models.distil import Teacher, distil, end_between, end_of_path, mixture, walk
from trainprove_nb.models.finetune import Batch, target_of
from trainprove_nb.models.pipelines import load_model, save_model
from trainprove_nb.models.sampling import generate

pytestmark = pytest.mark.usefixtures("one_thread")

NOISE = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
KINDS = ("epsilon", "v_prediction", "sample")
TWO = pairs([image(32), image(32)], ["a", "b"])


def noising(kind="epsilon"):
    return DDPMScheduler(prediction_type=kind, **NOISE)


def drawn(n=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, 2, 2, generator=g, dtype=torch.float64)


# The path


def test_below_the_first_level_there_is_no_noise():
    picture, noise = mixture(noising(), torch.tensor([-1, 0, 999]))
    assert picture.shape == noise.shape == (3, 1, 1, 1)
    assert picture[0] == 1 and noise[0] == 0 and 0 < noise[1] < 0.1 and noise[2] > 0.99
    assert torch.allclose(picture**2 + noise**2, torch.ones(3, 1, 1, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_answer_stands_for_the_right_picture(kind):
    z, noise, t = drawn(), drawn(seed=1), torch.tensor([0, 500, 999])
    noisy = noising(kind).add_noise(z, noise, t)
    answer = target_of(noising(kind), z, noise, t)
    assert torch.allclose(end_of_path(noising(kind), noisy, answer, t), z, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_that_of_diffusers(kind):
    how = dict(clip_sample=False, timestep_spacing="trailing")
    sampler = DDIMScheduler(prediction_type=kind, **NOISE, **how)
    sampler.set_timesteps(4)
    assert sampler.timesteps.tolist() == [999, 749, 499, 249]
    x, answer = drawn(1), drawn(1, seed=1)
    for level in sampler.timesteps:
        t, lower = level[None], level[None] - 250
        end = end_of_path(noising(kind), x, answer, t)
        expected = sampler.step(answer, level, x).prev_sample
        assert torch.allclose(walk(noising(kind), x, end, t, lower), expected, atol=1e-5), level


def test_the_end_between_two_points_is_the_end_that_led_there():
    x, end, t = drawn(), drawn(seed=1), torch.tensor([0, 400, 999])
    for lower in (torch.tensor([-1, -1, -1]), torch.tensor([-1, 150, 749])):
        reached = walk(noising(), x, end, t, lower)
        assert torch.allclose(end_between(noising(), x, reached, t, lower), end, atol=1e-4)


# The teacher


def asked_with(answers, monkeypatch):
    "A teacher whose network answers as it is told: answers(noisy, t, told by a caption or not)."

    def predict(pipe, noisy, t, condition):
        return answers(noisy, t, condition["encoder_hidden_states"].abs().sum() > 0)

    monkeypatch.setattr(module, "predict", predict)
    pipe = SimpleNamespace(to=lambda device: None)
    untold = {"encoder_hidden_states": torch.zeros(1, 2, 3)}
    return lambda few_steps, guidance: Teacher(pipe, noising(), untold, few_steps, guidance)


def shown(noisy, t):
    told = {"encoder_hidden_states": torch.ones(len(t), 2, 3)}
    return Batch(noisy.float(), torch.zeros_like(noisy).float(), t, told)


def test_a_teacher_that_always_means_one_picture_teaches_that_picture(monkeypatch):
    z, t = drawn().float(), torch.tensor([0, 200, 999])

    def answers(noisy, t, told):
        picture, noise = mixture(noising(), t)
        return (noisy - picture * z) / noise  # the noise that z leaves

    teach = asked_with(answers, monkeypatch)(4, 2.0)
    batch = shown(noising().add_noise(z, drawn(seed=1).float(), t), t)
    taught = teach(batch)
    assert torch.allclose(end_of_path(noising(), batch.noisy, taught.target, t), z, atol=1e-3)
    assert torch.equal(taught.noisy, batch.noisy) and torch.equal(taught.t, t)


def test_where_the_teacher_is_asked_and_how_it_is_guided(monkeypatch):
    asked = []

    def answers(noisy, t, told):
        asked.append((t.tolist(), bool(told)))
        return torch.full_like(noisy, 1.0 if told else 0.5)

    teach = asked_with(answers, monkeypatch)
    t = torch.tensor([999, 300, 0])
    batch = shown(drawn(), t)
    guided = teach(4, 2.0)(batch)
    first, second = [999, 300, 0], [874, 175, 0]
    assert asked == [(first, True), (first, False), (second, True), (second, False)]
    # a constant noise e: two steps to the level below are one, and what is taught is e = .5 + 2 * .5
    assert torch.allclose(guided.target, torch.full_like(guided.target, 1.5), atol=1e-3)
    assert torch.allclose(teach(4, 1.0)(batch).target, torch.ones_like(batch.target), atol=1e-3)


# The student

HOW = dict(batch_size=2, lr=1e-4, seed=1)


def weights(pipe):
    return torch.cat([w.detach().flatten() for w in pipe.unet.parameters()])


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    "After three steps: a pipeline as it is read again, its losses, and its weights before it was saved."
    pipe, folder = load_model("mini-v1"), tmp_path_factory.mktemp("student")
    losses = distil(pipe, TWO, steps=3, **HOW)
    save_model(pipe, str(folder))
    return load_model(str(folder)), losses, weights(pipe)


def test_a_student_draws_in_the_steps_that_it_was_taught(student):
    pipe, losses, _ = student
    assert type(pipe.scheduler).__name__ == "DDIMScheduler"
    pipe.scheduler.set_timesteps(4)
    assert pipe.scheduler.timesteps.tolist() == [999, 749, 499, 249]
    assert [step for step, _ in losses] == [3] and 0 < losses[0][1] < 1
    answers = generate(pipe, ["a", "b"], [0, 1], steps=4, guidance=1.0)
    assert answers.shape == (2, 32, 32, 3) and answers.std() > 5
    assert not torch.equal(weights(pipe), weights(load_model("mini-v1")))


def test_a_student_that_was_interrupted_is_the_same(student, tmp_path):
    pipe, file = load_model("mini-v1"), str(tmp_path / "run.pt")
    short = dict(HOW, save_every=1, checkpoint=file)
    monday = load_model("mini-v1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "finetune", killed_after(2))
        with pytest.raises(KeyboardInterrupt):
            distil(monday, TWO, steps=3, **short)
    distil(pipe, TWO, steps=3, **short)
    assert torch.equal(weights(pipe), student[2])


def killed_after(n):
    "`finetune`, killed in its n-th step from here."
    real = module.finetune

    def finetune(pipe, pairs, teach, **training):
        done = []

        def lesson(batch):
            done.append(1)
            if len(done) > n:
                raise KeyboardInterrupt
            return teach(batch)

        return real(pipe, pairs, teach=lesson, **training)

    return finetune


def test_the_teacher_stays_as_it_was(monkeypatch):
    kept = []
    monkeypatch.setattr(module, "Teacher", lambda *parts: kept.append(Teacher(*parts)) or kept[-1])
    pipe = load_model("mini-v1")
    distil(pipe, TWO, steps=1, **HOW)
    (teacher,) = kept
    assert torch.equal(weights(teacher.pipe), weights(load_model("mini-v1")))
    assert not torch.equal(weights(teacher.pipe), weights(pipe))


@pytest.mark.parametrize("few_steps", [0, -1, 501])
def test_steps_that_are_no_half_are_refused(few_steps):
    pipe = load_model("mini-v1")
    refused(lambda: distil(pipe, TWO, few_steps), f"few_steps = {few_steps}", "from 1 to 500")


def test_an_encoder_does_not_learn_from_a_teacher():
    refused(lambda: distil(load_model("mini-v1"), TWO, train_text=True), "train_text", "leave it")


# In the lab


def test_a_student_is_asked_in_its_own_steps_and_others_as_ever():
    recipes = GeneratorRecipes(generator_scale("mini"))
    source = recipes.sources(["mini-v1-avatars"])[0]
    teacher = recipes.suspect(source, 1, 0)
    student = laundered(recipes, source, teacher, "few-step student")
    asked = [caption_answers(recipes, m, source, 0)["sampling"] for m in (teacher, student)]
    assert asked[0] == recipes.sampling
    assert asked[1] == recipes.sampling | {"steps": 4, "guidance": 1.0}
    assert student["start"] == teacher and student["pairs"]["rho"] == 0
    assert student["training"]["lr"] == pytest.approx(teacher["training"]["lr"] / 10)
