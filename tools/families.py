"""Prune small configurations of Hugging Face transformers to half their MACs, with no configuration of the pruning.

    python tools/families.py --out results/families.json [--models 'llama*'] [--markdown docs/families.md]

Each model is built from a configuration (nothing is downloaded), its weights random and seeded, none of them constant,
and runs in a process of its own, bounded in time. A model is *exact* when the pruned graph equals the original with the
removed slices masked, in float64 and relative to the largest output, within 1e-9. *Own code* is how far the model's own
class is from the graph once the result was written into it (``apply_to``), or that this was refused, and why. A model
that has a record in the output file is skipped, so that a run can be taken up again.
"""

from __future__ import annotations

import argparse
import fnmatch
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a script: the checkout itself is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from tools._pool import Limits, answering, record_of
from tools._records import changed, read, write_text

_TEXT = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
_LLAMA = {**_TEXT, "num_key_value_heads": 2, "max_position_embeddings": 64, "use_cache": False}
_IMAGE = {"image_size": 32, "patch_size": 8, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_IMAGE |= {"intermediate_size": 128}
_STAGES = {"num_labels": 7, "image_size": 64}


def _ids(length: int = 12) -> Tensor:
    return torch.randint(0, 96, (2, length), generator=torch.Generator().manual_seed(0))


def _image(size: int = 32) -> Tensor:
    return torch.randn((2, 3, size, size), generator=torch.Generator().manual_seed(0))


Made = tuple[nn.Module, dict[str, Any]]


def _build(config: str, model: str, inputs: dict[str, Any], **options: Any) -> Made:
    import transformers

    settings = getattr(transformers, config)(**options)
    return getattr(transformers, model)(settings), inputs


def _text(config: str, model: str, **options: Any) -> Callable[[], Made]:
    inputs = {"input_ids": _ids(), "attention_mask": torch.ones(2, 12, dtype=torch.long)}
    return lambda: _build(config, model, inputs, **{**_TEXT, **options})


def _causal(config: str, model: str, **options: Any) -> Callable[[], Made]:
    return lambda: _build(config, model, {"input_ids": _ids()}, **{**_LLAMA, **options})


def _picture(config: str, model: str, size: int = 32, **options: Any) -> Callable[[], Made]:
    return lambda: _build(config, model, {"pixel_values": _image(size)}, **options)


MODELS: dict[str, Callable[[], Made]] = {
    "bert": _text("BertConfig", "BertForSequenceClassification"),
    "roberta": _text("RobertaConfig", "RobertaForSequenceClassification", max_position_embeddings=64),
    "distilbert": lambda: _build(
        "DistilBertConfig", "DistilBertForSequenceClassification", {"input_ids": _ids()},
        vocab_size=96, dim=64, n_layers=2, n_heads=4, hidden_dim=128,
    ),
    "gpt2": lambda: _build(
        "GPT2Config", "GPT2LMHeadModel", {"input_ids": _ids()},
        vocab_size=96, n_embd=64, n_layer=2, n_head=4, use_cache=False,
    ),
    "llama": _causal("LlamaConfig", "LlamaForCausalLM"),
    "llama_tied": _causal("LlamaConfig", "LlamaForCausalLM", tie_word_embeddings=True),
    "qwen3": _causal("Qwen3Config", "Qwen3ForCausalLM", head_dim=16),
    "mistral": _causal("MistralConfig", "MistralForCausalLM", sliding_window=None),
    "phi": _causal("PhiConfig", "PhiForCausalLM", num_key_value_heads=4),
    "t5": lambda: _build(
        "T5Config", "T5ForConditionalGeneration", {"input_ids": _ids(), "decoder_input_ids": _ids(6)},
        vocab_size=96, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, use_cache=False,
    ),
    "vit": _picture("ViTConfig", "ViTForImageClassification", **_IMAGE),
    "deit": _picture("DeiTConfig", "DeiTForImageClassification", **_IMAGE),
    "swin": _picture(
        "SwinConfig", "SwinForImageClassification", 64, **_STAGES, patch_size=4, embed_dim=32, depths=[2, 2],
        num_heads=[2, 4], window_size=4,
    ),
    "convnext": _picture(
        "ConvNextConfig", "ConvNextForImageClassification", 64, **_STAGES, hidden_sizes=[32, 64], depths=[2, 2],
        num_stages=2,
    ),
    "segformer": _picture("SegformerConfig", "SegformerForSemanticSegmentation", 64, num_labels=7),
    "clip_vision": _picture("CLIPVisionConfig", "CLIPVisionModel", **_IMAGE),
    "clip_text": lambda: _build(
        "CLIPTextConfig", "CLIPTextModel", {"input_ids": _ids()}, **_TEXT, max_position_embeddings=32, eos_token_id=95,
    ),
    "whisper": lambda: _build(
        "WhisperConfig", "WhisperForConditionalGeneration",
        {"input_features": torch.randn(2, 16, 40), "decoder_input_ids": _ids(6)},
        vocab_size=96, num_mel_bins=16, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, max_source_positions=20,
        max_target_positions=16, use_cache=False, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
    ),
    "sam_vision": lambda: _build(
        "SamVisionConfig", "SamVisionModel", {"pixel_values": _image(64)},
        hidden_size=64, output_channels=32, num_hidden_layers=2, num_attention_heads=4, image_size=64, patch_size=8,
        mlp_dim=128, window_size=4, global_attn_indexes=[1], initializer_range=0.02,  # its own is 1e-10
    ),
    "detr": lambda: _build(
        "DetrConfig", "DetrForObjectDetection", {"pixel_values": _image(64)},
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, d_model=64, encoder_layers=2,
        decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=128,
        decoder_ffn_dim=128, num_queries=9,
    ),
}  # fmt: skip


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Replace what a fresh model leaves at zero or one, so that no check is vacuous."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.numel() > 1 and bool(parameter.min() == parameter.max()):
            noise = torch.rand(parameter.shape, generator=generator)
            parameter.copy_(parameter + 0.2 * (noise - 0.5))


def work(name: str) -> dict[str, Any]:
    """Prune one model, and return how it went."""
    import fxprune

    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    randomize(model.eval())
    record: dict[str, Any] = {"model": name, "parameters": sum(p.numel() for p in model.parameters())}
    stage, start = "capture", time.perf_counter()
    try:
        traced = fxprune.trace(model, (), kwargs=inputs)
        record |= {"capture_s": time.perf_counter() - start, "notes": list(traced.notes)}
        stage = "groups"
        groups = fxprune.find_groups(traced)
        record |= {"units": int(groups.live.sum()), "nodes": len(traced.module.graph.nodes)}
        stage = "plan"
        plan = fxprune.make_plan(traced, macs=0.5, round_to=1, groups=groups)
        stage = "cut"
        pruned = fxprune.cut(traced, plan, groups)
        record["macs"] = fxprune.count(pruned).macs / fxprune.count(traced).macs
        stage = "verify"
        checked = fxprune.verify_cut(traced, pruned, plan, groups)
        record |= {"error": checked.max_relative_error, "outcome": "exact" if checked.live else "proves nothing"}
        stage = "apply"
        record |= _own_code(model, pruned)
        stage = "export"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            fxprune.export_onnx(pruned, path)
            record["onnx_error"] = fxprune.check_parity(pruned, path).max_relative_error
    except Exception as problem:  # whatever is raised is the result
        record.setdefault("outcome", f"failed at {stage}")
        record["detail"] = f"{stage}: {type(problem).__name__}: {' '.join(str(problem).split())[:600]}"
    return record


def _own_code(model: nn.Module, pruned: Any) -> dict[str, Any]:
    """Write the result into the model's own class."""
    from fxprune.eager import apply_to
    from fxprune.errors import FxPruneError

    try:
        applied = apply_to(pruned, model)
    except FxPruneError as problem:
        return {"own_refused": " ".join(str(problem).split())[:600]}
    return {"own_error": applied.max_relative_error, "own_dtype": applied.dtype, "own_notes": applied.notes}


def bounded(name: str, timeout: float) -> dict[str, Any]:
    """Run one model in a process of its own."""
    return record_of(["-m", "tools.families", "--worker", name], Limits(seconds=timeout), model=name)


def markdown(records: dict[str, Any]) -> str:
    """Return the table."""
    lines = [
        "| model | outcome | MACs kept | float64 error | own code | ONNX error | note |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in records.items():
        kept, error, own, onnx = (
            format(r[key], form) if key in r else ""
            for key, form in (("macs", ".1%"), ("error", ".0e"), ("own_error", ".0e"), ("onnx_error", ".0e"))
        )
        if "own_refused" in r:
            own = "refused"
        elif r.get("own_dtype", "float64") != "float64":
            own += f" ({r['own_dtype']})"
        told = [r["detail"]] if "detail" in r else r.get("notes", [])
        told = [*told, *filter(None, [r.get("own_refused", "")]), *r.get("own_notes", [])]
        note = re.sub(r"\S*site-packages/", "", "; ".join(told))[:400].replace("|", "\\|")
        lines.append(f"| {name} | {r['outcome']} | {kept} | {error} | {own} | {onnx} | {note} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run what has no record yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", metavar="GLOB", action="append")
    parser.add_argument("--out", type=Path, default=Path("results/families.json"))
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds per model")
    parser.add_argument("--redo", action="store_true", help="run models again that have a record")
    parser.add_argument("--worker", metavar="MODEL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.worker:
        torch.set_num_threads(1)
        with answering() as answer:
            answer(work(options.worker))
        return 0
    for name in MODELS:
        chosen = any(fnmatch.fnmatchcase(name, pattern) for pattern in options.models or ["*"])
        if not chosen or (name in read(options.out) and not options.redo):
            continue
        record = bounded(name, options.timeout)
        with changed(options.out) as records:
            records[name] = record
        print(f"{name:14s} {record['outcome']:20s} {record.get('detail', '')[:300]}", flush=True)
    text = markdown(read(options.out))
    if options.markdown:
        write_text(options.markdown, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
