//! The program `fewbit`: arguments, tables and progress around the rooms that do the work.

mod adapters;
mod arguments;
mod bundled;
mod commands;
mod compress;
mod drafting;
mod generation;
mod hub;
mod interrupt;
mod loading;
mod memory;
mod output;
mod panics;
mod progress;
mod session;

use std::process::ExitCode;

fn main() -> ExitCode {
    match arguments::read() {
        Ok(arguments) => {
            let session = session::Session::new(&arguments.global);
            let result = panics::caught(|| arguments.command.run(&session));
            session.output.end(result)
        }
        Err(code) => code,
    }
}
