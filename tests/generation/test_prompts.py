"""What an answer can be asked with: texts, chats, ids, batches; what a model generates by itself; what is refused."""

import warnings

import pytest
import torch
from small_transformers import gpt2, ids, llama, t5
from trained_tokenizers import byte_bpe, sentencepiece
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

from lxt_compose import attribute_generation

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    found = PreTrainedTokenizerFast(
        tokenizer_object=byte_bpe(), eos_token="<|endoftext|>", pad_token="<|endoftext|>", chat_template=TEMPLATE,
        padding_side="left", model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    found.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|system|>"]})
    return found


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=1, n_embd=16, n_head=2, vocab_size=len(tokenizer), n_positions=128, bos_token_id=0, eos_token_id=0,
        pad_token_id=0,
    )  # fmt: skip
    found = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return found


def test_texts_are_split_as_one(model, tokenizer):
    (answer,) = attribute_generation(model, "the quick brown", " fox jumps", tokenizer=tokenizer)
    assert list(answer.sources.ids) == tokenizer("the quick brown fox jumps")["input_ids"]
    assert answer.text == "fox jumps"
    assert [answer.sources.sides.count(side) for side in ("prompt", "output")] == [
        len(tokenizer(text)["input_ids"]) for text in ("the quick brown", " fox jumps")
    ]


def test_a_text_of_sentencepiece_goes_on_without_a_space_of_its_own():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=sentencepiece(), bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2)
    model = GPT2LMHeadModel(config).double().eval()
    (answer,) = attribute_generation(model, "the unbeliev", "able film", tokenizer=tokenizer)
    assert list(answer.sources.ids) == tokenizer("the unbelievable film")["input_ids"] or answer.text == "able film"


def test_a_chat_knows_who_said_what(model, tokenizer):
    chat = [
        {"role": "system", "content": "never boring"},
        {"role": "user", "content": "the quick brown fox"},
    ]
    (answer,) = attribute_generation(model, chat, "jumps", tokenizer=tokenizer)
    sources = answer.sources
    said = {role: [] for role in ("system", "user", "template", "")}
    for token, role in zip(sources.ids, sources.roles, strict=True):
        said[role].append(token)
    assert tokenizer.decode(said["system"]) == "never boring"
    assert tokenizer.decode(said["user"]) == "the quick brown fox"
    assert tokenizer.convert_ids_to_tokens(said["template"]) == [
        "<|system|>", "<|endoftext|>", "<|user|>", "<|endoftext|>", "<|assistant|>",
    ]  # fmt: skip
    assert tokenizer.decode(said[""]) == "jumps"
    sums = answer.sums()
    assert list(sums) == ["special tokens", "system", "user", "output", "biases and the like"]
    template = torch.tensor([role == "template" for role in sources.roles])
    assert torch.allclose(sums["special tokens"], answer.relevance[:, template].sum(1))


def test_a_chat_generates_from_the_assistants_turn(model, tokenizer):
    chat = [{"role": "user", "content": "the film"}]
    (answer,) = attribute_generation(model, chat, tokenizer=tokenizer, max_new_tokens=3)
    wanted = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_tensors="pt")
    wanted = wanted if isinstance(wanted, torch.Tensor) else wanted["input_ids"]
    assert list(answer.sources.ids[: wanted.shape[1]]) == wanted[0].tolist()
    several = attribute_generation(model, [chat, chat], tokenizer=tokenizer, max_new_tokens=3)
    assert [one.sources.ids for one in several] == [answer.sources.ids] * 2


def test_what_is_generated_is_what_generate_gives(model, tokenizer):
    texts = ["the quick brown fox", "never"]
    found = attribute_generation(model, texts, tokenizer=tokenizer, max_new_tokens=5, num_beams=2)
    for text, answer in zip(texts, found, strict=True):
        given = tokenizer(text, return_tensors="pt")
        wanted = model.generate(**given, max_new_tokens=5, num_beams=2)[0].tolist()
        assert list(answer.sources.ids) == wanted
        assert answer.predictions.ranks.shape == (len(wanted) - given["input_ids"].shape[1],)


def test_sampling_goes_to_generate(model, tokenizer):
    given = {"tokenizer": tokenizer, "max_new_tokens": 4, "do_sample": True, "top_k": 20, "num_return_sequences": 3}
    torch.manual_seed(3)
    found = attribute_generation(model, "the film", **given)
    torch.manual_seed(3)
    ids = tokenizer("the film", return_tensors="pt")
    wanted = model.generate(**ids, max_new_tokens=4, do_sample=True, top_k=20, num_return_sequences=3)
    length = ids["input_ids"].shape[1]
    assert len(found) == 3
    for one, row in zip(found, wanted[:, length:].tolist(), strict=True):
        assert list(one.sources.ids[length:]) == row[: one.length]


