use fewbit_format::{Error, Result};
use serde::de::DeserializeOwned;
use toml::Table;

use super::{Grid, Solver, Transform};

/// One member of a kind: a line in a const list.
#[derive(Debug)]
pub struct Entry<T: ?Sized + 'static> {
    /// The name after the kind, such as `gptq` in `solve.gptq`.
    pub name: &'static str,
    /// The source.
    pub cite: &'static str,
    /// Its settings with their defaults, for people: `name = default: meaning`.
    pub settings: &'static [(&'static str, &'static str)],
    /// Builds it from its settings.
    pub build: fn(Table) -> Result<Box<T>>,
}

/// The members of all kinds.
#[derive(Clone, Copy, Debug)]
pub struct Registry {
    /// `grid.*`.
    pub grids: &'static [Entry<dyn Grid>],
    /// `solve.*`.
    pub solvers: &'static [Entry<dyn Solver>],
    /// `transform.*`.
    pub transforms: &'static [Entry<dyn Transform>],
}

/// Reads settings into a struct whose unknown keys are errors that name the near one.
///
/// # Errors
/// Names the key, and what is possible.
pub fn parse<T: DeserializeOwned>(what: &str, table: Table) -> Result<T> {
    let keys: Vec<String> = table.keys().cloned().collect();
    table.try_into().map_err(|e: toml::de::Error| {
        let message = e.message().replace('\n', " ");
        let error = Error::input(format!("`{what}`: {message}"));
        // serde lists the fields that it knows in backticks behind "expected".
        let Some((head, tail)) = message.split_once(", expected ") else { return error };
        let unknown = keys.iter().find(|k| head.contains(&format!("`{k}`")));
        let known = tail.split('`').skip(1).step_by(2);
        match unknown.and_then(|u| near(u, known)) {
            Some(n) => error.hint(format!("did you mean `{n}`?")),
            None => error,
        }
    })
}

/// The candidate that is most like `name`, if any is.
pub(crate) fn near<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|c| (strsim::jaro_winkler(name, c), c))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, c)| c)
}
