"""The schema of `trainer`."""

from dataclasses import dataclass, field
from enum import Enum

from rollout.config import require


class LRSchedule(Enum):
    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class OptimizerKind(Enum):
    adamw = "adamw"
    muon = "muon"
    """Muon for the matrices of the layers; embedding, head, norms and biases keep AdamW. Its iterations are in bf16, slow on a
    CPU without bf16 instructions."""


class TrainerBackend(Enum):
    torch = "torch"
    deepspeed = "deepspeed"


class DataParallel(Enum):
    ddp = "ddp"
    """A copy of the weights on every rank."""
    fsdp2 = "fsdp2"
    """Weights, gradients and the optimiser's state in shards, one per rank."""


LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(kw_only=True)
class LoRAConfig:
    """Train low-rank adapters of the policy instead of its weights; a critic is trained whole."""

    rank: int = 0
    """Rank of the LoRA adapters; 0 trains all weights."""
    alpha: float = 32.0
    """An adapter's product is scaled by alpha / rank."""
    targets: list[str] = field(default_factory=lambda: list(LORA_TARGETS))
    """Matrices that have one, of every layer."""
    path: str = ""
    """A directory with an adapter in peft's format to begin with; empty: a new one."""

    def __post_init__(self) -> None:
        require(self.rank >= 0, "trainer.lora.rank", ">= 0", self.rank)
        require(self.alpha > 0, "trainer.lora.alpha", "> 0", self.alpha)
        is_known = bool(self.targets) and set(self.targets) <= set(LORA_TARGETS)
        require(
            is_known, "trainer.lora.targets", f"some of {', '.join(LORA_TARGETS)}", self.targets
        )
        require(
            self.rank > 0 or not self.path,
            "trainer.lora.rank",
            "that of the adapter of trainer.lora.path",
            self.rank,
        )
        is_default = self.alpha == 32.0 and self.targets == list(LORA_TARGETS)
        require(
            self.rank > 0 or is_default,
            "trainer.lora.rank",
            "> 0 where trainer.lora.alpha or trainer.lora.targets is set, which are for adapters",
            self.rank,
        )


@dataclass(kw_only=True)
class TrainerConfig:
    num_steps: int = 100
    """Batches to train on; each is one version of the weights, made by `steps_per_batch` optimiser steps."""
    backend: TrainerBackend = TrainerBackend.torch
    """Library that holds the trained weights: `torch`, or `deepspeed` for ZeRO."""
    data_parallel: DataParallel = DataParallel.ddp
    """Layout of the weights on several processes with `backend` `torch`: `ddp` copies them to every rank, `fsdp2` shards them."""
    num_processes: int = 1
    """Processes that train together, on Ray: on this machine, or in the cluster of `fleet.address`. The first is the one that was
    started. Leave it at 1 under torchrun, which starts them itself."""
    threads_per_process: int = 1
    """CPU threads of each process when `num_processes` is above 1, and cores that each but the first asks a cluster for."""
    zero_stage: int = 2
    """Stage of ZeRO with `backend` `deepspeed`, which says what is sharded. 0: nothing, 1: the optimiser's state, 2: gradients too, 3: weights too."""
    offload_optimizer: bool = False
    """With `backend` `deepspeed`, keep the optimiser's state in the host's memory and update there; from `zero_stage` 1 on."""
    learning_rate: float = 1e-6
    """Learning rate after warm-up, before any decay."""
    lr_schedule: LRSchedule = LRSchedule.constant
    """After warm-up: `constant`, or `linear` or `cosine` decay to 0 at `num_steps`."""
    num_warmup_steps: int = 0
    """The learning rate rises linearly over these steps."""
    optimizer: OptimizerKind = OptimizerKind.adamw
    """`adamw`, or `muon` for the matrices of the layers, with steps as large as AdamW's at the same learning rate."""
    weight_decay: float = 0.0
    """Share of each weight that a step takes off, times the learning rate (decoupled, as in AdamW)."""
    adam_beta1: float = 0.9
    """Decay of AdamW's mean of gradients."""
    adam_beta2: float = 0.999
    """Decay of AdamW's mean of squared gradients."""
    adam_epsilon: float = 1e-8
    """Number added to AdamW's divisor, so that it is never 0."""
    muon_momentum: float = 0.95
    """Decay of Muon's mean of gradients."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm."""
    max_skipped_steps: int = 3
    """Steps in a row that may be skipped because a loss or the gradient is not finite; then the run ends."""
    steps_per_batch: int = 1
    """Optimiser steps on each batch, each on an equal part of its groups. Above 1, ratios are to the policy before the first
    step, which takes one more forward; with 1 the ratios are exactly 1, and clipping has no effect."""
    max_tokens_per_micro_batch: int = 4096
    """Packed tokens of one forward and backward; the longest sample must fit."""
    share_prompts: bool = True
    """Compute the prompt of a group, and what it shares with the last group's, once; the gradient is the same."""
    activation_checkpointing: bool = False
    """Keep only the input of each layer for the backward and compute the layer again there: less memory, a forward
    more, and the same gradient bit for bit."""
    ema_decay: float = 0.0
    """Decay of an exponential moving average of the trained weights, kept in fp32; every checkpoint holds it as a Hugging Face
    directory, weights/v<version>/ema. 0: none."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)

    def __post_init__(self) -> None:
        require(self.num_steps >= 0, "trainer.num_steps", ">= 0", self.num_steps)
        require(self.num_processes > 0, "trainer.num_processes", "> 0", self.num_processes)
        threads = self.threads_per_process
        require(threads > 0, "trainer.threads_per_process", "> 0", threads)
        require(0 <= self.zero_stage <= 3, "trainer.zero_stage", "0, 1, 2 or 3", self.zero_stage)
        require(self.learning_rate >= 0, "trainer.learning_rate", ">= 0", self.learning_rate)
        require(
            self.num_warmup_steps >= 0, "trainer.num_warmup_steps", ">= 0", self.num_warmup_steps
        )
        require(self.weight_decay >= 0, "trainer.weight_decay", ">= 0", self.weight_decay)
        require(0 <= self.adam_beta1 < 1, "trainer.adam_beta1", "in [0, 1)", self.adam_beta1)
        require(0 <= self.adam_beta2 < 1, "trainer.adam_beta2", "in [0, 1)", self.adam_beta2)
        require(self.adam_epsilon > 0, "trainer.adam_epsilon", "> 0", self.adam_epsilon)
        require(
            0 <= self.muon_momentum < 1, "trainer.muon_momentum", "in [0, 1)", self.muon_momentum
        )
        require(0 <= self.ema_decay < 1, "trainer.ema_decay", "in [0, 1)", self.ema_decay)
        require(self.max_grad_norm > 0, "trainer.max_grad_norm", "> 0", self.max_grad_norm)
        skipped = self.max_skipped_steps
        require(skipped > 0, "trainer.max_skipped_steps", "> 0", skipped)
        require(self.steps_per_batch > 0, "trainer.steps_per_batch", "> 0", self.steps_per_batch)
        require(
            self.max_tokens_per_micro_batch > 0,
            "trainer.max_tokens_per_micro_batch",
            "> 0",
            self.max_tokens_per_micro_batch,
        )
