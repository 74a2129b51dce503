"""The closed language of the tiny speech model: 63 spoken words, 32 Spanish ones, four prompt words, one token each.

A word is one token so that a model of four million parameters can spend itself on listening. The order of every list
below is the order of the token ids: changing it breaks every checkpoint.
"""

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def _list(words: str) -> list[str]:
    return words.split()


DIGITS = _list("zero one two three four five six seven eight nine")
NATO = _list(
    "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa quebec romeo "
    "sierra tango uniform victor whiskey xray yankee zulu"
)
DAYS = _list("sunday monday tuesday wednesday thursday friday saturday")
MONTHS = _list("january february march april may june july august september october november december")
OTHERS = _list("hundred thousand million star pound dash dot slash plus")
WORDS = list(dict.fromkeys(DIGITS + NATO + DAYS + MONTHS + OTHERS))  # "november" is in two lists

_SPANISH_OF = {
    **dict(zip(DIGITS, _list("cero uno dos tres cuatro cinco seis siete ocho nueve"), strict=True)),
    **dict(zip(DAYS, _list("domingo lunes martes miercoles jueves viernes sabado"), strict=True)),
    **dict(
        zip(
            MONTHS,
            _list("enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre"),
            strict=True,
        )
    ),
    "hundred": "cien",
    "thousand": "mil",
    "million": "millon",
}
SPANISH = {word: _SPANISH_OF[word] for word in WORDS if word in _SPANISH_OF}

SPECIAL_TOKENS = ["<|pad|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
TASKS = ["transcribe", "first", "last", "spanish"]
TOKENS = [*SPECIAL_TOKENS, "<unk>", "user", "assistant", *TASKS, *WORDS, *SPANISH.values()]
TOKEN_ID = {token: index for index, token in enumerate(TOKENS)}

# The template renders one user turn as the model was trained on it, with the task word as the whole instruction:
# <|im_start|> user <|audio_bos|><|AUDIO|>...<|audio_eos|> transcribe <|im_end|> <|im_start|> assistant
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }} "
    "{% else %}{% for c in message['content'] %}"
    "{% if c['type'] == 'audio' or 'audio' in c or 'audio_url' in c %}<|audio_bos|><|AUDIO|><|audio_eos|> "
    "{% elif 'text' in c %}{{ c['text'] }} {% endif %}{% endfor %}{% endif %}<|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A whitespace, word-level tokenizer over TOKENS."""
    tokenizer = Tokenizer(models.WordLevel(TOKEN_ID, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        padding_side="left",  # for batched generation
        model_max_length=1024,
    )


def prompt_ids(task: str) -> tuple[list[int], list[int]]:
    """The token ids before and after the audio tokens; the template above gives the same ones."""
    before = [TOKEN_ID[token] for token in ("<|im_start|>", "user", "<|audio_bos|>")]
    after = [TOKEN_ID[token] for token in ("<|audio_eos|>", task, "<|im_end|>", "<|im_start|>", "assistant")]
    return before, after


def answer(words: Sequence[str], task: str) -> list[str]:
    """What the model must say to `task` after hearing `words`."""
    if task == "transcribe":
        return list(words)
    if task == "first":
        return [words[0]]
    if task == "last":
        return [words[-1]]
    if task == "spanish":
        return [SPANISH[word] for word in words]
    raise ValueError(f"unknown task {task!r}; the model knows {', '.join(TASKS)}")
