use std::fmt;

use fewbit_format::{Error, Result};

use crate::untrusted::is_inside;

/// A model of the hub as people name it: `owner/name[@revision][:file]`.
///
/// The revision is a branch, a tag or a commit. The file is a GGUF file, or a part of the name of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelName {
    repository: String,
    revision: Option<String>,
    file: Option<String>,
}

impl ModelName {
    /// Reads a name; `None` where the text has another form, such as that of a path.
    ///
    /// # Errors
    /// If it is a name but for its revision or file.
    pub fn parse(text: &str) -> Result<Option<Self>> {
        let (front, file) = split(text, ':');
        let (repository, revision) = split(front, '@');
        if !is_repository(repository) {
            return Ok(None);
        }
        if let Some(revision) = revision.filter(|r| !is_revision(r)) {
            return Err(Error::input(format!("`{revision}` is no revision"))
                .hint("give a branch, a tag or a commit, as in `owner/name@main`")
                .place(format!("`{text}`")));
        }
        if let Some(file) = file.filter(|f| !is_inside(f)) {
            return Err(Error::input(format!("`{file}` is no name of a file"))
                .hint("give a GGUF file or a part of its name, as in `owner/name:Q4_K_M`")
                .place(format!("`{text}`")));
        }
        let owned = |part: Option<&str>| part.map(str::to_owned);
        Ok(Some(Self { repository: repository.to_owned(), revision: owned(revision), file: owned(file) }))
    }

    /// `owner/name`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The revision, `main` where none was named.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// The revision that was named.
    pub(crate) fn named_revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// The GGUF file, or the part of its name.
    pub(crate) fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        match &self.file {
            Some(file) => write!(f, ":{file}"),
            None => Ok(()),
        }
    }
}

fn split(text: &str, at: char) -> (&str, Option<&str>) {
    text.split_once(at).map_or((text, None), |(front, back)| (front, Some(back)))
}

/// `owner/name` by the hub's rules; what ends as a file of weights does is a path that is not there.
fn is_repository(text: &str) -> bool {
    let is_name = |part: &str| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let is_whole = !part.is_empty() && part.len() <= 96 && part.chars().all(is_plain);
        is_whole
            && !part.contains("--")
            && !part.contains("..")
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
    };
    let is_file = [".gguf", ".safetensors", ".json"].iter().any(|end| text.ends_with(end));
    !is_file && text.split_once('/').is_some_and(|(owner, name)| is_name(owner) && is_name(name))
}

fn is_revision(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+' | '/');
    is_inside(text) && text.chars().all(is_plain) && !text.split('/').any(|part| part.starts_with(['.', '-']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<ModelName> {
        ModelName::parse(text).unwrap()
    }

    #[test]
    fn names_have_three_parts() {
        let name = parsed("Qwen/Qwen3-0.6B-GGUF@refs/pr/3:Q8_0").unwrap();
        assert_eq!(
            (name.repository(), name.revision(), name.file()),
            ("Qwen/Qwen3-0.6B-GGUF", "refs/pr/3", Some("Q8_0"))
        );
        assert_eq!(name.to_string(), "Qwen/Qwen3-0.6B-GGUF@refs/pr/3:Q8_0");
        let name = parsed("a/b:Q4/m@1.gguf").unwrap();
        assert_eq!((name.revision(), name.named_revision(), name.file()), ("main", None, Some("Q4/m@1.gguf")));
    }

    #[test]
    fn paths_are_no_names() {
        for path in [
            "demo",
            "a",
            "/a/b",
            "./a",
            "../a",
            "a/b/c",
            "a/",
            "/a",
            "~/a",
            "a/b.gguf",
            "a/b.safetensors",
            "C:\\a",
            "a b/c",
            "a--b/c",
            ".a/b",
            "a/..",
            "a\\b",
        ] {
            assert_eq!(parsed(path), None, "{path}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_said() {
        for (text, word) in [
            ("a/b@", "no revision"),
            ("a/b@../x", "no revision"),
            ("a/b@x y", "no revision"),
            ("a/b:", "no name of a file"),
            ("a/b:../../x.gguf", "no name of a file"),
            ("a/b:/etc/passwd", "no name of a file"),
        ] {
            let e = ModelName::parse(text).unwrap_err().to_string();
            assert!(e.contains(word) && e.contains("; give"), "{text}: {e}");
        }
    }
}
