use fewbit_format::{Error, Result};
use toml::Value;

/// Chooses modules: a part of the path (`down_proj`, `layers.0.`), or with `*` a pattern of the whole path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Takes a pattern.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether a module path is chosen.
    pub fn matches(&self, module: &str) -> bool {
        if self.0.contains('*') { glob(&self.0, module) } else { module.contains(&self.0) }
    }

    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `*` stands for any text.
fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or("")) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Other grid settings for some modules: `PATTERN:KEY=VALUE,…`.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    /// Which modules.
    pub pattern: Pattern,
    /// Which keys of the grid.
    pub changes: Vec<(String, Value)>,
}

impl Override {
    /// Reads `PATTERN:KEY=VALUE,…`.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn parse(text: &str) -> Result<Self> {
        let form = || Error::input(format!("`--override {text}` is not of the form PATTERN:KEY=VALUE,…"));
        let (pattern, changes) = text.split_once(':').ok_or_else(form)?;
        let change = |c: &str| {
            let (key, v) = c.split_once('=').ok_or_else(form)?;
            Ok((key.trim().to_owned(), value(v)))
        };
        let changes: Vec<_> = changes.split(',').map(change).collect::<Result<_>>()?;
        if pattern.is_empty() { Err(form()) } else { Ok(Self { pattern: Pattern::new(pattern), changes }) }
    }
}

/// As it was given.
impl std::fmt::Display for Override {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:", self.pattern.as_str())?;
        for (i, (key, value)) in self.changes.iter().enumerate() {
            write!(f, "{}{key}={value}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// Reads a setting's value: a TOML value, or else a text.
pub(crate) fn value(text: &str) -> Value {
    let text = text.trim();
    match format!("v = {text}").parse::<toml::Table>() {
        Ok(mut t) => t.remove("v").unwrap_or_else(|| Value::String(text.to_owned())),
        Err(_) => Value::String(text.to_owned()),
    }
}

impl crate::Settings {
    /// Adds `KEY=VALUE`.
    ///
    /// # Errors
    /// If there is no `=`.
    pub fn add(&mut self, text: &str) -> Result<()> {
        let (key, v) =
            text.split_once('=').ok_or_else(|| Error::input(format!("`--set {text}` is not of the form KEY=VALUE")))?;
        self.0.push((key.trim().to_owned(), value(v)));
        Ok(())
    }

    /// Sets what is not set.
    pub(crate) fn add_default(&mut self, key: &str, text: &str) {
        if self.0.iter().all(|(k, _)| k != key) {
            self.0.push((key.to_owned(), value(text)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_choose_by_part_or_by_star() {
        let module = "model.layers.3.mlp.down_proj";
        for yes in ["down_proj", "layers.3.", "model.layers.*.mlp.*", "*down_proj", "*"] {
            assert!(Pattern::new(yes).matches(module), "{yes}");
        }
        for no in ["up_proj", "layers.30", "layers.*", "*up_proj"] {
            assert!(!Pattern::new(no).matches(module), "{no}");
        }
    }

    #[test]
    fn overrides_read_values() {
        let o = Override::parse("down_proj:group=row,bits=8").unwrap();
        assert_eq!(o.changes[0], ("group".to_owned(), Value::String("row".to_owned())));
        assert_eq!(o.changes[1], ("bits".to_owned(), Value::Integer(8)));
        assert!(Override::parse("down_proj").is_err());
    }
}
