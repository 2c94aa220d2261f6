import json
import shutil

import pytest
from transformers import AutoTokenizer

from rollout.text.prompts import encode_prompt, encode_prompts
from rollout.text.tokenizer import load_tokenizer
from tests.tiny_models import save_tiny

HELLO = [{"role": "system", "content": "brief"}, {"role": "user", "content": "héllo"}]
BYE = [{"role": "user", "content": "bye"}]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def tokenizer(llama):
    return load_tokenizer(llama)


@pytest.mark.parametrize(
    "prompts",
    [[HELLO, BYE], ["one", "two words"], [[1, 2], [3]], []],
    ids=["chat", "text", "ids", "none"],
)
def test_many_prompts_are_encoded_as_each_alone(tokenizer, prompts):
    assert encode_prompts(prompts, tokenizer) == [encode_prompt(p, tokenizer) for p in prompts]


@pytest.mark.parametrize("class_name", ["PreTrainedTokenizerFast", "TokenizersBackend", None])
def test_the_tokenizer_is_the_one_that_auto_finds(llama, tmp_path, class_name):
    directory = shutil.copytree(llama, tmp_path / "model")
    config_path = directory / "tokenizer_config.json"
    config = json.loads(config_path.read_text())
    config.pop("tokenizer_class", None)
    config_path.write_text(
        json.dumps(config | ({"tokenizer_class": class_name} if class_name else {}))
    )
    ours, auto = load_tokenizer(directory), AutoTokenizer.from_pretrained(directory)
    assert type(ours) is type(auto)
    assert ours.all_special_tokens == auto.all_special_tokens
    for prompt in (HELLO, BYE, "two words", "<|im_start|>x"):
        assert encode_prompt(prompt, ours) == encode_prompt(prompt, auto)
    ids = encode_prompt(HELLO, ours)
    assert ours.decode(ids, skip_special_tokens=True) == auto.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("prompts", [[HELLO, []], [[], HELLO], ["a", ""], ["", "a"], [[]]])
def test_an_empty_prompt_among_many_is_an_error(tokenizer, prompts):
    with pytest.raises(ValueError, match="prompt must not be empty"):
        encode_prompts(prompts, tokenizer)