def test_an_answer_ends_with_its_end_token_and_without_padding(model, tokenizer):
    greedy = attribute_generation(model, "the film", tokenizer=tokenizer, max_new_tokens=4)[0].sources.ids[-4:]
    (answer,) = attribute_generation(
        model, "the film", tokenizer=tokenizer, max_new_tokens=4, eos_token_id=greedy[1], pad_token_id=0
    )
    assert answer.sources.ids[-2:] == greedy[:2]
    assert answer.length == 2


def test_stop_strings(model, tokenizer):
    whole = attribute_generation(model, "the film", tokenizer=tokenizer, max_new_tokens=6)[0]
    word = tokenizer.decode([whole.sources.ids[2]])
    (answer,) = attribute_generation(model, "the film", tokenizer=tokenizer, max_new_tokens=6, stop_strings=[word])
    assert answer.length == 1
    assert word in tokenizer.decode(answer.sources.ids)


def test_a_decoder_goes_on_from_what_it_was_given():
    model = t5()
    (plain,) = attribute_generation(model, ids(1, 5), max_new_tokens=3)
    assert plain.sources.sides.count("start") == 1
    given = {"input_ids": ids(1, 5), "decoder_input_ids": torch.tensor([[0, 7, 8]])}
    (answer,) = attribute_generation(model, given, max_new_tokens=3)
    assert answer.sources.sides.count("start") == 3
    assert list(answer.sums()) == ["prompt", "start", "output", "biases and the like"]


def test_spans_by_text_words_and_sentences(model, tokenizer):
    text = " never boring. It runs 3.14 times! 日本語。한국어"
    given = {"tokenizer": tokenizer}
    (tokens,) = attribute_generation(model, "the film was", text, **given)
    assert tokens.text == text.strip()
    for targets, names in {
        "sentences": ["never boring.", "It runs 3.14 times!", "日本語。", "한국어"],
        "all": ["the whole answer"],
    }.items():
        (answer,) = attribute_generation(model, "the film was", text, targets=targets, **given)
        assert [span.name for span in answer.spans] == names
        assert answer.spans[0].start == 0
        assert answer.spans[-1].stop == answer.length
        assert [a.stop for a in answer.spans[:-1]] == [b.start for b in answer.spans[1:]]
    (answer,) = attribute_generation(model, "the film was", text, targets=["boring. It", "日"], **given)
    first, second = answer.spans
    assert tokenizer.decode(answer.sources.ids[-answer.length :][first.start : first.stop]).strip() == "boring. It"
    assert "日" in tokenizer.decode(answer.sources.ids[-answer.length :][second.start : second.stop])
    (answer,) = attribute_generation(model, "the film was", text, targets="words", **given)
    assert answer.spans[1].name == "boring."


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prompt": "a text"}, TypeError, r"a text as the prompt needs a tokenizer: pass tokenizer="),
        ({"prompt": [[1, 2]], "continuation": "a"}, TypeError, "a text as the continuation needs a tokenizer"),
        ({"prompt": 3.5}, TypeError, r"a prompt is a text, a chat .*, got float"),
        ({"prompt": []}, TypeError, "a prompt is a text"),
        ({"prompt": torch.tensor([[0.5]])}, TypeError, r"token ids are integers .* got torch.float32"),
        ({"prompt": {"attention_mask": [[1]]}}, TypeError, "holds input_ids, got attention_mask"),
        ({"prompt": {"input_ids": [[1]], "x": [[1.0]]}, "continuation": [7]}, ValueError, r"forward\(\) takes no x"),
        ({"prompt": {"input_ids": [[1]], "attention_mask": [[0]]}}, ValueError, "sample 0 of the prompt has no tokens"),
        ({"prompt": {"input_ids": [[1]], "past_key_values": DynamicCache()}}, ValueError, "past_key_values was given"),
        ({"past_key_values": DynamicCache(), "max_new_tokens": 2}, ValueError, "give the whole prompt instead"),
        ({}, ValueError, r"give the continuation= to be explained, or max_new_tokens="),
        ({"continuation": [7], "max_new_tokens": 3}, TypeError, "max_new_tokens: options of generate"),
        ({"continuation": [[7], [8]]}, ValueError, "continuation: there are 2 for 1 samples"),
        ({"continuation": 7}, TypeError, r"continuation: a continuation is a text or token ids.* got int"),
        ({"continuation": [[]]}, ValueError, "the continuation of sample 0 has no tokens"),
        ({"continuation": [7], "contrast": [[]]}, ValueError, "the contrast of sample 0 has no tokens"),
        ({"continuation": [7], "targets": "letters"}, TypeError, "targets is one of 'tokens', 'words'"),
        ({"continuation": [7], "targets": [(0, 2)]}, ValueError, r"span \(0, 2\) is not within the answer"),
        ({"continuation": [7], "targets": [True]}, TypeError, "True is no span"),
        ({"continuation": [7], "targets": ["x"]}, ValueError, "'x' does not stand in the answer '7'"),
        ({"continuation": [7], "targets": [slice(0, 1, 2)]}, ValueError, "a span has no gaps"),
        ({"continuation": [7], "of": "odds"}, ValueError, "of must be one of 'logit', 'log_probability', got 'odds'"),
        ({"continuation": [7], "traced": True, "ledger": True}, ValueError, "traced=True is for logits"),
        ({"continuation": [7], "chunk_size": 0}, ValueError, "chunk_size must be None or a whole number from 1 on"),
        ({"continuation": [7], "top": True}, ValueError, "top must be None or a whole number"),
        ({"prompt": [{"role": "user", "content": "x"}]}, TypeError, "a chat needs a tokenizer"),
    ],
)  # fmt: skip
def test_errors(arguments, error, message):
    arguments = {"prompt": ids(1, 3), **arguments}
    with pytest.raises(error, match=message):
        attribute_generation(gpt2(), **arguments)


