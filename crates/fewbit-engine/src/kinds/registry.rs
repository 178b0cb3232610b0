use fewbit_format::{Error, Result};
use serde::de::DeserializeOwned;
use toml::Table;

use crate::tune::TuneSettings;

use super::{Activation, Grid, Learner, OnlineTransform, Residual, Rotation, Solver, Transform};

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
    /// `act.*`.
    pub activations: &'static [Entry<dyn Activation>],
    /// `grid.*`.
    pub grids: &'static [Entry<dyn Grid>],
    /// `solve.*`.
    pub solvers: &'static [Entry<dyn Solver>],
    /// `learn.*`.
    pub learners: &'static [Entry<dyn Learner>],
    /// `residual.*`.
    pub residuals: &'static [Entry<dyn Residual>],
    /// `transform.*` that run with the model.
    pub onlines: &'static [Entry<dyn OnlineTransform>],
    /// `transform.*` that sites take in.
    pub transforms: &'static [Entry<dyn Transform>],
    /// `transform.*` that change the basis of the whole model.
    pub rotations: &'static [Entry<dyn Rotation>],
}

/// The source of a primitive, and its settings with their defaults.
pub type Description = (&'static str, Vec<(&'static str, &'static str)>);

impl Registry {
    /// What the pass `KIND.NAME` is.
    pub fn describe(&self, pass: &str) -> Option<Description> {
        fn find<T: ?Sized>(members: &'static [Entry<T>], name: &str) -> Option<Description> {
            members.iter().find(|e| e.name == name).map(|e| (e.cite, e.settings.to_vec()))
        }
        let (kind, name) = pass.split_once('.')?;
        match kind {
            "grid" => find(self.grids, name),
            "act" => find(self.activations, name),
            "solve" => find(self.solvers, name),
            "residual" => find(self.residuals, name),
            "transform" => {
                let folded = || find(self.rotations, name).or_else(|| find(self.transforms, name));
                folded().or_else(|| find(self.onlines, name))
            }
            "learn" => find(self.learners, name).map(|(cite, own)| (cite, [TuneSettings::SETTINGS, &own].concat())),
            _ => None,
        }
    }
}

/// Reads settings into a struct whose unknown keys are errors that name the near one.
///
/// # Errors
/// Names the key, and what is possible.
pub fn parse<T: DeserializeOwned>(what: &str, table: Table) -> Result<T> {
    let settings = table.clone();
    let reason = |e: &toml::de::Error| e.message().replace('\n', " ");
    table.try_into().map_err(|e: toml::de::Error| {
        let message = reason(&e);
        let error = Error::input(format!("`{what}`: {message}"));
        // serde lists the fields that it knows in backticks behind "expected".
        if let Some((head, tail)) = message.split_once(", expected ")
            && let Some(unknown) = settings.keys().find(|k| head == format!("unknown field `{k}`"))
        {
            return match near(unknown, tail.split('`').skip(1).step_by(2)) {
                Some(n) => error.hint(format!("did you mean `{n}`?")),
                None => error,
            };
        }
        // The key whose value alone is refused in the same words.
        let is_culprit = |(key, value): &(&String, &toml::Value)| {
            let alone = Table::from_iter([((*key).clone(), (*value).clone())]);
            alone.try_into::<T>().is_err_and(|e| reason(&e) == message)
        };
        match settings.iter().find(is_culprit) {
            Some((key, _)) => Error::input(format!("`{what}`, `{key}`: {message}")),
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
