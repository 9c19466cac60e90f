"""What `tests.bench.trl` runs in a process of its own: one training by TRL's SFTTrainer. Must not know our trainer.

    python -m tests.bench.trl_child JOB.json

trains on the same token ids with the same adapter, optimizer and schedule, and prints what it took as JSON.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


def main(job: dict[str, Any]) -> None:
    """Trains and prints."""
    torch.set_num_threads(job["threads"])
    rows = [json.loads(line) for line in Path(job["rows"]).read_text().splitlines()]
    trainer = SFTTrainer(
        model=job["base"],
        args=SFTConfig(**_settings(job)),
        train_dataset=Dataset.from_list([_example(row) for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(job["base"]),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear"
        ),
    )
    seen = _Seen()
    trainer.add_callback(seen)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    trainer.model.save_pretrained(job["out"], save_embedding_layers=False)
    tokens = sum(len(row["input_ids"]) for row in rows) * job["epochs"]
    print(json.dumps({"tokens": tokens, "seconds": seconds, "steps": seen.steps, "peak_mb": _peak_mb()}))


class _Seen(TrainerCallback):
    steps = 0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.steps += 1


def _example(row: dict[str, Any]) -> dict[str, Any]:
    """Labels are -100 where nothing is to be learned."""
    prompt = row["prompt_length"]
    return {"input_ids": row["input_ids"], "labels": [-100] * prompt + row["input_ids"][prompt:]}


def _settings(job: dict[str, Any]) -> dict[str, Any]:
    return {
        "output_dir": job["scratch"],
        "num_train_epochs": job["epochs"],
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "cosine",
        "warmup_steps": job["warmup_steps"],
        "weight_decay": 0.0,
        "optim": "adamw_torch",
        "max_length": job["tokens_per_step"],
        "seed": 0,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **job["options"],
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
