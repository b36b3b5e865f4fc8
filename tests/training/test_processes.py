"""Compares training in two processes, launched by torchrun as a user would, with training in one."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from tests.training.configs import small_config
from training.config import Config, InvalidConfig
from training.datasets.load import load_dataset
from training.learner import Learner, Step
from training.loader import training_batches
from training.processes import SINGLE_PROCESS, Processes, defer_gradient_sync, join_processes
from training.train import train
from training.weights.checkpoint import load_checkpoint
from training.weights.files import InvalidWeights

ROOT = Path(__file__).parents[2]
TERMS = ("loss/heatmap", "loss/offset", "loss/size", "loss/giou", "learning_rate", "gradient_norm")


def launch_two(config: Config, folder: Path, *flags: str, restarts: int = 0) -> subprocess.Popen[str]:
    settings = config.model_dump(mode="json", exclude_unset=True)
    path = folder / f"{config.name}.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    rendezvous += ["--max-restarts", str(restarts)]
    command = [*launch, *rendezvous, "-m", "training", "train", str(path), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def train_in_two(config: Config, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    with launch_two(config, folder, *flags) as process:
        output, errors = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def read_curves(run: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(run)).Reload()
    return {term: [event.value for event in events.Scalars(term)] for term in TERMS}


def read_rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_train_like_one(shapes: Path, tmp_path: Path) -> None:
    # batch-norm statistics are updated, with two micro-batches per batch; SGD, as Adam amplifies rounding errors
    settings = {"precision": "fp32", "accumulate": 2, "learning_rate": 3e-4, "optimizer": "sgd"}
    one = train(small_config(shapes, tmp_path, name="one", **settings), False, Console(quiet=True)).parent
    done = train_in_two(small_config(shapes, tmp_path, name="two", **settings), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "batches of 8 by 2 processes in 2 micro-batches" in done.stdout
    assert done.stdout.count("epoch 2/2") == 1  # the second process is silent
    expected, got = read_curves(one), read_curves(tmp_path / "two")
    for term in TERMS[:-1]:
        assert len(expected[term]) == 6
        np.testing.assert_allclose(got[term], expected[term], rtol=1e-3, err_msg=term)
    assert got["gradient_norm"][0] == pytest.approx(expected["gradient_norm"][0], rel=1e-4)
    assert [row["epoch"] for row in read_rows(tmp_path / "two")] == [1, 2]
    weights, other = (load_checkpoint(run / "last.pt").weights for run in (one, tmp_path / "two"))
    for key in ("backbone.bn1.running_mean", "backbone.bn1.running_var"):
        torch.testing.assert_close(weights[key], other[key], rtol=1e-3, atol=1e-3)


def test_killed_run_resumes_with_more_processes(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"precision": "fp32", "learning_rate": 3e-4, "optimizer": "sgd"}
    whole = train(small_config(shapes, tmp_path, name="whole", **settings), False, Console(quiet=True)).parent
    config = small_config(shapes, tmp_path, name="killed", **settings)
    step, calls = Learner.step, iter(range(3))

    def step_until_killed(learner: Learner, parts: Any) -> Step:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return step(learner, parts)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Learner, "step", step_until_killed)
        train(config, False, Console(quiet=True))
    done = train_in_two(config, tmp_path, "--resume")
    assert done.returncode == 0, done.stderr
    assert "at epoch 1, step 2" in " ".join(done.stdout.split())
    assert [row["epoch"] for row in read_rows(tmp_path / "killed")] == [1, 2]
    expected, got = read_curves(whole), read_curves(tmp_path / "killed")
    for term in TERMS[:-1]:
        np.testing.assert_allclose(got[term], expected[term], rtol=1e-3, err_msg=term)


def find_process(launcher: int, index: int) -> int:
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    [found] = [pid for pid in children if f"LOCAL_RANK={index}".encode() in read_environment(pid)]
    return int(found)


def read_environment(pid: str) -> list[bytes]:
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find torchrun's processes")
def test_torchrun_restarts_and_resumes_after_a_process_is_killed(shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes, tmp_path, name="elastic", epochs=4, precision="fp32", optimizer="sgd")
    with launch_two(config, tmp_path, "--resume", restarts=1) as process:
        assert process.stdout is not None
        before = ""
        while not before.endswith("epoch 1/4: "):  # not by lines: the next line arrives only after the next epoch
            before += process.stdout.read(1)
        os.kill(find_process(process.pid, 0), signal.SIGKILL)  # rank 0, which writes the checkpoints
        output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert "nothing to resume" in before
    resumed = re.search(r"last.pt at epoch (\d), step", " ".join(output.split()))
    assert resumed is not None and int(resumed[1]) >= 2, output
    assert [row["epoch"] for row in read_rows(tmp_path / "elastic")] == [1, 2, 3, 4]
    assert len(read_curves(tmp_path / "elastic")["loss/heatmap"]) == 4 * 3  # each step is logged once


def test_only_runs_restarted_by_torchrun_may_resume_without_a_checkpoint(shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes, tmp_path)
    with pytest.raises(InvalidWeights, match="no such file of weights"):
        train(config, True, Console(quiet=True))
    assert Processes(restarts_on_failure=True).may_start_fresh(tmp_path / "last.pt")


def test_restarts_that_could_not_rendezvous_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    elastic = {"TORCHELASTIC_RUN_ID": "1", "TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in elastic.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidConfig, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"), join_processes():
        pass


def test_indivisible_batch_size_is_rejected(shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes, tmp_path, batch_size=9, accumulate=3)
    SINGLE_PROCESS.check_batch_size(config)
    with pytest.raises(InvalidConfig, match=r"batch_size 9 .* split into 2 x 3 equal parts .* a multiple of 6"):
        Processes(1, 2).check_batch_size(config)


def test_processes_split_the_batches_of_a_single_process(shapes: Path, tmp_path: Path) -> None:
    dataset = load_dataset(shapes / "train.json", shapes / "images")
    config = small_config(shapes, tmp_path)
    split = config.model_copy(update={"accumulate": 2})
    whole = list(training_batches(dataset, config, 1, 1, torch.device("cpu")))
    shares = [
        list(training_batches(dataset, split, 1, 1, torch.device("cpu"), Processes(index, 2))) for index in range(2)
    ]
    assert len(whole) == 2 and [len(share) for share in shares] == [2, 2]
    for number, [(images, targets)] in enumerate(whole):
        order = [share[number][part] for part in range(2) for share in shares]
        assert (torch.cat([images for images, _ in order]) == images).all()
        assert (torch.cat([targets.heatmap for _, targets in order]) == targets.heatmap).all()


@pytest.mark.parametrize(
    ("device", "gpus", "message"),
    [
        ("cuda", 0, "use --device cpu"),
        ("cuda:1", 2, "3 processes need a GPU each: use --device cuda"),
        ("auto", 2, "no GPU for process 2: lower --nproc-per-node"),
    ],
)
def test_unavailable_device_is_named(monkeypatch: pytest.MonkeyPatch, device: str, gpus: int, message: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(InvalidConfig, match=message):
        Processes(2, 3, 2).choose_device(device)


def compute_gradients(images: Tensor, processes: Processes) -> dict[str, Tensor]:
    """Returns float64 gradients and batch-norm statistics for the sum of the squared outputs for `images`."""
    torch.manual_seed(0)
    network: nn.Module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)).double()
    processes.sync_batch_norms(network, torch.device("cpu"))
    shared = processes.wrap_data_parallel(network, torch.device("cpu"))
    # all micro-batches but the last defer the gradient synchronisation
    half = len(images) // 2
    for part, is_deferred in ((images[:half], True), (images[half:], False)):
        with defer_gradient_sync(shared, is_deferred):
            (shared(part).square().sum() * processes.world_size).backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    return gradients | dict(network.named_buffers())


def run_rank(index: int, folder: Path, images: Tensor) -> None:
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=index, world_size=2)
    processes = Processes(index, 2, index)
    shard = processes.shard(tuple("abcdefg"))
    found = {
        "shard": shard,
        "gathered": processes.gather(list(shard)),
        "broadcast": processes.broadcast(f"from {index}"),
        "total": processes.all_reduce(torch.tensor([1.0, index])),
        "gradients": compute_gradients(images[index::2], processes),
    }
    torch.distributed.destroy_process_group()
    torch.save(found, folder / f"{index}.pt")


def test_collectives_and_gradients_of_two_processes_are_exact(tmp_path: Path) -> None:
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64) * 5 + 100
    torch.multiprocessing.spawn(run_rank, (tmp_path, images), nprocs=2)  # type: ignore[no-untyped-call]
    first, second = (torch.load(tmp_path / f"{index}.pt") for index in range(2))
    assert (first["shard"], second["shard"]) == (tuple("aceg"), tuple("bdf"))
    assert (first["gathered"], second["gathered"]) == (list("abcdefg"), [])
    assert first["broadcast"] == second["broadcast"] == "from 0"
    assert first["total"].tolist() == second["total"].tolist() == [2, 1]
    alone = compute_gradients(images, SINGLE_PROCESS)  # micro-batches as in both ranks: images 0 and 1, then 2 and 3
    assert set(alone) == set(first["gradients"])
    for name, value in alone.items():
        for other in (first, second):
            torch.testing.assert_close(other["gradients"][name], value, rtol=1e-9, atol=1e-9, msg=name)


def test_collectives_of_a_single_process_change_nothing() -> None:
    assert SINGLE_PROCESS.shard((1, 2, 3)) == (1, 2, 3)
    assert SINGLE_PROCESS.gather([1, 2]) == [1, 2] and SINGLE_PROCESS.broadcast("x") == "x"
    assert SINGLE_PROCESS.all_reduce(torch.tensor(3)).item() == 3
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    assert SINGLE_PROCESS.wrap_data_parallel(network, torch.device("cpu")) is network
