"""A plain training step of transformers' model in torch, timed beside ours by benchmarks/train_step.py."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import measure
from fqs_jax.configs import common


def make(folder: Path, rows: int, length: int, threads: int) -> measure.Other:
    """Float32, random weights, clipping and AdamW, as in our step; its first two steps are made here."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    o = common.get_config().optimizer
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).float().train()
    optimizer = torch.optim.AdamW(
        model.parameters(), 1e-6, (o.beta1, o.beta2), o.eps, o.weight_decay
    )
    tokens = torch.randint(0, model.config.vocab_size, (rows, length))

    def step() -> None:
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), o.clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    step()  # makes the state of AdamW, which our figure leaves out too
    before = measure.reset_peak_rss_mb()
    step()
    return measure.Other("torch", step, measure.peak_rss_mb() - before, gemm_gflops)


def gemm_gflops(clock: Callable[[], float], size: int = 1024, repeats: int = 8) -> float:
    """`measure.gemm_gflops` of torch."""
    a = torch.ones(size, size)
    torch.mm(a, a)
    seconds = []
    for _ in range(repeats):
        start = clock()
        torch.mm(a, a)
        seconds.append(clock() - start)
    return 2 * size**3 / statistics.median(seconds) / 1e9
