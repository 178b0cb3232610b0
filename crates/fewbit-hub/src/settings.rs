use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fewbit_format::{Error, Result};

const ENDPOINT: &str = "https://huggingface.co";

/// Where models come from, and where they are kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The hub's address, without a slash at its end.
    pub endpoint: String,
    /// The folder with a folder for each repository.
    pub cache: PathBuf,
    /// What private and gated models are given for.
    pub token: Option<Token>,
    /// Whether nothing but the cache is asked.
    pub is_offline: bool,
    /// How long to wait when a connection breaks for the first time; twice as long each time after.
    pub pause: Duration,
}

/// A token, and where it was found. Its text is never printed.
#[derive(Clone)]
pub struct Token {
    pub(crate) text: String,
    /// The variable or the file.
    pub(crate) origin: String,
}

impl Token {
    /// The token in a file, if there is one.
    pub fn read(file: &Path) -> Option<Self> {
        Self::of(&std::fs::read_to_string(file).ok()?, format!("the file `{}`", file.display()))
    }

    fn of(text: &str, origin: String) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self { text: text.to_owned(), origin })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl Settings {
    /// What the environment says, by the names that the hub's own tools use: `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`,
    /// `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// If there is no folder for the cache, the address is none, or the token cannot be one.
    pub fn from_environment() -> Result<Self> {
        Self::from_variables(&|name| std::env::var_os(name))
    }

    fn from_variables(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self> {
        let said = |name: &str| variable(name).filter(|v| !v.is_empty());
        let text = |name: &str| said(name).and_then(|v| v.into_string().ok());
        let home_folder = said("HOME").map(PathBuf::from);
        let folder = |name: &str| said(name).map(|v| expand(PathBuf::from(v), home_folder.as_deref()));
        let home = || {
            let user = folder("XDG_CACHE_HOME").or_else(|| Some(home_folder.as_ref()?.join(".cache")));
            let home = folder("HF_HOME").or_else(|| user.map(|cache| cache.join("huggingface")));
            home.ok_or_else(|| {
                Error::input("there is no folder for models of the hub").hint("name one with the variable `HF_HOME`")
            })
        };
        let cache = folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE"));
        let is_on = |v: String| matches!(v.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE");
        Ok(Self {
            endpoint: endpoint(text("HF_ENDPOINT"))?,
            cache: cache.map_or_else(|| home().map(|h| h.join("hub")), Ok)?,
            token: token(&text, folder("HF_TOKEN_PATH").or_else(|| Some(home().ok()?.join("token"))))?,
            is_offline: text("HF_HUB_OFFLINE").is_some_and(is_on),
            pause: Duration::from_secs(1),
        })
    }
}

/// `~/x` as shells read it: a variable may have been set without one.
fn expand(path: PathBuf, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path,
    }
}

fn endpoint(named: Option<String>) -> Result<String> {
    let Some(named) = named else { return Ok(ENDPOINT.to_owned()) };
    let address = named.trim_end_matches('/');
    let host = address.strip_prefix("https://").or_else(|| address.strip_prefix("http://"));
    if host.is_some_and(|h| !h.is_empty() && !h.contains(char::is_whitespace)) {
        return Ok(address.to_owned());
    }
    Err(Error::input(format!("`HF_ENDPOINT` is `{named}`, which is no address"))
        .hint(format!("give one such as `{ENDPOINT}`, or remove the variable")))
}

fn token(text: &dyn Fn(&str) -> Option<String>, file: Option<PathBuf>) -> Result<Option<Token>> {
    let of_variable = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]
        .iter()
        .find_map(|name| Token::of(&text(name)?, format!("the variable `{name}`")));
    match of_variable.or_else(|| Token::read(&file?)) {
        Some(token) if !token.text.chars().all(|c| c.is_ascii_graphic()) => {
            Err(Error::input(format!("the token in {} is none: it has spaces or other characters", token.origin))
                .hint("copy it again from the settings of your account"))
        }
        token => Ok(token),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings> {
        Settings::from_variables(&|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v)))
    }

    #[test]
    fn the_cache_lies_where_other_programs_look() {
        let cache = |variables: &[(&str, &str)]| settings(variables).unwrap().cache.display().to_string();
        assert_eq!(cache(&[("HOME", "/u")]), "/u/.cache/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/u"), ("XDG_CACHE_HOME", "/c")]), "/c/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/u"), ("HF_HOME", "/h")]), "/h/hub");
        assert_eq!(cache(&[("HOME", "/u"), ("HF_HOME", "~/h"), ("HF_HUB_CACHE", "")]), "/u/h/hub");
        assert_eq!(cache(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/big")]), "/big");
        assert!(settings(&[]).unwrap_err().to_string().contains("`HF_HOME`"));
    }

    #[test]
    fn a_token_comes_from_a_variable_or_a_file_and_is_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        assert!(settings(&[("HF_HOME", home)]).unwrap().token.is_none());
        std::fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        let of_file = settings(&[("HF_HOME", home), ("HF_HUB_CACHE", "/big")]).unwrap().token.unwrap();
        assert_eq!(of_file.text, "hf_file");
        assert!(of_file.origin.ends_with("token`"), "{}", of_file.origin);
        let of_variable = settings(&[("HF_HOME", home), ("HF_TOKEN", " hf_variable ")]).unwrap();
        assert_eq!(of_variable.token.as_ref().unwrap().text, "hf_variable");
        assert!(!format!("{of_variable:?}").contains("hf_variable"));
        let e = settings(&[("HF_HOME", home), ("HF_TOKEN", "two words")]).unwrap_err().to_string();
        assert!(e.contains("`HF_TOKEN`") && !e.contains("two words"), "{e}");
    }

    #[test]
    fn addresses_and_switches() {
        let with = |name: &'static str, value: &str| settings(&[("HOME", "/u"), (name, value)]);
        assert_eq!(with("HF_ENDPOINT", "http://127.0.0.1:80/").unwrap().endpoint, "http://127.0.0.1:80");
        assert_eq!(with("HF_ENDPOINT", "").unwrap().endpoint, ENDPOINT);
        for wrong in ["ftp://x", "huggingface.co", "https://", "http://a b"] {
            assert!(with("HF_ENDPOINT", wrong).unwrap_err().to_string().contains("no address"), "{wrong}");
        }
        for (value, is_offline) in [("1", true), ("true", true), ("0", false), ("", false)] {
            assert_eq!(with("HF_HUB_OFFLINE", value).unwrap().is_offline, is_offline, "{value}");
        }
    }
}
