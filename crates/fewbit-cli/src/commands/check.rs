use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args};
use fewbit_export::{LoadedBy, Obstacle, obstacles};
use fewbit_format::{Error, Result};
use fewbit_store::ModelFile;
use serde_json::{Value, json};

use crate::loading;
use crate::output::Output;
use crate::session::Session;

/// Say which programs can load a model, and what is in the way of the others
///
/// Looks at formats, bits, groups and shapes as their kernels take them, and reads every matrix as the
/// configuration describes it.
///
/// JSON: checks (for, loads, obstacles: module, why).
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  fewbit check demo-w4 --for vllm")]
pub(crate) struct Check {
    /// Folder, GGUF file, `owner/name` of the Hugging Face hub, or `demo`
    model: String,
    /// The program; several may be given [default: all]
    #[arg(long = "for", value_name = "PROGRAM", action = ArgAction::Append, value_parser = program())]
    programs: Vec<LoadedBy>,
}

fn program() -> impl TypedValueParser<Value = LoadedBy> {
    PossibleValuesParser::new(LoadedBy::ALL.map(LoadedBy::name))
        .map(|name| LoadedBy::ALL.into_iter().find(|p| p.name() == name).unwrap_or(LoadedBy::Vllm))
}

impl Check {
    pub(crate) fn run(&self, session: &Session) -> Result<()> {
        let file = loading::model_file(session, &self.model)?;
        read_all(&file)?;
        let programs = if self.programs.is_empty() { &LoadedBy::ALL[..] } else { &self.programs };
        let checks = say(&file, programs, &session.output)?;
        session.output.object(&json!({ "checks": checks }))?;
        let refused: Vec<&str> =
            checks.iter().filter(|c| c["loads"] == false).filter_map(|c| c["for"].as_str()).collect();
        if self.programs.is_empty() || refused.is_empty() {
            return Ok(());
        }
        Err(Error::input(format!("{} cannot load it", refused.join(", "))).file(file.checkpoint().path()))
    }
}

/// Reads each matrix as the configuration describes it.
fn read_all(file: &ModelFile) -> Result<()> {
    for (part, graph) in file.model().parts() {
        for weight in 0..graph.weights.len() {
            file.linear(part, weight)?;
        }
        file.drop_pages(part);
    }
    Ok(())
}

/// One line: which programs load a written model, and the first thing in the way of those that know its format; by
/// program, whether it does.
pub(crate) fn summary(file: &ModelFile, output: &Output) -> Result<Value> {
    let (mut loads, mut others) = (serde_json::Map::new(), Vec::new());
    for program in LoadedBy::ALL {
        let found = obstacles(file, program)?;
        loads.insert(program.name().to_owned(), json!(found.is_empty()));
        if let Some(first) = found.iter().find(|o| !o.module.is_empty()) {
            others.push(format!("; not by {}: `{}`: {}", program.name(), first.module, first.why));
        }
    }
    let names: Vec<&str> = loads.iter().filter(|(_, loads)| **loads == true).map(|(name, _)| &**name).collect();
    let names = if names.is_empty() { "fewbit alone".to_owned() } else { names.join(", ") };
    output.line(&format!("loaded by {names}{}", others.concat()))?;
    Ok(Value::Object(loads))
}

/// Says what keeps each program from loading a model; the same as JSON.
fn say(file: &ModelFile, programs: &[LoadedBy], output: &Output) -> Result<Vec<Value>> {
    /// Obstacles of one program that are shown; they tend to be alike in all blocks.
    const SHOWN: usize = 8;
    let mut checks = Vec::new();
    for program in programs {
        let found = obstacles(file, *program)?;
        let verdict = if found.is_empty() { "loads it, as far as the files show" } else { "does not load it" };
        output.line(&format!("{}: {verdict}", program.name()))?;
        for Obstacle { module, why } in found.iter().take(SHOWN) {
            output.line(&if module.is_empty() { format!("  {why}") } else { format!("  `{module}`: {why}") })?;
        }
        if found.len() > SHOWN {
            output.line(&format!("  and {} more", found.len() - SHOWN))?;
        }
        let list: Vec<Value> = found.iter().map(|o| json!({ "module": o.module, "why": o.why })).collect();
        checks.push(json!({ "for": program.name(), "loads": found.is_empty(), "obstacles": list }));
    }
    Ok(checks)
}
