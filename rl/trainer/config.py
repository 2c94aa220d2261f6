"""Config schema of `trainer`."""

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
    """Muon for the matrices of the layers, and AdamW for the embedding, the head, norms and biases. Muon's
    iterations use bf16, which is slow on a CPU without bf16 instructions."""


class TrainerBackend(Enum):
    torch = "torch"
    deepspeed = "deepspeed"


class DataParallel(Enum):
    ddp = "ddp"
    """Data parallelism with a copy of the weights on every rank."""
    fsdp2 = "fsdp2"
    """Weights, gradients and optimizer state in shards, one per rank."""


LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(kw_only=True)
class LoRAConfig:
    """Low-rank adapters of the policy, which are trained instead of its weights. A critic is always trained as a
    whole."""

    rank: int = 0
    """Rank of the LoRA adapters; 0 trains all weights."""
    alpha: float = 32.0
    """Numerator of the scale alpha / rank, which multiplies the product of an adapter."""
    targets: list[str] = field(default_factory=lambda: list(LORA_TARGETS))
    """Matrices of every layer that get an adapter."""
    path: str = ""
    """Directory of an adapter in peft's format to start from. Empty: new adapters."""

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
    """Number of batches to train on. Each batch makes `steps_per_batch` optimizer steps and one new version of the
    weights."""
    backend: TrainerBackend = TrainerBackend.torch
    """Library that stores the trained weights: `torch`, or `deepspeed` for ZeRO."""
    data_parallel: DataParallel = DataParallel.ddp
    """Layout of the weights on several processes with `backend` `torch`: `ddp` copies them to every rank, `fsdp2`
    shards them."""
    num_processes: int = 1
    """Number of processes that train together. Ray starts the others on this machine, or in the cluster of
    `fleet.address`. Leave it at 1 under torchrun, which starts them itself."""
    threads_per_process: int = 1
    """Number of CPU threads of each process if `num_processes` is above 1, and of cores that each process except
    the first requests from a cluster."""
    zero_stage: int = 2
    """Stage of ZeRO with `backend` `deepspeed`, which decides what is sharded. 0: nothing. 1: the optimizer state.
    2: gradients too. 3: weights too."""
    offload_optimizer: bool = False
    """Keep the optimizer state in the host's memory and update it there. Needs `backend` `deepspeed` and
    `zero_stage` of at least 1."""
    learning_rate: float = 1e-6
    """Learning rate after warm-up, before any decay."""
    lr_schedule: LRSchedule = LRSchedule.constant
    """Learning rate after warm-up: `constant`, or `linear` or `cosine` decay to 0 at `num_steps`."""
    num_warmup_steps: int = 0
    """Number of batches over which the learning rate rises linearly to its full value."""
    optimizer: OptimizerKind = OptimizerKind.adamw
    """Optimizer: `adamw`, or `muon` for the matrices of the layers. At the same learning rate, Muon's steps are as
    large as AdamW's."""
    weight_decay: float = 0.0
    """Decay of the weights per optimizer step, multiplied by the learning rate (decoupled, as in AdamW)."""
    adam_beta1: float = 0.9
    """Decay of AdamW's mean of gradients."""
    adam_beta2: float = 0.999
    """Decay of AdamW's mean of squared gradients."""
    adam_epsilon: float = 1e-8
    """Number added to AdamW's divisor, so that it is never 0."""
    muon_momentum: float = 0.95
    """Decay of Muon's mean of gradients."""
    max_grad_norm: float = 1.0
    """Maximum norm of the gradient, which is scaled down to it."""
    max_skipped_steps: int = 3
    """Number of consecutive batches with a skipped optimizer step at which the run ends. A step is skipped if a
    loss or the gradient is not finite."""
    steps_per_batch: int = 1
    """Number of optimizer steps on each batch, each on an equal part of its groups. Above 1, ratios compare with
    the policy before the first step, which needs one more forward. With 1, all ratios are exactly 1 and clipping
    has no effect."""
    max_tokens_per_micro_batch: int = 4096
    """Maximum number of packed tokens in one forward and backward; the longest sample must fit."""
    share_prompts: bool = True
    """Compute a group's prompt, and the prefix that it shares with the previous group's prompt, only once. The
    gradient is the same."""
    activation_checkpointing: bool = False
    """Keep only the input of each layer for the backward, which computes the layer again. This needs less memory
    and one more forward, and gives the same gradient bit for bit."""
    ema_decay: float = 0.0
    """Decay of an exponential moving average of the trained weights, in fp32. Every checkpoint contains it as a
    Hugging Face directory, weights/v<version>/ema. 0: no average."""
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
