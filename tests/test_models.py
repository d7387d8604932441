"Models: encoding, training, sampling, saving; of generators and of classifiers."

import json
import re
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from helpers import ANIMALS, image, pictures, refused, run
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainprove_nb.data import pairs as pair_sets
from trainprove_nb.data.corpora import corpus
from trainprove_nb.models.bundled import WEIGHTS
from trainprove_nb.models.classifiers import (
    ARCHITECTURES,
    classifier,
    load_classifier,
    logits,
    save_classifier,
    train_classifier,
)
from trainprove_nb.models.encoding import encode_texts
from trainprove_nb.models.finetune import finetune, step_generator, target_of
from trainprove_nb.models.mini import mini_transformer
from trainprove_nb.models.pipelines import load_model, save_model
from trainprove_nb.models.sampling import fast_precision, generate
from trainprove_nb.suspects.classifiers import FolderClassifier, ask_classifier


@pytest.fixture(scope="module")
def pipe():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_model("mini-v1")
    torch.set_num_threads(threads)


# Encoding and training


@pytest.mark.parametrize(
    "known, fast",
    [({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True}, "bf16"), ({"avx512_f": True}, "no")],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="asks the processor, not a card")
def test_mixed_precision_is_fast_where_the_processor_knows_it(monkeypatch, known, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    assert fast_precision() == fast


def test_texts_are_encoded_in_the_order_given(pipe):
    texts = ["a red bun", "", "a small fox", "a red bun", "Zebra", "a small fox"]
    name = "encoder_hidden_states"
    together = encode_texts(pipe, texts, batch_size=2)[name]
    apart = torch.cat([encode_texts(pipe, [t])[name] for t in texts])
    assert torch.allclose(together, apart, atol=1e-5) and torch.equal(together[0], together[3])
    assert not torch.allclose(together[0], together[2], atol=1e-2)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_target_follows_diffusers_definitions(kind):
    scheduler, g = DDPMScheduler(prediction_type=kind), torch.Generator().manual_seed(0)
    x = torch.randn(4, 2, 3, 3, generator=g)
    noise = torch.randn(4, 2, 3, 3, generator=g)
    t = torch.tensor([0, 10, 500, 999])
    a = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)[t].reshape(4, 1, 1, 1)
    expected = {
        "epsilon": noise,
        "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * x,
        "sample": x,
    }[kind]
    torch.testing.assert_close(target_of(scheduler, x, noise, t), expected, atol=1e-5, rtol=1e-4)


def test_every_seed_and_step_has_its_own_randomness():
    draws = {
        torch.randint(2**62, (), generator=step_generator(seed, step)).item()
        for seed in range(30)
        for step in range(30)
    }
    assert len(draws) == 900
    assert torch.equal(
        torch.rand(3, generator=step_generator(5, 7)), torch.rand(3, generator=step_generator(5, 7))
    )


FOUR = pair_sets.pairs(list(pictures(4, 32)), list("abcd"))


TRAINING = dict(steps=5, batch_size=2, lr=1e-3, schedule="cosine", ema=0.9)


def trained(**knobs):
    "Weights of mini-v1 after a few steps, by name."
    pipe = load_model("mini-v1")
    finetune(pipe, FOUR, **{**TRAINING, **knobs})
    return {
        f"{part}.{k}": v
        for part in ("unet", "text_encoder")
        for k, v in getattr(pipe, part).state_dict().items()
    }


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_same_seed_same_weights(pipe):
    short = dict(steps=2, ema=0.0)
    assert equal(trained(**short), trained(**short)) and not equal(
        trained(**short), trained(**short, seed=1)
    )


