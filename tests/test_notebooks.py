"Every notebook runs: those of the package as nbdev runs them, the experiments as the README says."
import ast, json, os, re, shlex, shutil, subprocess, sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from PIL import Image

from trainprove_nb.lab import INNOCENTS
from trainprove_nb.models import RECIPES, load_model

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ['-y', 'sources: [mini-v1-avatars]']  # one of the six, to be short


def cells(path): return nbformat.read(ROOT/path, 4).cells


def skipped(path): return any(c.cell_type == 'raw' and 'skip_exec: true' in c.source for c in cells(path))


def papermill(*args, cwd):
    "Run papermill's command; returns what it printed."
    done = subprocess.run([sys.executable, '-m', 'papermill', *args], cwd=cwd, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def documented(path):
    "The parameters of a notebook, from its cell: name -> (type, comment)."
    source, = (c.source for c in cells(path) if 'parameters' in c.metadata.get('tags', []))
    comments = dict(re.findall(r'^(\w+).*# (.+)$', source, re.M))
    return {node.target.id: (node.annotation.id, comments[node.target.id]) for node in ast.parse(source).body}


def files(folder):
    "Each file's time of change, caches left out."
    return {p: p.stat().st_mtime_ns for p in folder.rglob('*') if p.is_file() and not {'__pycache__', '.ipynb_checkpoints'} & set(p.parts)}


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    "A copy of what the notebooks need, to run them in."
    root = tmp_path_factory.mktemp('checkout')
    skip = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
    for name in ('nbs', 'trainprove_nb'): shutil.copytree(ROOT/name, root/name, symlinks=True, ignore=skip)
    for name in ('settings.ini', '_quarto.yml'): shutil.copy2(ROOT/name, root)
    return root


MODULES = [p.relative_to(ROOT).as_posix() for p in sorted((ROOT/'nbs').glob('[0-9]*.ipynb'))]


@pytest.mark.parametrize('path', [p for p in MODULES if not skipped(p)])
def test_notebook_runs_and_leaves_nothing(checkout, path):
    before = files(checkout)
    run = f'from nbdev.test import nbdev_test; nbdev_test.__wrapped__({path!r}, n_workers=0)'
    one = os.environ | {'OMP_NUM_THREADS': '1'}  # on a busy machine two threads wait for each other
    done = subprocess.run([sys.executable, '-c', run], cwd=checkout, env=one, text=True, capture_output=True)
    assert done.returncode == 0 and 'Success.' in done.stdout, done.stderr[-3000:]
    assert files(checkout) == before


EXPERIMENTS = {'fig7': ['fig7.png', 'fig7_calibrated.svg', 'fig7.csv'], 'hard': ['innocents.png', 'base.svg', 'overlap.png', 'leak.png', 'length.png', 'hard.csv'],
               'table1': ['table1.png', 'table1.csv'], 'table2': ['table2.svg', 'table2.csv']}
ORIGINS = {'trainprove': ['trainprove.png', 'trainprove.csv'], 'batchsize': ['batchsize.svg', 'batchsize.csv'], 'audit': ['audit.png', 'pictures/000000.png']}  # of the second paper


@pytest.mark.parametrize('path', [f'nbs/experiments/{name}.ipynb' for name in ('fig6', *EXPERIMENTS, *ORIGINS)] + [f'nbs/{name}.ipynb' for name in ('20_bases', '21_lcm', '22_dit')])
def test_help_names_each_parameter_with_its_type(path):
    shown, params = papermill('--help-notebook', path, cwd=ROOT), documented(path)
    assert len(params) >= 5
    for name, (kind, comment) in params.items(): assert re.search(rf'^  {name}: {kind} \(default .*\)\s+{re.escape(comment)}$', shown, re.M), name


@pytest.fixture(scope='module')
def figure(checkout):
    "Figure 6 by the README's own command: the folder it was run in."
    command, = re.findall(r'^papermill (nbs/experiments/fig6.ipynb .*scale smoke.*)', '\n'.join(c.source for c in cells('nbs/index.ipynb')), re.M)
    papermill(*shlex.split(command), *SOURCE, cwd=checkout)
    return checkout


def test_experiment_runs_as_the_readme_says(figure):
    table = pd.read_csv(figure/'figures/fig6/fig6.csv')
    expected = {('infringing', 1.): 4, **{(kind, 0.): 4 for kind in INNOCENTS}, ('calibration', 0.): 3}  # by three strategies, and a watermark that needs no calibration
    assert table.groupby(['kind', 'rho']).size().to_dict() == expected and set(table.source) == {'mini-v1-avatars'}
    parameters = json.loads((figure/'figures/fig6/fig6.json').read_text())['parameters']
    assert parameters['scale'] == 'smoke' and parameters['rhos'] == [0, 1]


def test_experiment_shows_both_figures(figure):
    drawing = [c for c in nbformat.read(figure/'out.ipynb', 4).cells if c.source.startswith('fig = conf_figure(')]
    assert ['image/png' in [kind for o in c.outputs for kind in o.get('data', {})] for c in drawing] == [True, True]


def test_two_workers_give_the_numbers_of_one(figure, tmp_path):
    papermill(str(ROOT/'nbs/experiments/fig6.ipynb'), 'out.ipynb', '-p', 'scale', 'smoke', '-p', 'jobs', '2', '-p', 'backend', 'loky', *SOURCE, cwd=tmp_path)
    assert (tmp_path/'figures/fig6/fig6.csv').read_bytes() == (figure/'figures/fig6/fig6.csv').read_bytes()


@pytest.mark.parametrize('name', RECIPES)
def test_bases_are_trained(name, tmp_path):
    papermill(str(ROOT/'nbs/20_bases.ipynb'), 'bases.ipynb', '-p', 'name', name, '-p', 'steps', '2', '-p', 'pretrain', '40', '-p', 'precision', 'no', '-p', 'out', 'base', cwd=tmp_path)
    pipe = load_model(str(tmp_path/'base'))
    assert pipe.scheduler.config.prediction_type == RECIPES[name]['prediction']
    assert pipe.unet.config.block_out_channels == list(RECIPES[name]['channels'])
    with Image.open(tmp_path/'base/samples.png') as sheet: assert sheet.size == (12*66 - 2, 3*66 - 2)  # 36 pictures, magnified by 2


def test_a_few_step_model_is_distilled(tmp_path):
    papermill(str(ROOT/'nbs/21_lcm.ipynb'), 'lcm.ipynb', '-p', 'steps', '3', '-p', 'pretrain', '20', '-p', 'precision', 'no', '-p', 'out', 'lcm', cwd=tmp_path)
    pipe = load_model(str(tmp_path/'lcm'))
    assert type(pipe).__name__ == 'LatentConsistencyModelPipeline' and pipe.unet.config.time_cond_proj_dim == 64
    assert not pipe.unet.time_embedding.cond_proj.weight.eq(0).all()     # the student has begun to heed the guidance


def test_a_transformer_is_trained(tmp_path):
    papermill(str(ROOT/'nbs/22_dit.ipynb'), 'dit.ipynb', '-p', 'steps', '2', '-p', 'pretrain', '20', '-p', 'precision', 'no', '-p', 'out', 'dit', cwd=tmp_path)
    assert type(load_model(str(tmp_path/'dit'))).__name__ == 'PixArtAlphaPipeline'


@pytest.fixture(scope='module')
def results(figure):
    "The other experiments, beside Figure 6 and on its models; then the claims."
    for name in (*EXPERIMENTS, *ORIGINS, 'claims'):
        papermill(f'nbs/experiments/{name}.ipynb', f'{name}.ipynb', '-p', 'scale', 'smoke', *(SOURCE if name in EXPERIMENTS else []), cwd=figure)
    return figure


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_experiment_leaves_its_files(results, name):
    folder = results/'figures'/name
    assert [f for f in (*EXPERIMENTS[name], f'{name}.json') if not (folder/f).is_file()] == []
    assert json.loads((folder/f'{name}.json').read_text())['parameters']['sources'] == ['mini-v1-avatars']


@pytest.mark.parametrize('name', ORIGINS)
def test_experiment_of_origins_leaves_its_files(results, name):
    folder = results/'figures'/name
    assert [f for f in (*ORIGINS[name], *([] if name == 'batchsize' else [f'{name}.json'])) if not (folder/f).is_file()] == []


def test_every_suspect_stands_before_every_owner(results):
    table = pd.read_csv(results/'figures/trainprove/trainprove.csv')
    one = table[(table.method == 'TrainProVe') & (table.kind == 'whole')]
    assert len(one) == 3*2*2 and one.guilty.sum() == 2*2      # three origins, two suspects each, two owners
    assert (table[table.method == 'always legal'].accused == False).all()


def test_collected_answers_are_audited_like_the_classifier_itself(results, tmp_path):
    "The pictures that were written out, answered by the lab's own classifier, give the verdict that the notebook gave."
    from trainprove_nb.classifiers import FolderClassifier
    from trainprove_nb.data import pixels
    from trainprove_nb.origins import OriginRecipes, origin_scale
    from trainprove_nb.store import Store
    recipes, folder = OriginRecipes(origin_scale('smoke')), results/'figures/audit'
    net = FolderClassifier(str(Store(results/'lab').path(recipes.suspect('mini-v1', recipes.ways()[0]))), list(recipes.scale.classes))
    scores = net(pixels([Image.open(p).convert('RGB') for p in sorted((folder/'pictures').iterdir())]))
    pd.DataFrame({'label': [recipes.scale.classes[k] for k in scores.argmax(1)]}).to_csv(tmp_path/'answers.csv', index=False)
    papermill('nbs/experiments/audit.ipynb', 'audit2.ipynb', '-p', 'scale', 'smoke', '-p', 'suspect', str(tmp_path/'answers.csv'), '-p', 'out', str(tmp_path/'audit'), cwd=results)
    first, second = (json.loads((f/'audit.json').read_text())['verdict'] for f in (folder, tmp_path/'audit'))
    assert first == second


def test_table2_shares_are_shares(results):
    table = pd.read_csv(results/'figures/table2/table2.csv')
    ranges = table[[c for c in table if c.startswith('[') or c.endswith('more')]]
    assert len(ranges.columns) == 5 and ranges.sum(axis=1).round(9).eq(1).all() and len(table) == 4   # ρ = 1 and three kinds of innocents


def test_figure_7_agrees_with_figure_6(results):
    fig6, fig7 = (pd.read_csv(results/f'figures/{name}/{name}.csv') for name in ('fig6', 'fig7'))
    columns = ['strategy', 'kind', 'rho', 'k', 'N']
    both = fig6.merge(fig7, on=columns, suffixes=('_6', '_7'))
    assert len(both) and (both.conf_6 == both.conf_7).all() and (both.mean_distance_6 == both.mean_distance_7).all()


def test_claims_hold_every_result(results):
    page = pd.read_csv(results/'figures/claims/claims.csv')
    assert set(page.verdict) <= {'reproduced', 'not reproduced', 'open', 'cannot be tested here'}
    assert {'Figure 6', 'Main result 1', 'Main result 2', 'Table 1', 'Table 2', 'Conclusion', 'Setting', 'TrainProVe, CIFAR-10', 'Our origin test'} <= set(page['where'])
    judged = page[page.verdict.isin(['reproduced', 'not reproduced'])]
    bars = judged.bar.str[2:].astype(float)
    held = ((judged.bar.str[0] == '>') & (judged.low > bars)) | ((judged.bar.str[0] == '<') & (judged.high < bars))
    assert (held == (judged.verdict == 'reproduced')).all()
