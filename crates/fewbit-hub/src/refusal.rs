//! Why the hub gave nothing, as one sentence with the way out.

use std::time::Duration;

use fewbit_format::Error;

use crate::{ModelName, Settings};

/// Why a request gave nothing.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The hub answered that it will not.
    Status(Status),
    /// There is no way to it.
    Unreachable(String),
    /// The connection was there, and broke.
    Broken(String),
    /// What no other try would change.
    Fault(String),
    /// The user asked to stop.
    Stopped,
}

/// An answer other than what was asked for.
#[derive(Debug)]
pub(crate) struct Status {
    pub(crate) code: u16,
    /// The hub's word for it, such as `GatedRepo`.
    pub(crate) word: Option<String>,
    /// For how long it asks to be left alone.
    pub(crate) retry_after: Option<Duration>,
}

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) name: &'a ModelName,
    pub(crate) settings: &'a Settings,
    pub(crate) file: Option<&'a str>,
}

impl Subject<'_> {
    /// Adds the file and the model as places.
    pub(crate) fn place(&self, error: Error) -> Error {
        let error = match self.file {
            Some(file) => error.place(format!("`{file}`")),
            None => error,
        };
        error.place(format!("`{}`", self.name))
    }

    fn page(&self) -> String {
        format!("{}/{}", self.settings.endpoint, self.name.repository())
    }
}

impl Refusal {
    /// Adds what is there to what broke on the way.
    pub(crate) fn with(self, there: &str) -> Self {
        match self {
            Self::Broken(why) => Self::Broken(format!("{why}, {there}")),
            Self::Unreachable(why) => Self::Unreachable(format!("{why}, {there}")),
            other => other,
        }
    }

    /// The sentence.
    pub(crate) fn error(self, of: &Subject<'_>) -> Error {
        let hub = &of.settings.endpoint;
        let error = match self {
            Self::Stopped => {
                return Error::interrupted("interrupted; what is there is kept, and the same command goes on");
            }
            Self::Status(status) => status.error(of),
            Self::Unreachable(why) if of.file.is_none() => {
                Error::input(format!("is no path that exists, and `{hub}` cannot be reached: {why}"))
                    .hint("check the path, or the connection")
            }
            Self::Unreachable(why) => {
                Error::input(format!("`{hub}` cannot be reached any more: {why}")).hint("the same command goes on")
            }
            Self::Broken(why) => Error::input(format!("the connection to `{hub}` broke: {why}"))
                .hint("the same command goes on with what is there"),
            Self::Fault(why) => Error::input(format!("`{hub}` cannot be used: {why}"))
                .hint("check `HF_ENDPOINT` and the proxy, or try again later"),
        };
        of.place(error)
    }
}

impl Status {
    /// Whether another try may change it.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self.code, 408 | 429 | 500 | 502 | 503 | 504)
    }

    fn error(&self, of: &Subject<'_>) -> Error {
        let (repository, page) = (of.name.repository(), of.page());
        let token = of.settings.token.as_ref();
        match (self.code, self.word.as_deref()) {
            (401 | 403, Some("GatedRepo")) => {
                Error::input("is gated: its owners want to be asked first").hint(match token {
                    None => format!("ask for access at {page}, then set `HF_TOKEN` to a token of your account"),
                    Some(t) => format!("ask for access at {page} with the account of the token in {}", t.origin),
                })
            }
            (_, Some("RevisionNotFound")) => Error::input(format!("there is no revision `{}`", of.name.revision()))
                .hint(format!("look for branches, tags and commits at {page}")),
            (404, Some("EntryNotFound") | None) if of.file.is_some() => {
                Error::input("is listed, but not there").hint("try again, or choose another revision")
            }
            (401 | 404, _) if token.is_none() => Error::input(format!(
                "is neither a path that exists nor a model that the hub gives to everybody ({})",
                self.code
            ))
            .hint(format!(
                "check the name; if `{repository}` is private or gated, set `HF_TOKEN` to a token that may read it"
            )),
            (404, _) => Error::input("is neither a path that exists nor a model of the hub (404)")
                .hint("check the name, and that the account of the token may read it"),
            (401 | 403, _) => {
                let origin = token.map_or("the environment", |t| &t.origin);
                Error::input(format!("the hub does not take the token in {origin} ({})", self.code))
                    .hint("make a new one with the right to read this model, or remove it")
            }
            (429, _) => {
                let wait =
                    self.retry_after.map_or_else(|| "later".to_owned(), |d| format!("in {} s", d.as_secs().max(1)));
                let hint = match token {
                    None => format!("try again {wait}, or set `HF_TOKEN`: accounts may ask more often"),
                    Some(_) => format!("try again {wait}"),
                };
                Error::input("the hub was asked too often from here (429)").hint(hint)
            }
            (code, word) => {
                let word = word.map(|w| format!(", {w}")).unwrap_or_default();
                Error::input(format!("`{}` answers with status {code}{word}", of.settings.endpoint))
                    .hint("try again later")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_is_a_sentence_with_a_way_out() {
        let name = ModelName::parse("o/n@v2").unwrap().unwrap();
        let settings = |token: Option<&str>| Settings {
            endpoint: "https://hub".into(),
            cache: "/c".into(),
            token: token.map(|t| crate::Token { text: t.into(), origin: "the variable `HF_TOKEN`".into() }),
            is_offline: false,
            pause: Duration::ZERO,
        };
        let said = |code, word: Option<&str>, token, file| {
            let status = Status { code, word: word.map(str::to_owned), retry_after: Some(Duration::from_secs(7)) };
            Refusal::Status(status).error(&Subject { name: &name, settings: &settings(token), file }).to_string()
        };
        let (anonymous, known) = (None, Some("t"));
        for (sentence, words) in [
            (
                said(401, Some("GatedRepo"), anonymous, Some("config.json")),
                ["`o/n@v2`: `config.json`: is gated", "at https://hub/o/n, then set `HF_TOKEN`"],
            ),
            (said(403, Some("GatedRepo"), known, None), ["is gated", "with the account of the token in the variable"]),
            (said(404, Some("RevisionNotFound"), anonymous, None), ["no revision `v2`", "at https://hub/o/n"]),
            (
                said(404, Some("EntryNotFound"), anonymous, Some("x")),
                ["`x`: is listed, but not there", "another revision"],
            ),
            (
                said(401, Some("RepoNotFound"), anonymous, None),
                ["neither a path that exists nor a model", "set `HF_TOKEN`"],
            ),
            (said(404, Some("RepoNotFound"), known, None), ["nor a model of the hub", "check the name"]),
            (
                said(401, None, known, None),
                ["does not take the token in the variable `HF_TOKEN` (401)", "make a new one"],
            ),
            (said(429, None, anonymous, None), ["too often", "in 7 s, or set `HF_TOKEN`"]),
            (said(418, None, known, None), ["status 418", "later"]),
        ] {
            for word in words {
                assert!(sentence.contains(word), "`{word}` is not in: {sentence}");
            }
        }
    }
}