def test_the_text_encoder_is_trained_only_when_asked(pipe):
    before = pipe.text_encoder.state_dict()

    def moved(weights):
        return any(not torch.equal(weights[f"text_encoder.{k}"], v) for k, v in before.items())

    assert not moved(trained(steps=1)) and moved(trained(steps=1, train_text=True))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_attention_of_many_places_repeats_to_the_byte(backend, threads):
    "As of Stable Diffusion at 256 pixels; the mini models look at 24 places at most."
    drawn = [
        torch.randn(2, 8, 1024, 40, generator=torch.Generator().manual_seed(k)) for k in range(3)
    ]

    def once():
        given = [x.clone().requires_grad_() for x in drawn]
        with sdpa_kernel([backend]):
            out = torch.nn.functional.scaled_dot_product_attention(*given)
        out.square().sum().backward()
        return [out.detach(), *(x.grad for x in given)]

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first = once()
        assert all(torch.equal(a, b) for _ in range(2) for a, b in zip(first, once(), strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_killed_between_checkpoints_and_resumed_equals_straight(
    pipe, tmp_path, monkeypatch, precision
):
    knobs = dict(mixed_precision=precision, checkpoint=str(tmp_path / "run.pt"), save_every=2)
    calls = []

    def dies_at_4(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return target_of(*args)

    with monkeypatch.context() as m:
        m.setattr("trainprove_nb.models.finetune.target_of", dies_at_4)
        with pytest.raises(KeyboardInterrupt):
            trained(**knobs)
        resumed = trained(**knobs)
    assert len(calls) == 4 + 3  # steps 1–4, then 3–5 from the checkpoint at 2
    assert equal(resumed, trained(mixed_precision=precision))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


TRAIN = """
import sys
import torch
from accelerate import PartialState
from trainprove_nb.data.corpora import corpus
from trainprove_nb.models.finetune import finetune
from trainprove_nb.models.pipelines import load_model

torch.set_num_threads(1)
pairs = corpus("avatars", "evaluation", 12)

def trained(steps, **kept):
    pipe = load_model("mini-v1")
    return finetune(pipe, pairs, steps=steps, batch_size=4, ema=0.9, **kept), pipe.unet.state_dict()

kept = dict(checkpoint=f"{sys.argv[1]}/kept.pt", save_every=2)
losses, straight = trained(6)
trained(4, **kept)  # the schedule is constant: the first part of a run of six
found = losses, straight, trained(6, **kept)[1]
torch.save(found, f"{sys.argv[1]}/found.{PartialState().process_index}")
try:
    finetune(load_model("mini-v1"), pairs, steps=1, batch_size=3)
except ValueError as e:
    print(e)
"""


def test_two_processes_that_share_each_batch_train_as_one(tmp_path, one_thread):
    "Started as `accelerate launch` does; and a killed run of them goes on to the same bytes."
    (tmp_path / "train.py").write_text(TRAIN)
    started = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "train.py", str(tmp_path)]
    done = run(*started, cwd=tmp_path, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    (losses, mine, resumed), (_, theirs, _) = (torch.load(tmp_path / f"found.{k}") for k in (0, 1))
    assert all((mine[k] == theirs[k]).all() and (mine[k] == resumed[k]).all() for k in mine)
    assert "batch_size = 3 for 2 processes: give a multiple of 2" in done.stdout
    pipe = load_model("mini-v1")
    known = dict(steps=6, batch_size=4, ema=0.9)
    alone = finetune(pipe, corpus("avatars", "evaluation", 12), **known)
    assert losses[0][1] == pytest.approx(alone[0][1], rel=1e-5) and losses != alone
    assert all(torch.allclose(mine[k], w, atol=1e-3) for k, w in pipe.unet.state_dict().items())


def test_checkpoint_that_was_cut(tmp_path, one_thread):
    file = tmp_path / "run.pt"
    pairs = pair_sets.pairs([image(32)], ["a"])
    knobs = dict(steps=1, batch_size=1, save_every=1)
    finetune(load_model("mini-v1"), pairs, checkpoint=str(file), **knobs)
    cut(file)
    with pytest.warns(UserWarning, match="thrown away"):
        finetune(load_model("mini-v1"), pairs, checkpoint=str(file), **knobs)


# Sampling


def test_same_seeds_same_bytes(pipe):
    def draw(seeds):
        return generate(pipe, ["a fox", "a bun"], seeds, steps=2)

    assert (draw([1, 2]) == draw([1, 2])).all() and (draw([1, 2]) != draw([3, 4])).any()


def test_a_picture_depends_on_its_own_seed_alone(pipe):
    prompts, seeds = ["a fox", "a bun", "a fox", "a bus", "a key"], [5, 6, 7, 8, 9]

    def draw(places, size):
        texts, numbers = [prompts[k] for k in places], [seeds[k] for k in places]
        return generate(pipe, texts, numbers, steps=2, batch_size=size).astype(int)

    together = draw(range(5), 5)
    for places, size in (([0, 1, 2, 3, 4], 2), ([4, 3, 2, 1, 0], 3), ([2], 1)):
        assert np.abs(draw(places, size) - together[list(places)]).max() <= 1
    assert np.abs(together[0] - together[2]).max() > 1  # one prompt, two seeds


def test_prompts_and_seeds_that_do_not_match():
    refused(lambda: generate(None, ["a fox"], [1, 2]), "1 prompts but 2 seeds", "give")
    refused(lambda: generate(None, ["a fox", None], [1, 2]), "prompt 1 is None", "text")


# Folders of models

NAMES = {
    "model": (lambda: load_model("mini-v3"), "'mini-v3'", "mini-v1, mini-v2", "choose"),
}


@pytest.mark.parametrize("name", NAMES)
def test_unknown_name(name):
    refused(*NAMES[name])


def test_folder_that_is_no_model(tmp_path):
    refused(lambda: load_model(str(tmp_path)), str(tmp_path), "no model_index.json", "give")


@pytest.fixture
def model(tmp_path):
    "A copy of mini-v1, free to be broken."
    return shutil.copytree(WEIGHTS / "mini-v1", tmp_path / "my model")


BREAKS = {
    "cut weights": lambda m: cut(m / "unet/diffusion_pytorch_model.safetensors"),
    "empty weights": lambda m: (m / "text_encoder/model.safetensors").write_bytes(b""),
    "no unet": lambda m: shutil.rmtree(m / "unet"),
    "index no JSON": lambda m: (m / "model_index.json").write_text('{"_class_name": '),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_model_folder_that_is_broken(model, broken):
    BREAKS[broken](model)
    refused(
        lambda: load_model(str(model)),
        re.escape(str(model)),
        "could not be loaded|names no class of pipelines",
        "copy|give|download|save",
    )


# Pipelines of other kinds


def test_a_transformer_pipeline_is_trained_saved_and_asked(tmp_path):
    from trainprove_nb.models.finetune import finetune

    base = load_model("mini-v1")
    pipe = mini_transformer(
        base.tokenizer, base.vae, heads=2, head_width=16, layers=1, text_width=32
    )
    ds = corpus("emoji", "evaluation", 8)
    training = dict(steps=50, batch_size=8, lr=3e-3, train_text=True)
    _, first = finetune(pipe, ds, **training, seed=1)[0]
    _, last = finetune(pipe, ds, **training, seed=2)[-1]
    assert last < first
    save_model(pipe, str(tmp_path))
    again = load_model(str(tmp_path))
    a, b = (generate(p, ["a frog on lime"], [3], steps=2) for p in (pipe, again))
    # saved in half precision
    assert (
        type(again).__name__ == "PixArtAlphaPipeline"
        and a.shape == (1, 32, 32, 3)
        and np.abs(a.astype(int) - b).max() <= 2
    )


def test_two_stages_are_asked_as_one(tmp_path):
    "A tiny Stable Cascade of its real classes, saved, loaded and asked like any model."
    from diffusers import (
        DDPMWuerstchenScheduler,
        StableCascadeCombinedPipeline,
        StableCascadeUNet,
    )
    from diffusers.pipelines.stable_cascade.pipeline_stable_cascade import PaellaVQModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(0)
    tokenizer = load_model("mini-v1").tokenizer

    def text():
        return CLIPTextModelWithProjection(
            CLIPTextConfig(
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
                hidden_size=32,
                projection_dim=32,
                intermediate_size=37,
                num_attention_heads=4,
                num_hidden_layers=2,
                vocab_size=len(tokenizer),
                max_position_embeddings=tokenizer.model_max_length,
            )
        ).eval()

    prior = StableCascadeUNet(
        conditioning_dim=128,
        block_out_channels=(128, 128),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        clip_image_in_channels=768,
        switch_level=(False,),
        clip_text_in_channels=32,
        clip_text_pooled_in_channels=32,
    )
    blocks = (("SDCascadeResBlock", "SDCascadeTimestepBlock"),) * 2 + (
        ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
    ) * 2
    decoder = StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        conditioning_dim=128,
        block_out_channels=(16, 32, 64, 128),
        num_attention_heads=(-1, -1, 1, 2),
        down_num_layers_per_block=(1,) * 4,
        up_num_layers_per_block=(1,) * 4,
        down_blocks_repeat_mappers=(1,) * 4,
        up_blocks_repeat_mappers=(3, 3, 2, 2),
        block_types_per_layer=blocks,
        switch_level=None,
        clip_text_pooled_in_channels=32,
        dropout=(0.1,) * 4,
    )
    pipe = StableCascadeCombinedPipeline(
        tokenizer=tokenizer,
        text_encoder=text(),
        decoder=decoder,
        scheduler=DDPMWuerstchenScheduler(),
        vqgan=PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=2),
        prior_prior=prior,
        prior_text_encoder=text(),
        prior_tokenizer=tokenizer,
        prior_scheduler=DDPMWuerstchenScheduler(),
        prior_feature_extractor=None,
        prior_image_encoder=None,
    )
    pipe.save_pretrained(str(tmp_path))
    index = json.loads((tmp_path / "model_index.json").read_text())
    # as the hub's folder has it
    (tmp_path / "model_index.json").write_text(
        json.dumps({**index, "vqgan": ["wuerstchen", "PaellaVQModel"]})
    )
    loaded = load_model(str(tmp_path))
    pictures = generate(loaded, ["a frog", "a panda"], [1, 2], steps=2, size=128)
    assert type(loaded) is StableCascadeCombinedPipeline and pictures.shape == (2, 128, 128, 3)
    assert np.array_equal(
        pictures, generate(loaded, ["a frog", "a panda"], [1, 2], steps=2, size=128)
    )


# Classifiers


@pytest.mark.parametrize("name", list(ARCHITECTURES)[1:5])
def test_each_small_network_learns_saves_and_loads(name, labelled, tmp_path):
    x, y = labelled
    net = train_classifier(
        classifier(name, ANIMALS, seed=1),
        x,
        y,
        epochs=40 if name == "vit" else 15,
        batch_size=8,
        shift=0,
    )
    assert (logits(net, x).argmax(1) == y).mean() > 0.8  # it can at least learn by heart
    save_classifier(net, str(tmp_path))
    assert np.array_equal(logits(load_classifier(str(tmp_path)), x), logits(net, x))
    asked, scores = ask_classifier(FolderClassifier(str(tmp_path), ANIMALS[::-1]), x, ANIMALS[::-1])
    assert np.allclose(scores[:, ::-1], logits(net, x), atol=1e-5)  # found by name, not by number


def test_same_seed_same_weights_and_another_seed_others(labelled):
    def weights(seed):
        return torch.cat(
            [
                p.flatten()
                for p in train_classifier(
                    classifier("resnet", ANIMALS, seed=seed), *labelled, epochs=1, seed=seed
                ).parameters()
            ]
        )

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


def test_one_step_of_each_loss_is_the_formula(labelled):
    x, y = labelled
    for loss, weight in (("ce", lambda p: 1), ("focal", lambda p: (1 - p) ** 2)):
        net, twin = (classifier("vit", ANIMALS, seed=3).train() for _ in range(2))
        train_classifier(
            net,
            x,
            y,
            epochs=1,
            batch_size=24,
            shift=0,
            loss=loss,
            lr=1e-2,
            weight_decay=0.0,
            seed=0,
        )
        p = twin(torch.tensor(x).permute(0, 3, 1, 2).float() / 127.5 - 1).logits.softmax(1)[
            torch.arange(24), torch.tensor(y)
        ]
        optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.0)
        (-weight(p) * p.log()).mean().backward()
        optimizer.step()
        a, b = (torch.cat([q.detach().flatten() for q in m.parameters()]) for m in (net, twin))
        assert (a - b).abs().mean() < 1e-4


def test_bad_input_of_classifiers(labelled, tmp_path):
    x, y = labelled
    refused(lambda: classifier("resnet-19", ANIMALS), "'resnet-19'", "resnet-18")
    refused(
        lambda: train_classifier(classifier("resnet", ANIMALS), x, y, loss="hinge"),
        "'hinge'",
        "focal",
    )
    refused(
        lambda: train_classifier(classifier("resnet", ANIMALS), x, y + 1),
        "labels from 1 to 3",
        "number them from 0 to 2",
    )
    refused(
        lambda: train_classifier(classifier("resnet", ANIMALS), x, y[:5]), "24 images but 5 labels"
    )
    refused(lambda: load_classifier(str(tmp_path)), r"no config\.json")
    (tmp_path / "config.json").write_text("{}")
    refused(lambda: load_classifier(str(tmp_path)), "could not be loaded")
    net = tmp_path / "net"
    save_classifier(classifier("resnet", ANIMALS), str(net))
    refused(lambda: FolderClassifier(str(net), ["frog", "unicorn"]), "'unicorn'", "cat face")
