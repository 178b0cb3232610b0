use std::ffi::OsStr;
use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};
use fewbit_format::Result;
use fewbit_kernel::Level;
use serde_json::json;

use crate::commands::{
    chat, completions, demo, eval, inspect, logits, make_model, make_stress, quantize, recipes, run, tokenize,
};
use crate::output;
use crate::session::Session;

/// Quantizes language models, measures what was lost, and runs them on ordinary processors.
#[derive(Debug, Parser)]
#[command(name = "fewbit", version, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "\
MODEL is a Hugging Face folder, a GGUF file, or the word `demo`: the small model that comes with the program.

Example:
  fewbit run demo --prompt 'Once upon a time'")]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command, before or after its name.
#[derive(Args, Debug)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Threads to use [default: all cores]; the results do not depend on it
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Print no progress and no notes
    #[arg(long, global = true)]
    pub(crate) quiet: bool,
    /// Print exactly one JSON object on stdout, everything else on stderr
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Use no instruction set beyond this one
    #[arg(long, global = true, value_name = "LEVEL", value_parser = level_parser())]
    pub(crate) cpu: Option<Level>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Demo(demo::Demo),
    Quantize(quantize::Quantize),
    Eval(eval::Eval),
    Run(run::Run),
    Chat(chat::Chat),
    Inspect(inspect::Inspect),
    Logits(logits::Logits),
    Tokenize(tokenize::Tokenize),
    Recipes(recipes::Recipes),
    Completions(completions::Completions),
    #[command(hide = true)]
    MakeModel(make_model::MakeModel),
    #[command(hide = true)]
    MakeStress(make_stress::MakeStress),
}

impl Command {
    /// Does it.
    pub(crate) fn run(&self, session: &Session) -> Result<()> {
        match self {
            Self::Demo(c) => c.run(session),
            Self::Quantize(c) => c.run(session),
            Self::Eval(c) => c.run(session),
            Self::Run(c) => c.run(session),
            Self::Chat(c) => c.run(session),
            Self::Inspect(c) => c.run(session),
            Self::Logits(c) => c.run(session),
            Self::Tokenize(c) => c.run(session),
            Self::Recipes(c) => c.run(session),
            Self::Completions(c) => c.run(session),
            Self::MakeModel(c) => c.run(session),
            Self::MakeStress(c) => c.run(session),
        }
    }
}

/// How numbers are rounded beside the stored weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ArithmeticName {
    /// The runtime's kernels: activations in 8 bits where there is an integer kernel
    Fast,
    /// f32, with just the rounding of activations and cache that the checkpoint prescribes
    Exact,
    /// f32 on the dequantized weights, nothing else rounded
    WeightsOnly,
}

fn level_parser() -> impl TypedValueParser<Value = Level> {
    let names = Level::ALL.map(Level::name);
    PossibleValuesParser::new(names).map(|name| Level::named(&name).unwrap_or(Level::Scalar))
}

/// Reads the command line; where there is nothing to do, what to exit with.
pub(crate) fn read() -> Result<Arguments, ExitCode> {
    Arguments::try_parse().map_err(|error| {
        let is_help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
        let wants_json = std::env::args_os().skip(1).take_while(|a| a != OsStr::new("--")).any(|a| a == "--json");
        if !is_help && wants_json {
            let text = error.to_string();
            let sentence = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            output::object_line(&json!({ "error": sentence }));
        }
        // Nobody is left to tell if stderr is gone.
        let _ = error.print();
        ExitCode::from(if is_help { 0 } else { 2 })
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_hold_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn global_options_stand_anywhere() {
        let a = Arguments::try_parse_from(["fewbit", "tokenize", "demo", "x", "--json", "--threads", "3"]).unwrap();
        assert!(a.global.json);
        assert_eq!(a.global.threads, Some(3));
        let a = Arguments::try_parse_from(["fewbit", "--cpu", "scalar", "recipes"]).unwrap();
        assert_eq!(a.global.cpu, Some(Level::Scalar));
    }
}
