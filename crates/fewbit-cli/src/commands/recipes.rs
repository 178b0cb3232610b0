use std::fmt::Write;

use clap::Args;
use fewbit_engine::{AllocateSettings, Recipe, Table};
use fewbit_format::Result;
use fewbit_methods::{RECIPES, REGISTRY};
use serde_json::{Value, json};

use crate::session::Session;

/// List the recipes, or show the passes and settings of one
///
/// JSON: recipes (name, cite, summary, cost, passes); with NAME that one alone.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  fewbit recipes gptq")]
pub(crate) struct Recipes {
    /// Which one; the path of a recipe of your own, too
    name: Option<String>,
}

/// A pass of a recipe as people change it with `--set`.
struct Pass {
    name: String,
    cite: &'static str,
    /// What the recipe sets.
    set: Vec<(String, Value)>,
    /// `name = default`, and what it means.
    settings: Vec<(&'static str, &'static str)>,
}

impl Recipes {
    pub(crate) fn run(&self, session: &Session) -> Result<()> {
        let recipes = match &self.name {
            Some(name) => vec![Recipe::find(name, RECIPES)?],
            None => RECIPES.iter().map(|(name, _)| Recipe::find(name, RECIPES)).collect::<Result<_>>()?,
        };
        let text: String = recipes.iter().map(if self.name.is_some() { whole } else { brief }).collect();
        session.output.text(&text)?;
        session.output.object(&json!({ "recipes": recipes.iter().map(object).collect::<Vec<_>>() }))
    }
}

fn brief(recipe: &Recipe) -> String {
    format!("{}\n    {}\n    {}\n    cost: {}\n", recipe.name, recipe.summary, recipe.cite, recipe.cost)
}

fn whole(recipe: &Recipe) -> String {
    let mut out = brief(recipe);
    for pass in passes(recipe) {
        let _ = writeln!(out, "\n{}", pass.name);
        if !pass.cite.is_empty() {
            let _ = writeln!(out, "  {}", pass.cite);
        }
        for (setting, meaning) in &pass.settings {
            let _ = writeln!(out, "  {setting:<28}{meaning}");
        }
        for (key, value) in &pass.set {
            let _ = writeln!(out, "  the recipe sets {key} = {value}");
        }
    }
    out
}

fn passes(recipe: &Recipe) -> Vec<Pass> {
    let allocate = recipe.allocate.as_ref().map(|a| Pass {
        name: "allocate".to_owned(),
        cite: "",
        set: serde_json::to_value(a).ok().and_then(|v| v.as_object().cloned()).into_iter().flatten().collect(),
        settings: AllocateSettings::SETTINGS.to_vec(),
    });
    allocate.into_iter().chain(recipe.passes.iter().flat_map(with_inner)).collect()
}

/// A pass, and those within it.
fn with_inner(table: &Table) -> Vec<Pass> {
    let name = table.get("use").and_then(|v| v.as_str()).unwrap_or_default().to_owned();
    let (cite, settings) = REGISTRY.describe(&name).unwrap_or_default();
    let set = table.iter().filter(|(key, _)| *key != "use" && *key != "pass");
    let set = set.map(|(k, v)| (k.clone(), serde_json::to_value(v).unwrap_or_default())).collect();
    let inner = table.get("pass").and_then(|p| p.as_array()).into_iter().flatten().filter_map(|t| t.as_table());
    std::iter::once(Pass { name, cite, set, settings }).chain(inner.flat_map(with_inner)).collect()
}

fn object(recipe: &Recipe) -> Value {
    let pass = |p: Pass| {
        let settings: Vec<Value> = (p.settings.iter())
            .map(|(setting, meaning)| {
                let (name, default) = setting.split_once(" = ").unwrap_or((setting, ""));
                json!({ "name": name, "default": default, "meaning": meaning })
            })
            .collect();
        let set: serde_json::Map<String, Value> = p.set.into_iter().collect();
        json!({ "use": p.name, "cite": p.cite, "set": set, "settings": settings })
    };
    json!({
        "name": recipe.name,
        "cite": recipe.cite,
        "summary": recipe.summary,
        "cost": recipe.cost,
        "passes": passes(recipe).into_iter().map(pass).collect::<Vec<_>>(),
    })
}
