import pytest

from rollout.engine.text import encode_prompt, encode_prompts, load_tokenizer

HELLO = [{"role": "system", "content": "brief"}, {"role": "user", "content": "héllo"}]
BYE = [{"role": "user", "content": "bye"}]


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


@pytest.mark.parametrize("prompts", [[HELLO, []], [[], HELLO], ["a", ""], ["", "a"], [[]]])
def test_an_empty_prompt_among_many_is_an_error(tokenizer, prompts):
    with pytest.raises(ValueError, match="prompt must not be empty"):
        encode_prompts(prompts, tokenizer)
