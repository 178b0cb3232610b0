"""A tokenizer for models that come without one."""
import json


def tokenizer(folder):
    """A few letters: no test reads text."""
    letters = ["<|end|>", "a", "b", "c", "\u0120", "o", "n", "e", "on", "one", "\u0120a"]
    byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    model = dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None,
                 fuse_unk=False, byte_fallback=False, ignore_merges=False,
                 vocab={letter: i for i, letter in enumerate(letters)},
                 merges=[["o", "n"], ["on", "e"], ["\u0120", "a"]])
    end = dict(id=0, content=letters[0], single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    (folder / "tokenizer.json").write_text(json.dumps(dict(
        version="1.0", truncation=None, padding=None, normalizer=None, post_processor=None, added_tokens=[end],
        pre_tokenizer=byte_level, decoder=byte_level, model=model)))
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(eos_token=letters[0])))
