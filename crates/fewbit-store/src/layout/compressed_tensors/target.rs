use fancy_regex::Regex;
use fewbit_format::{Error, Result};

/// What names modules in compressed-tensors' settings: a regular expression behind `re:`, or the exact name of a
/// module or of its class.
#[derive(Clone, Debug)]
pub(super) enum Target {
    Pattern(Box<Regex>),
    Name(String),
}

/// How closely a target names a module; the closest decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Match {
    Name,
    Pattern,
    Class,
}

impl Target {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let Some(pattern) = text.strip_prefix("re:") else { return Ok(Self::Name(text.to_owned())) };
        // Python's `re.match`, for which these are written, is anchored in front and not behind.
        let anchored = format!(r"\A(?:{})", pattern.replace(r"\Z", r"\z"));
        Regex::new(&anchored)
            .map(|r| Self::Pattern(Box::new(r)))
            .map_err(|e| Error::input(format!("the target `{text}` is not a regular expression that can be read: {e}")))
    }

    /// Whether it names this linear; everything that is asked about is of class `Linear`.
    pub(super) fn matches(&self, module: &str) -> Option<Match> {
        match self {
            Self::Name(name) if name == module => Some(Match::Name),
            Self::Name(name) if name == "Linear" => Some(Match::Class),
            // A pattern that backtracks without end names nothing.
            Self::Pattern(regex) if regex.is_match(module).unwrap_or(false) => Some(Match::Pattern),
            Self::Name(_) | Self::Pattern(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_as_python_does() {
        let m = |t: &str, name: &str| Target::parse(t).unwrap().matches(name);
        assert_eq!(m("Linear", "a.b"), Some(Match::Class));
        assert_eq!(m("lm_head", "lm_head"), Some(Match::Name));
        assert_eq!(m("lm_head", "model.lm_head"), None);
        assert_eq!(m("re:.*self_attn.*_proj$", "model.layers.0.self_attn.q_proj"), Some(Match::Pattern));
        assert_eq!(m("re:self_attn", "model.layers.0.self_attn.q_proj"), None, "anchored in front");
        assert_eq!(m("re:model|lm", "lm_head"), Some(Match::Pattern), "the anchor holds for both sides");
        assert_eq!(m("re:^(?!.*lm_head).*", "model.layers.0.mlp"), Some(Match::Pattern), "look-ahead");
        assert_eq!(m("re:^(?!.*lm_head).*", "lm_head"), None);
        assert!(Target::parse("re:(").is_err());
    }
}
