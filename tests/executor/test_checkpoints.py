"""Runs that stop and go on, in the same plan or another, and weights in Hugging Face files."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hetsched.errors import HetschedError
from hetsched.executor import RunReport, RunSettings, run_plan
from hetsched.files import make_folder
from hetsched.model import ModelSpec
from hetsched.plan import Options, Pipeline, Plan, Stage

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from torch.nn import functional  # noqa: E402

from hetsched.executor.check import reference  # noqa: E402
from hetsched.executor.checkpoint import latest_checkpoint  # noqa: E402
from hetsched.executor.data import ByteText  # noqa: E402
from hetsched.executor.model import Transformer  # noqa: E402
from hetsched.executor.shards import piece_of  # noqa: E402
from hetsched.executor.tensor_parallel import Team  # noqa: E402
from hetsched.executor.weights import read_weights  # noqa: E402

Models = Callable[..., ModelSpec]
Plans = Callable[..., Plan]
Run = Callable[..., RunReport]
SETTINGS = RunSettings(steps=2, device="cpu", timeout_s=100, learning_rate=1e-4)


def other_plan(plan: Plan, **options: Any) -> Plan:
    """The same model and batch on 2 + 3 devices in one pipeline, and on 1 and 2 in another."""
    first = (Stage((0, 3), ("c/0", "d/0")), Stage((3, 4), ("c/1", "c/2", "c/3")))
    second = (Stage((0, 1), ("d/1",)), Stage((1, 4), ("d/2", "d/3")))
    return replace(plan, pipelines=(Pipeline("p", first, 3), Pipeline("q", second, 4)), options=Options(**options))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_another_plan_goes_on_where_one_stopped(
    model: Models, unequal_plan: Plans, forked_run: Run, family: str, tmp_path: Path
) -> None:
    plan = unequal_plan(model(family, num_heads=4, num_kv_heads=4), zero=1)
    folder = tmp_path / "checkpoints"
    plans = [other_plan(plan), plan, other_plan(plan, zero=1, recompute=True)]
    losses: list[float] = []
    for number, played in enumerate(plans):
        resume = folder if number else None
        run = forked_run(played, replace(SETTINGS, checkpoint_to=folder, resume_from=resume), tmp_path)
        assert [step.step for step in run.ranks[0]] == [2 * number, 2 * number + 1]
        losses += run.losses
    expected = [loss for loss, _ in reference(plan, replace(SETTINGS, steps=6))]
    assert losses == pytest.approx(expected, rel=1e-5)
    assert (folder / "latest").read_text() == "step-00000006\n"


def test_a_rank_killed_while_it_saves_leaves_the_last_whole_checkpoint(
    model: Models, unequal_plan: Plans, forked_run: Run, tmp_path: Path
) -> None:
    plan, folder = unequal_plan(model("llama")), tmp_path / "checkpoints"
    program = (sys.executable, str(Path(__file__).with_name("faulty_rank.py")), "die_saving")
    settings = replace(SETTINGS, steps=6, checkpoint_to=folder, checkpoint_every=2)
    with pytest.raises(HetschedError, match=r"rank 1 \(a/1\) was killed by signal 9"):
        run_plan(plan, settings, program=program)
    assert (folder / "step-00000004.half").exists()
    path, facts = latest_checkpoint(folder)
    assert (path.name, facts.step) == ("step-00000002", 2)
    run = forked_run(plan, replace(SETTINGS, checkpoint_to=folder, resume_from=folder), tmp_path)
    expected = [loss for loss, _ in reference(plan, replace(SETTINGS, steps=4))]
    assert list(run.losses) == pytest.approx(expected[2:], rel=1e-5)
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-00000002", "step-00000004"]


def test_a_checkpoint_of_something_else_is_refused(model: Models, unequal_plan: Plans, tmp_path: Path) -> None:
    plan = unequal_plan(model("llama"))
    with pytest.raises(HetschedError, match="has no checkpoint"):
        latest_checkpoint(tmp_path)
    (tmp_path / "latest").write_text("../elsewhere")
    with pytest.raises(HetschedError, match="no folder beside it"):
        latest_checkpoint(tmp_path)
    (tmp_path / "latest").write_text("step-1")
    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-1" / "run.json").write_text("[]")
    with pytest.raises(HetschedError, match="is no checkpoint's"):
        latest_checkpoint(tmp_path)
    facts = {"step": 1, "model": plan.model.to_json(), "global_batch": 99, "seq_len": 16}
    (tmp_path / "step-1" / "run.json").write_text(json.dumps(facts))
    from hetsched.executor.checkpoint import load_checkpoint

    with pytest.raises(HetschedError, match="is of another global batch"):
        load_checkpoint(tmp_path, plan, (), None)  # type: ignore[arg-type]


def test_a_folder_that_can_not_be_written_is_said_before_training(tmp_path: Path) -> None:
    make_folder(tmp_path / "new" / "folder")
    assert not list((tmp_path / "new" / "folder").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(HetschedError, match="file/x can't be a folder to write to: Not a directory"):
        make_folder(tmp_path / "file" / "x")


def llama_logits(tensors: dict[str, Any], spec: ModelSpec, tokens: Any) -> Any:
    """A Llama's logits from its Hugging Face tensors, straight from the formulas."""
    x = tensors["model.embed_tokens.weight"][tokens]
    half = spec.head_dim // 2
    angles = torch.arange(len(tokens))[:, None] * spec.rope_theta ** (-torch.arange(half) / half)
    cos, sin = (torch.cat((f(angles), f(angles)), dim=1) for f in (torch.cos, torch.sin))

    def norm(x: Any, name: str) -> Any:
        return x / (x.pow(2).mean(-1, keepdim=True) + spec.norm_epsilon).sqrt() * tensors[name]

    def turn(x: Any) -> Any:
        return x * cos + torch.cat((-x[:, half:], x[:, :half]), dim=1) * sin

    for block in range(spec.num_layers):
        at = f"model.layers.{block}."
        y = norm(x, at + "input_layernorm.weight")
        q, k, v = (y @ tensors[f"{at}self_attn.{n}_proj.weight"].T for n in "qkv")
        heads = []
        for head in range(spec.num_heads):
            kv = head * spec.num_kv_heads // spec.num_heads
            qh, kh, vh = (z[:, h * spec.head_dim : (h + 1) * spec.head_dim] for z, h in ((q, head), (k, kv), (v, kv)))
            scores = turn(qh) @ turn(kh).T / spec.head_dim**0.5
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
            heads.append(scores.softmax(-1) @ vh)
        x = x + torch.cat(heads, dim=1) @ tensors[at + "self_attn.o_proj.weight"].T
        y = norm(x, at + "post_attention_layernorm.weight")
        gate, up = (y @ tensors[f"{at}mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        x = x + (functional.silu(gate) * up) @ tensors[at + "mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ tensors["lm_head.weight"].T


def gpt2_logits(tensors: dict[str, Any], spec: ModelSpec, tokens: Any) -> Any:
    """Likewise a GPT-2's: Conv1D keeps (inputs, outputs), and q, k, v in one matrix."""
    x = tensors["wte.weight"][tokens] + tensors["wpe.weight"][: len(tokens)]
    width = spec.hidden_size

    def norm(x: Any, name: str) -> Any:
        return functional.layer_norm(x, (width,), tensors[name + ".weight"], tensors[name + ".bias"], spec.norm_epsilon)

    def conv(x: Any, name: str) -> Any:
        return x @ tensors[name + ".weight"] + tensors[name + ".bias"]

    for block in range(spec.num_layers):
        at = f"h.{block}."
        qkv = conv(norm(x, at + "ln_1"), at + "attn.c_attn")
        heads = []
        for head in range(spec.num_heads):
            q, k, v = (qkv[:, part * width + head * spec.head_dim :][:, : spec.head_dim] for part in range(3))
            scores = (q @ k.T / spec.head_dim**0.5).masked_fill(torch.ones(len(q), len(q)).triu(1).bool(), -torch.inf)
            heads.append(scores.softmax(-1) @ v)
        x = x + conv(torch.cat(heads, dim=1), at + "attn.c_proj")
        y = functional.gelu(conv(norm(x, at + "ln_2"), at + "mlp.c_fc"), approximate="tanh")
        x = x + conv(y, at + "mlp.c_proj")
    return norm(x, "ln_f") @ tensors["wte.weight"].T


@pytest.mark.parametrize(("family", "logits_of"), [("llama", llama_logits), ("gpt2", gpt2_logits)])
def test_trained_weights_are_the_hugging_face_models(
    model: Models, unequal_plan: Plans, forked_run: Run, family: str, logits_of: Callable[..., Any], tmp_path: Path
) -> None:
    """What a run saves computes, in the formulas of the family, what the run computed; and can be started from."""
    from safetensors.torch import load_file

    plan, saved = unequal_plan(model(family)), tmp_path / "hf"
    settings = replace(SETTINGS, checkpoint_to=tmp_path / "checkpoints", save_weights=saved)
    forked_run(plan, settings, tmp_path)
    tensors: dict[str, Any] = {}
    for file in saved.glob("*.safetensors"):
        tensors |= load_file(file)
    index = json.loads((saved / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors.keys()
    whole = Transformer(plan.model, (0, 4))
    read_weights(saved, whole)
    tokens = torch.arange(16) * 7 % 256
    with torch.no_grad():
        torch.testing.assert_close(logits_of(tensors, plan.model, tokens), whole(tokens[None])[0], atol=1e-4, rtol=1e-4)
    part = Transformer(plan.model, (1, 3), team=Team(3, 1))
    read_weights(saved, part)
    for name, held in part.global_parameters().items():
        piece, expected = piece_of(plan.model, name, 3, 1), whole.global_parameters()[name].detach()
        if piece is not None:
            expected = expected.narrow(piece.dim, piece.start, piece.stop - piece.start)
        assert torch.equal(held, expected)
    started = forked_run(plan, replace(SETTINGS, weights=saved), tmp_path)
    inputs, targets = ByteText().samples(0, range(plan.workload.global_batch), plan.workload.seq_len)
    loss = functional.cross_entropy(whole(inputs).flatten(0, 1), targets.flatten())
    assert started.losses[0] == pytest.approx(loss.item(), rel=1e-5)


def test_weights_of_another_model_are_refused(model: Models, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    spec = model("llama")
    with pytest.raises(HetschedError, match="does not exist"):
        read_weights(tmp_path, Transformer(spec, (0, 1)))
    (tmp_path / "model.safetensors").write_text("rubbish")
    with pytest.raises(HetschedError, match="no safetensors file"):
        read_weights(tmp_path, Transformer(spec, (0, 1)))
    save_file({"model.embed_tokens.weight": torch.zeros(256, 31)}, tmp_path / "model.safetensors")
    with pytest.raises(HetschedError, match=r"shape \[256, 31\], expected \[256, 32\]"):
        read_weights(tmp_path, Transformer(spec, (0, 1)))
    with pytest.raises(HetschedError, match=r"has no tensor lm_head.weight|has no tensor model.layers"):
        read_weights(tmp_path, Transformer(spec, (1, 4)))
    with pytest.raises(HetschedError, match="opt models are not known"):
        read_weights(tmp_path, Transformer(replace(model("gpt2"), family="opt"), (0, 1)))
    (tmp_path / "model.safetensors.index.json").write_text("[1]")
    with pytest.raises(HetschedError, match="no index of weights"):
        read_weights(tmp_path, Transformer(spec, (0, 1)))
