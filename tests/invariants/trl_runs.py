"""Training with TRL on the rows of ours, in the same order, for comparison."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from posttrain.core.types import Message
from posttrain.data.chat import render_text
from posttrain.training.batching import step_rows


def in_order(trainer):
    class InOrder(trainer):
        def _get_train_sampler(self, dataset=None):
            return torch.utils.data.SequentialSampler(self.train_dataset if dataset is None else dataset)

    return InOrder


def follow(trainer, config, rows, start, columns, out, *, steps, batch, lr=1e-2):
    """Train with TRL on rendered text (its end-of-sequence token is the end of turn); return losses, norms, weights."""
    from datasets import Dataset

    tokenizer = AutoTokenizer.from_pretrained(start)
    order = [i for s in range(steps) for i in step_rows(s, rows=len(rows), batch_size=batch, seed=5)]

    def rendered(row):
        prompt = render_text(tokenizer, [Message(role="user", content=row["prompt"])], generation_prompt=True)
        return {"prompt": prompt, **{c: row[c] for c in columns}}

    seen = []

    class Keep(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            if logs and "loss" in logs:
                seen.append(logs)

    common = {
        "output_dir": str(out), "per_device_train_batch_size": batch // 2, "gradient_accumulation_steps": 2,
        "learning_rate": lr, "num_train_epochs": 1, "lr_scheduler_type": "linear",
        "warmup_steps": 0, "logging_steps": 1, "report_to": [],
        "save_strategy": "no", "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "max_length": None,
        "disable_tqdm": True,
    }  # fmt: skip
    made = in_order(trainer)(
        model=AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32),
        args=config(**common),
        train_dataset=Dataset.from_list([rendered(rows[i]) for i in order]),
        processing_class=tokenizer,
        callbacks=[Keep()],
    )
    made.train()
    return seen, {name: p.detach() for name, p in made.model.named_parameters()}
