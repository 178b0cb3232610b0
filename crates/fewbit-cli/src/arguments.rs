use std::ffi::OsStr;
use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use fewbit_format::Result;
use fewbit_kernel::Level;
use serde_json::json;

use crate::commands::{
    bench, calibrate, chat, check, completions, convert, demo, eval, inspect, list, logits, make_model, make_stress,
    quantize, recipes, remove, run, tokenize,
};
use crate::output;
use crate::session::Session;

/// Quantizes language models, measures what was lost, and runs them on ordinary processors.
#[derive(Debug, Parser)]
#[command(name = "fewbit", version, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "\
MODEL is a Hugging Face folder, a GGUF file, `owner/name[@revision][:FILE]` of the Hugging Face hub (downloaded once; \
FILE is a GGUF file or a part of its name), or the word `demo`: the small model that comes with the program.

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
    /// Threads to use [default: as many as physical cores]; the results do not depend on it. `bench` takes several, as `1,2`
    #[arg(long, global = true, value_name = "N", value_parser = thread_counts)]
    pub(crate) threads: Option<ThreadCounts>,
    /// Print no progress and no notes
    #[arg(long, global = true)]
    pub(crate) quiet: bool,
    /// Print exactly one JSON object on stdout, everything else on stderr
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Take models of the hub from the cache alone, as with `HF_HUB_OFFLINE=1`
    #[arg(long, global = true)]
    pub(crate) offline: bool,
    /// Use no instruction set beyond this one
    #[arg(long, global = true, value_name = "LEVEL", value_parser = level_parser())]
    pub(crate) cpu: Option<Level>,
}

/// As many threads; or for `bench`, one number after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ThreadCounts(pub(crate) Vec<usize>);

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Demo(demo::Demo),
    Quantize(quantize::Quantize),
    Calibrate(calibrate::Calibrate),
    Convert(convert::Convert),
    Check(check::Check),
    Eval(eval::Eval),
    Run(run::Run),
    Chat(chat::Chat),
    Inspect(inspect::Inspect),
    Logits(logits::Logits),
    Bench(bench::Bench),
    Tokenize(tokenize::Tokenize),
    Recipes(recipes::Recipes),
    List(list::List),
    #[command(name = "rm")]
    Remove(remove::Remove),
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
            Self::Calibrate(c) => c.run(session),
            Self::Convert(c) => c.run(session),
            Self::Check(c) => c.run(session),
            Self::Eval(c) => c.run(session),
            Self::Run(c) => c.run(session),
            Self::Chat(c) => c.run(session),
            Self::Inspect(c) => c.run(session),
            Self::Logits(c) => c.run(session),
            Self::Bench(c) => c.run(session),
            Self::Tokenize(c) => c.run(session),
            Self::Recipes(c) => c.run(session),
            Self::List(c) => c.run(session),
            Self::Remove(c) => c.run(session),
            Self::Completions(c) => c.run(session),
            Self::MakeModel(c) => c.run(session),
            Self::MakeStress(c) => c.run(session),
        }
    }
}

/// How numbers are rounded beside the stored weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ArithmeticName {
    /// The runtime's kernels: activations in 8 bits where there is an integer kernel, keys and
    /// values in f16
    Fast,
    /// f32, with just the rounding of activations and cache that the checkpoint prescribes
    Exact,
    /// f32 on the dequantized weights, nothing else rounded
    WeightsOnly,
}

fn thread_counts(text: &str) -> Result<ThreadCounts, String> {
    let count = |part: &str| match part.trim().parse() {
        Ok(n @ 1..=1024) => Ok(n),
        _ => Err(format!("`{part}` is not a number from 1 to 1024")),
    };
    text.split(',').map(count).collect::<Result<_, _>>().map(ThreadCounts)
}

fn level_parser() -> impl TypedValueParser<Value = Level> {
    let names = Level::ALL.iter().map(|l| l.name());
    PossibleValuesParser::new(names).map(|name| Level::named(&name).unwrap_or(Level::Scalar))
}

/// Reads the command line; where there is nothing to do, what to exit with.
pub(crate) fn read() -> Result<Arguments, ExitCode> {
    Arguments::try_parse().and_then(with_one_count).map_err(|error| {
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

/// Refuses several counts of threads for commands that do their work once.
fn with_one_count(arguments: Arguments) -> Result<Arguments, clap::Error> {
    match &arguments.global.threads {
        Some(ThreadCounts(counts)) if counts.len() > 1 && !matches!(arguments.command, Command::Bench(_)) => {
            let reason = "`--threads` takes several numbers for `fewbit bench` alone";
            Err(Arguments::command().error(ErrorKind::ValueValidation, reason))
        }
        _ => Ok(arguments),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_hold_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn global_options_stand_anywhere() {
        let a = Arguments::try_parse_from(["fewbit", "tokenize", "demo", "x", "--json", "--threads", "3"]).unwrap();
        assert!(a.global.json);
        assert_eq!(a.global.threads, Some(ThreadCounts(vec![3])));
        let a = Arguments::try_parse_from(["fewbit", "--cpu", "scalar", "recipes"]).unwrap();
        assert_eq!(a.global.cpu, Some(Level::Scalar));
    }

    #[test]
    fn several_counts_of_threads_are_for_bench() {
        let read = |args: &[&str]| Arguments::try_parse_from(args).and_then(with_one_count);
        let a = read(&["fewbit", "bench", "demo", "--threads", "1,2"]).unwrap();
        assert_eq!(a.global.threads, Some(ThreadCounts(vec![1, 2])));
        for wrong in ["", "0", "1,", "1025", "two", "-1"] {
            assert!(read(&["fewbit", "bench", "demo", &format!("--threads={wrong}")]).is_err(), "{wrong}");
        }
        assert!(read(&["fewbit", "tokenize", "demo", "x", "--threads", "1,2"]).is_err());
    }
}
