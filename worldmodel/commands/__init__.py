"""One module per command of the `worldmodel` program; `bench_plan` is typed `worldmodel bench plan`.

Each defines `Settings` (a dataclass: the schema of the command) and `run(settings, run) -> Outcome`. Separate from
`cli.py`, which parses and reports. This table imports nothing heavy, so that `worldmodel --help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True, kw_only=True)
class Command:
    """What the help says about a command.

    Attributes:
        summary: One line.
        keys: The settings used most, with what they mean; `--dry-run` shows all.
        examples: Complete command lines.
        groups: Config groups it chooses from, as they are named in an override.
        includes: Commands whose settings are part of this one's.
        positional: Setting that words without `key=` are for, if any.
        takes_many: Whether it takes several of them, as a list.
    """

    summary: str
    keys: tuple[tuple[str, str], ...]
    examples: tuple[str, ...]
    groups: tuple[str, ...] = ()
    includes: tuple[str, ...] = ()
    positional: str | None = None
    takes_many: bool = False


COMMANDS: dict[str, Command] = {
    "collect": Command(
        summary="record episodes of scripted play, experts or a trained model into one HDF5 file",
        keys=(
            ("env=push", "environment: reach, push, a registered id, or MODULE:ID of your own"),
            ("episodes=1000", "episodes in the file when done"),
            ("expert_fraction=0.3", "share acted by the scripted expert, the rest is exploratory play"),
            (
                "planned_fraction=0.5",
                "share in which checkpoint=shipped (or FOLDER) plans, to train on what its plans do",
            ),
            ("out=FILE", "where to; append=true continues a file"),
            ("workers=2", "processes, one thread each"),
        ),
        examples=(
            "worldmodel collect env=reach episodes=200 out=outputs/reach.h5",
            "worldmodel collect env=push episodes=2000 out=outputs/push.h5 append=true",
            "worldmodel collect env=push episodes=300 expert_fraction=0 planned_fraction=1 out=outputs/planned.h5",
        ),
    ),
    "inspect": Command(
        summary="describe an episode file: shapes, statistics, warnings, a contact sheet",
        keys=(("data=FILE", "the file"),),
        examples=("worldmodel inspect data=outputs/push.h5", "worldmodel inspect data=outputs/push.h5 --json"),
    ),
    "pretrain": Command(
        summary="V-JEPA: learn an encoder from video, without actions",
        keys=(
            ("data=FILE", "episode file; it may hold several environments (collect with append=true)"),
            ("fit.steps=N", "optimiser steps; an interrupted run continues with the same run_dir"),
            ("encoder.depth=6", "architecture (encoder.embed_dim, ...); encoder=vit_tiny to vit_giant as published"),
            ("target=ema_repaired", "or any_colour, teacher, online, pixels; vjepa1, vjepa2, vjepa2_1 as published"),
            ("target.mask.kind=blocks", "what is hidden: blocks, published, tube, momentary, future or motion"),
            ("target.recolour=1", "what is visible is seen in random other colours; what is predicted is not"),
            ("model_out=FOLDER", "target=any_colour target.path=MODEL: the model with the student as its encoder"),
            ("background=recording", "objects at rest count like what moves: one camera, one look"),
            ("fit=short", "optimisation; also vjepa1, vjepa2 as published"),
            ("sinks=[tensorboard]", "also write the metrics as TensorBoard events"),
        ),
        examples=(
            "worldmodel pretrain data=outputs/push.h5 run_dir=outputs/encoder",
            "worldmodel pretrain data=outputs/push.h5 fit.steps=500 encoder.depth=4",
        ),
        groups=("encoder", "target", "fit"),
    ),
    "probe": Command(
        summary="frozen evaluation: what attentive probes read from encoders, by number of labels",
        keys=(
            ("data=FILE", "episode file; clips and exact labels are made from it (test_data=FILE tests on another)"),
            ("arms.vjepa.encoder=DIR", "a finished encoder (also arms.pixels.encoder); without it, it is pretrained"),
            ("arms.NAME=null", "leave one out: vjepa, pixels, pixels_finetuned, supervised, random"),
            ("arms.resnet.timm=NAME", "one more, a timm model (arms.resnet.weights=FILE), image by image"),
            ("tasks=[kind,action]", "some of kind, action, pose, contact"),
            ("labels=[0.05,1.0]", "shares of the labels of clips=2000; splits=3 random splits of them"),
            ("fit.lr=[1e-3,3e-4]", "the sweep, judged on a part of the labelled clips (fit.weight_decay, fit.epochs)"),
            ("max_minutes=N", "begin no cell after N minutes; the same command goes on later"),
            ("run_dir=FOLDER", "finished cells in it are kept; an interrupted run continues"),
        ),
        examples=(
            "worldmodel probe data=outputs/push.h5 run_dir=outputs/probe --dry-run",
            "worldmodel probe data=outputs/push.h5 arms.vjepa.encoder=shipped tasks=[pose] clips=200 test_clips=100 "
            "arms.pixels=null arms.pixels_finetuned=null arms.supervised=null splits=1",
        ),
        groups=("grid",),
    ),
    "efficiency": Command(
        summary="how much pretraining V-JEPA and pixels need before probes read equally much",
        keys=(
            ("data=FILE", "episode file; encoders are pretrained on it, clips and labels are made from it"),
            ("steps=[50,400]", "pretraining steps whose encoders are probed, besides the last (fit.eval_every)"),
            ("labels=[1.0]", "share of the labels; the other settings of clips, probes and arms are those of probe"),
            ("splits=3", "random splits of the labels, each with pretrained encoders of its own"),
            ("tasks=[kind,action]", "some of kind, action, pose, contact"),
            ("max_minutes=N", "begin no cell after N minutes; the same command goes on later"),
            (
                "run_dir=FOLDER",
                "finished cells in it are kept; worldmodel probe encoders=FOLDER/encoders shares encoders",
            ),
        ),
        examples=(
            "worldmodel efficiency data=outputs/push.h5 run_dir=outputs/efficiency",
            "worldmodel efficiency data=outputs/push.h5 tasks=[pose] steps=[100,300] splits=1 clips=400 test_clips=100",
        ),
        groups=("grid",),
    ),
    "train": Command(
        summary="learn to predict what actions do, in the space of a frozen encoder",
        keys=(
            ("data=FILE", "episode file"),
            ("encoder.path=FOLDER", "pretrained encoder; the shipped one by default"),
            ("encoder=timm", "any frozen timm backbone instead, e.g. encoder.name=resnet18 encoder.pretrained=true"),
            ("encoder=huggingface", "V-JEPA 2 in a local folder (encoder.path); original: Meta's files; dinov3_small"),
            ("labelled_episodes=N", "use the actions of N training episodes only"),
            ("pseudo_labels.steps=S", "and guess those of the others from their video"),
            ("recolour.copies=3", "see frames in random other colours as well; distractor.kind=flicker: under noise"),
            ("frozen=false", "train the encoder as well, from pixels; needs weights.reconstruction=0"),
            ("latent=compact", "planning space: compact, patch, or pixels: draws frames, compares pictures (foil)"),
            ("steps=5000", "optimiser steps; an interrupted run continues with the same run_dir"),
            ("sinks=[tensorboard]", "also write the metrics as TensorBoard events"),
        ),
        examples=(
            "worldmodel train data=outputs/push.h5 encoder.path=outputs/encoder/encoder",
            "worldmodel train data=outputs/push.h5 encoder=timm encoder.name=resnet18",
            "worldmodel train -m data=outputs/push.h5 latent=compact,patch",
        ),
        groups=("encoder",),
    ),
    "posttrain": Command(
        summary="V-JEPA 2-AC: poses and actions as tokens beside the patches of a frozen encoder",
        keys=(
            ("data=FILE", "episode file"),
            ("encoder.path=FOLDER", "pretrained encoder; encoder=huggingface or original for released weights"),
            ("predictor=small", "or vjepa2_ac, the released size (305 M weights); predictor.depth=..."),
            ("fit=short", "optimisation; fit=vjepa2_ac as published; fit.steps=N"),
            ("pose.shift_m=0.04", "how proprioception and actions read as poses; the tabletop arm by default"),
        ),
        examples=(
            "worldmodel posttrain data=outputs/push.h5 run_dir=outputs/ac",
            "worldmodel posttrain data=outputs/push.h5 encoder=vit_giant predictor=vjepa2_ac fit=vjepa2_ac",
        ),
        groups=("encoder", "predictor", "fit"),
    ),
    "plan": Command(
        summary="plan one episode toward a goal image and write a video and a figure",
        keys=(
            ("env=push", "environment: reach, push or a registered id"),
            ("checkpoint=shipped", "trained model: the one in the package, or a folder"),
            ("task=3", "which demonstration task; any number, the default is one that the shipped model solves"),
            ("planner=settling_cem", "or cem, cem_fast, icem, mppi, cmaes, gradient, cem_gradient, ..."),
            ("planner.horizon=5", "model steps; planner.num_samples=300 planner.num_iterations=6 ..."),
            ("sinks=[rerun]", "also write a recording for the Rerun viewer"),
        ),
        examples=(
            "worldmodel plan",
            "worldmodel plan env=reach task=3 planner.num_samples=64",
            "worldmodel plan -m env=reach,push",
        ),
        groups=("objective", "planner"),
    ),
    "replay": Command(
        summary="compute saved plans again and compare them bit by bit",
        keys=(
            ("plans=FILE", "plans.safetensors of a `worldmodel plan` run"),
            ("checkpoint=shipped", "the model they were made with"),
        ),
        examples=("worldmodel replay plans=outputs/plan/plans.safetensors",),
    ),
    "evaluate": Command(
        summary="success on held-out tasks with intervals, beside random, no-op and the oracle",
        keys=(
            ("env=push", "environment whose shipped manifest is used (manifest=FILE for another)"),
            ("episodes=100", "first N tasks of the manifest"),
            ("looks=new_colours", "the same tasks, colours drawn for each; distractor.kind=flicker: noise over a part"),
            ("checkpoint=shipped", "trained model: the one in the package, tabletop_any_colour, or a folder"),
            ("planner=mppi", "another search: see worldmodel plan --help"),
            ("delay=measured", "the robot goes on while a plan is computed; or a number of control steps"),
            ("time_budget_s=0.1", "seconds from an observation to its plan"),
            ("warm_start=false", "start every search from nothing instead of the last plan"),
            ("runtime.device=cuda", "where the model computes; also runtime.precision=bfloat16, runtime.compiled=true"),
            ("workers=2", "processes, one thread each"),
            ("run_dir=FOLDER", "an interrupted evaluation continues in the same folder"),
        ),
        examples=(
            "worldmodel evaluate env=push episodes=100 workers=2 --json",
            "worldmodel evaluate env=reach checkpoint=outputs/model planner.num_iterations=4",
            "worldmodel evaluate -m env=push planner=cem,icem,mppi workers=2",
            "worldmodel evaluate -m checkpoint=outputs/s0,outputs/s1,outputs/s2 run_dir=outputs/seeds",
        ),
        groups=("objective", "planner"),
    ),
    "compare": Command(
        summary="finished evaluations on the same tasks: rates, paired differences, and what may be said",
        keys=(
            ("RUN", "run folder of an evaluation; a name with = in it needs a / before that (./a=1)"),
            ("", "the folder of `evaluate -m checkpoint=a,b,c` is one run with several training seeds"),
            ("reference=RUN", "name or number (from 0) of the run the others are compared with: the first"),
        ),
        examples=(
            "worldmodel compare outputs/cem outputs/mppi",
            "worldmodel compare outputs/ours_seeds outputs/theirs_seeds reference=1 --json",
        ),
        positional="runs",
        takes_many=True,
    ),
    "explain": Command(
        summary="why the failures of an evaluation failed: search, model, cost, or out of reach",
        keys=(
            ("max_failures=20", "failures looked at; more are sampled (sample_seed=0)"),
            ("factor=10", "how many times the run's own search is enlarged"),
            ("latent_oracle.num_samples=64", "budget of the search on the true dynamics under the model's cost"),
            ("manifest=FILE", "manifest of the run, when it was not the shipped one"),
            ("workers=2", "processes, one thread each"),
            ("run_dir=FOLDER", "an interrupted explanation continues in the same folder"),
        ),
        examples=(
            "worldmodel explain outputs/evaluate/20260101-120000 workers=2",
            "worldmodel explain outputs/push_run max_failures=5 factor=4",
        ),
        groups=("planner@latent_oracle", "planner@oracle"),
        positional="run",
    ),
    "surprise": Command(
        summary="intuitive physics: is the model surprised by what cannot happen?",
        keys=(
            ("env=push", "environment of the clips: reach or push"),
            ("pairs=40", "pairs of a possible and an impossible clip per violation"),
            ("kinds=[vanish]", "only some of vanish, teleport, pass_through, no_contact, recolour"),
            ("checkpoints=[shipped]", "trained models that are asked: names of shipped ones, or folders"),
            ("pretraining=FOLDER", "run of worldmodel pretrain: its masked predictor is asked as well"),
            ("horizon=4", "model steps predicted ahead; before=3, after=4: steps up to the event and after it"),
            ("looks=new_colours", "colours drawn for each scene"),
            ("run_dir=FOLDER", "an interrupted run continues in the same folder"),
        ),
        examples=(
            "worldmodel surprise",
            "worldmodel surprise pairs=10 kinds=[vanish,recolour] --json",
            "worldmodel surprise checkpoints=[shipped,outputs/foil/checkpoint] run_dir=outputs/surprise",
        ),
    ),
    "report": Command(
        summary="finished evaluations as one HTML file: tables, curves, videos, verdicts, settings",
        keys=(
            ("RUN", "run folder of an evaluation, or of `evaluate -m checkpoint=a,b,c`; several are compared"),
            ("videos=2", "failures, and successes, of every run that are run again and filmed; 0 for none"),
            ("episodes=[3,17]", "episodes that are filmed besides, whatever became of them"),
            ("explain=FOLDER", "run folder of `worldmodel explain`; found by itself where it usually lies"),
            ("reference=RUN", "name or number (from 0) of the run the others are compared with: the first"),
            ("manifest=FILE", "manifest of the runs, when it was not the shipped one (only videos need it)"),
            ("workers=2", "processes that film, one thread each"),
        ),
        examples=(
            "worldmodel report outputs/evaluate/20260101-120000",
            "worldmodel report outputs/cem outputs/mppi videos=0 run_dir=outputs/cem_or_mppi",
        ),
        positional="runs",
        takes_many=True,
    ),
    "manifest": Command(
        summary="draw a frozen list of held-out tasks and store floors and ceiling with it",
        keys=(
            ("env=push", "environment"),
            ("episodes=100", "number of tasks"),
            ("looks=trained", "or new_colours: the same tasks, colours drawn for each"),
            ("split=test", "or validation: tasks of another stream, to choose settings on"),
            ("data=FILE", "episodes of the models to be judged; tasks that overlap them are refused"),
            ("out=FILE", "file ending in .json or .json.gz"),
        ),
        examples=("worldmodel manifest env=push episodes=20 out=outputs/push.json.gz",),
        groups=("planner@oracle",),
    ),
    "baselines": Command(
        summary="cloning, inverse dynamics and an oracle with the model's cost, stored with a checkpoint",
        keys=(
            ("env=push", "environment whose shipped manifest is used (manifest=FILE for another)"),
            ("checkpoint=shipped", "trained model: the one in the package, or a folder"),
            ("data=FILE", "episodes it was trained on; the policies learn from them"),
            ("names=[bc,idm]", "only some of bc, idm, oracle_latent"),
            ("episodes=100", "first N tasks of the manifest (oracle_episodes=N for the slow oracle)"),
            ("workers=2", "processes, one thread each"),
            ("run_dir=FOLDER", "an interrupted run continues in the same folder; both environments may share one"),
        ),
        examples=(
            "worldmodel baselines env=push data=outputs/push.h5 checkpoint=outputs/model/checkpoint workers=2",
            "worldmodel baselines env=push names=[oracle_latent] oracle_episodes=20",
        ),
        groups=("planner@oracle",),
    ),
    "reproduce": Command(
        summary="run a whole experiment, from data collection to the table; continues where it stopped",
        keys=(
            ("experiment=quick", "quick (90 minutes on two cores), shipped (the checkpoint in the package), tiny"),
            ("experiment=low_label", "targets, random and end-to-end encoders at few labelled episodes, cell by cell"),
            ("experiment=distractor", "the same with all labels, flickering noise over a quarter of every frame"),
            ("low_label.only=[ARM,...]", "make the cells of these arms alone; other calls may make the rest"),
            ("low_label.max_minutes=N", "begin no cell after N minutes; the same command goes on later"),
            ("experiment=vjepa2_vitl16", "V-JEPA as published (vjepa1_vitl16, vjepa2_vitg16, ...): for clusters"),
            ("run_dir=FOLDER", "stages that are done in it are skipped"),
            ("workers=2", "processes for collecting and evaluating"),
        ),
        examples=(
            "worldmodel reproduce experiment=quick",
            "worldmodel reproduce experiment=shipped run_dir=outputs/shipped",
            "worldmodel reproduce experiment=quick pretrain.fit.steps=500 --dry-run",
            "worldmodel reproduce experiment=low_label run_dir=outputs/low_label low_label.max_minutes=120",
        ),
        groups=("experiment",),
        includes=("collect", "pretrain", "train", "evaluate"),
    ),
    "bench_plan": Command(
        summary="how long a plan takes, where the time goes, how others compare",
        keys=(
            ("model=shipped", "or patch (64 tokens a frame), wide (256 tokens, width 1024, 6 blocks)"),
            ("num_samples=300", "candidates; num_iterations, horizon: as in a plan"),
            ("rounds=20", "times that every competitor takes its turn, after one to warm up"),
            ("threads=2", "CPU threads; torch's own number by default"),
            ("runtime.compiled=true", "fused by torch.compile; also runtime.precision=bfloat16, runtime.device=cuda"),
        ),
        examples=(
            "worldmodel bench plan",
            "worldmodel bench plan model=patch --json",
            "worldmodel bench plan model=wide rounds=1",
        ),
    ),
    "bench_planners": Command(
        summary="success of every planner at equal model calls, on the same tasks",
        keys=(
            ("env=push", "environment whose shipped manifest is used"),
            ("episodes=100", "first N tasks of the manifest"),
            ("names=[cem,icem]", "some of the planners in configs/bench_planners.yaml; all by default"),
            ("workers=2", "processes, one thread each"),
            ("run_dir=FOLDER", "an interrupted comparison continues in the same folder"),
        ),
        examples=(
            "worldmodel bench planners episodes=100 workers=2 run_dir=outputs/planners",
            "worldmodel bench planners names=[cem,mppi] episodes=20",
            "worldmodel bench planners names=[near] \"planners.near=['planner=cem','planner.horizon=3']\"",
        ),
    ),
    "bench_budget": Command(
        summary="success against the time a plan may take, as a plot",
        keys=(
            ("env=push", "environment whose shipped manifest is used"),
            ("budgets_s=[0.1,1.0]", "seconds from an observation to its plan"),
            ("planner=cem_anytime", "which search; its iterations should outlast the largest budget"),
            ("episodes=100", "first N tasks of the manifest"),
            ("run_dir=FOLDER", "an interrupted comparison continues in the same folder"),
        ),
        examples=(
            "worldmodel bench budget episodes=100 run_dir=outputs/budget",
            "worldmodel bench budget budgets_s=[0.05,0.2] planner=mppi planner.num_iterations=200",
        ),
        groups=("objective", "planner"),
    ),
    "convert": Command(
        summary="V-JEPA weights between the released formats, Hugging Face's and this project's",
        keys=(
            ("path=PATH", "weights on the local disk, or a checkpoint of this project"),
            ("format=vjepa2", "what an original file holds: vjepa1, vjepa2 or vjepa2_ac; folders say it themselves"),
            ("to=worldmodel", "or huggingface, vjepa1, vjepa2, vjepa2_ac"),
            ("out=PATH", "folder or file to write; it is read back and compared"),
        ),
        examples=(
            "worldmodel convert path=vitl.pt format=vjepa2 out=outputs/vitl",
            "worldmodel convert path=outputs/vitl to=huggingface out=outputs/vitl_hf",
        ),
    ),
    "doctor": Command(
        summary="versions, device, threads, OpenGL backend, and what is missing",
        keys=(),
        examples=("worldmodel doctor", "worldmodel doctor --json"),
    ),
}


def spoken(name: str) -> str:
    """A command as it is typed: "bench_plan" is `bench plan`."""
    return name.replace("_", " ")


def settings_class(name: str) -> type:
    """Dataclass of the settings of a command."""
    found = import_module(f"worldmodel.commands.{name}").Settings
    assert isinstance(found, type)
    return found