def test_other_errors(tokenizer):
    with pytest.raises(TypeError, match=r"takes a torch.nn.Module, got str"):
        attribute_generation("gpt2", "x")
    with pytest.raises(TypeError, match="Linear has no method generate; give the continuation="):
        attribute_generation(torch.nn.Linear(2, 2), [1], max_new_tokens=2)
    with pytest.raises(ValueError, match="shows gradients"):
        attribute_generation(llama(), [1], [2], composite="guided_backprop")
    plain = PreTrainedTokenizerFast(tokenizer_object=byte_bpe())
    with pytest.raises(ValueError, match="has no chat template, so it is not known"):
        attribute_generation(llama(), [{"role": "user", "content": "x"}], [2], tokenizer=plain)
    found = attribute_generation(llama(), [[3, 4], [5, 6]], [[7], [8]])
    with pytest.raises(ValueError, match=r"there are 2 answers: take one of them, result\[0\]"):
        _ = found.relevance
    with pytest.raises(IndexError, match="there is no sample 2: there are 2"):
        found[2]
    (spans,) = attribute_generation(llama(), [3, 4], [7, 8], targets="all")
    with pytest.raises(ValueError, match="only spans were explained"):
        spans.row(0)
    with pytest.raises(ValueError, match="the span 1 to 3 is not within the answer"):
        found[0].row(1, 3)


def test_an_unknown_option_is_named_with_the_closest(model, tokenizer):
    with pytest.raises(TypeError, match=r"'max_new_token' is no option .*; did you mean 'max_new_tokens'\?"):
        attribute_generation(model, "the quick", tokenizer=tokenizer, max_new_token=2)


def test_options_of_all_kinds_are_known(model, tokenizer):
    (answer,) = attribute_generation(
        model, "the quick", tokenizer=tokenizer, max_new_tokens=2, do_sample=False, num_beams=2, logits_processor=None
    )
    assert answer.length <= 2


def test_more_tokens_than_rows_for_positions_are_refused_before_generating():
    config = GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=40, n_positions=7, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    message = "the prompt has 4 tokens and 5 follow, .* GPT2LMHeadModel has positions for 7; give a shorter"
    for options in ({"max_new_tokens": 5}, {"max_length": 9}, {"continuation": [1, 2, 3, 4, 5]}):
        with pytest.raises(ValueError, match=message):
            attribute_generation(model, [3, 4, 5, 6], **options)
    assert attribute_generation(model, [3, 4, 5, 6], [1, 2, 3, 4]).relevance.shape == (4, 8)  # the last is not read


def test_tables_with_rows_for_other_things_have_fewer_positions():
    config = OPTConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, word_embed_proj_dim=16,
        max_position_embeddings=7,
    )  # fmt: skip
    model = OPTForCausalLM(config).eval()
    with pytest.raises(ValueError, match="OPTForCausalLM has positions for 7"):
        attribute_generation(model, [3, 4, 5, 6], [1, 2, 3, 4, 5])
    assert attribute_generation(model, [3, 4, 5, 6], [1, 2, 3, 4]).relevance.shape == (4, 8)


def test_positions_beyond_those_of_training_are_warned_about():
    model = llama(max_position_embeddings=7)
    with pytest.warns(UserWarning, match="the prompt has 4 tokens and 5 follow, .* was trained on 7 positions"):
        attribute_generation(model, [3, 4, 5, 6], [1, 2, 3, 4, 5])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attribute_generation(model, [3, 4, 5, 6], [1, 2, 3, 4])


def test_a_contrast_with_the_answer_itself_is_refused(model):
    with pytest.raises(ValueError, match="the contrast of sample 0 is the answer itself"):
        attribute_generation(model, [3, 4], [5, 6], contrast=[5, 6])
