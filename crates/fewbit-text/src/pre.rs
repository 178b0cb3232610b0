use fewbit_format::{Error, Result};

/// How a byte-level BPE cuts text into words, by the name that GGUF keeps in `tokenizer.ggml.pre`.
///
/// A text is cut by the first pattern, its parts by the next; what no pattern matches is a part of its own.
pub(crate) struct PreTokenizer {
    names: &'static [&'static str],
    /// Regular expressions in the order of their use.
    pub(crate) patterns: &'static [&'static str],
    /// Whether a word that is a token is taken whole, before any merge.
    pub(crate) whole_words: bool,
    /// Whether a text starts with BOS where the file does not say.
    pub(crate) adds_bos: bool,
}

/// Taken, with a warning, where the file does not say.
pub(crate) const DEFAULT: &str = "gpt-2";

pub(crate) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const KNOWN: &[PreTokenizer] = &[
    PreTokenizer {
        names: &["gpt-2", "gpt-neox", "olmo", "mpt", "phi-2", "jais", "exaone4", "modern-bert", "granite-docling"],
        patterns: &[GPT2],
        whole_words: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        whole_words: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        patterns: &[LLAMA3],
        whole_words: true,
        adds_bos: true,
    },
    PreTokenizer {
        names: &["dbrx", "smaug-bpe", "chatglm-bpe", "glm4"],
        patterns: &[LLAMA3],
        whole_words: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan", "solar-open"],
        patterns: &[QWEN2],
        whole_words: false,
        adds_bos: false,
    },
    PreTokenizer { names: &["qwen35"], patterns: &[QWEN35], whole_words: false, adds_bos: false },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        patterns: &[r"\p{N}", GPT2],
        whole_words: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["falcon"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
        whole_words: false,
        adds_bos: false,
    },
    PreTokenizer { names: &["tekken"], patterns: &[TEKKEN], whole_words: true, adds_bos: true },
    PreTokenizer { names: &["gpt-4o", "llama4"], patterns: &[GPT4O], whole_words: false, adds_bos: false },
];

/// The pre-tokenizer called `name`; where the file has none, GPT-2's with a warning.
pub(crate) fn by_name(name: Option<&str>) -> Result<&'static PreTokenizer> {
    if name.is_none() {
        log::warn!(
            "the file has no `tokenizer.ggml.pre`: words are cut as by `{DEFAULT}`, ids may differ from the model's"
        );
    }
    let name = name.unwrap_or(DEFAULT);
    KNOWN.iter().find(|p| p.names.contains(&name)).ok_or_else(|| {
        let known: Vec<&str> = KNOWN.iter().map(|p| p.names[0]).collect();
        Error::input(format!("the pre-tokenizer `{name}` is not known (known are {})", known.join(", ")))
            .place("`tokenizer.ggml.pre`")
            .hint("use the model's Hugging Face folder with its `tokenizer.json`")
    })
}

/// The name of the pre-tokenizer that cuts by these patterns.
pub(crate) fn by_patterns(patterns: &[String], whole_words: bool) -> Option<&'static str> {
    KNOWN.iter().find(|p| p.patterns == patterns && p.whole_words == whole_words).map(|p| p.names[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_patterns_compile() {
        let mut names: Vec<&str> = KNOWN.iter().flat_map(|p| p.names).copied().collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        for p in KNOWN.iter().flat_map(|p| p.patterns) {
            tokenizers::utils::SysRegex::new(p).unwrap();
        }
    }

    #[test]
    fn an_unknown_name_is_named_and_none_is_the_default() {
        let e = by_name(Some("viking")).err().unwrap().to_string();
        assert!(e.starts_with("`tokenizer.ggml.pre`: the pre-tokenizer `viking` is not known"), "{e}");
        assert!(by_name(None).unwrap().names.contains(&DEFAULT));
    }
}
