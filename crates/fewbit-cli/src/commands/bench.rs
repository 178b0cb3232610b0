use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use fewbit_format::{Error, Result};
use fewbit_kernel::Team;
use fewbit_kernel::limits::available_memory_bytes;
use fewbit_runtime::Runtime;

use self::machine::Machine;
use self::report::{Report, Row};
use self::work::{Case, Sequences, Work};
use crate::adapters::Adapters;
use crate::arguments::ArithmeticName;
use crate::loading;
use crate::memory;
use crate::progress::Progress;
use crate::session::Session;

mod machine;
mod report;
mod work;

/// Measure how fast a model runs, beside what the machine can do
///
/// Every round measures everything in turn, after one that is not counted; medians are shown. Tokens are random, so that
/// no tokenizer is needed; nothing is written. The first of each list makes the main row.
///
/// JSON: prompt_tokens_per_second, tokens_per_second, bytes_per_token (weights, and the cache at that depth),
/// read_bandwidth_bytes_per_second, bandwidth_share (of generating), matvec_bandwidth_share (of the linears alone), cpu,
/// threads; level, arithmetic, pages, load_seconds, first_token_seconds, peak_rss_bytes, rows, machine.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  fewbit bench demo --prompt 256 --generate 32 --depth 0,256 --threads 1,2")]
pub(crate) struct Bench {
    /// Folder, GGUF file, `owner/name` of the Hugging Face hub, or `demo`
    model: String,
    #[command(flatten)]
    adapters: Adapters,
    /// Tokens of a prompt; 0: none
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "512")]
    #[arg(value_parser = clap::value_parser!(u32).range(..=1 << 20))]
    prompt: Vec<u32>,
    /// Tokens to generate in each sequence; 0: none
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(..=1 << 20))]
    generate: u32,
    /// Sequences that advance together while generating
    #[arg(long, value_name = "B,…", value_delimiter = ',', default_value = "1")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1024))]
    batch: Vec<u32>,
    /// Positions that are remembered before prompt and generation begin
    #[arg(long, value_name = "D,…", value_delimiter = ',', default_value = "0")]
    #[arg(value_parser = clap::value_parser!(u32).range(..=1 << 20))]
    depth: Vec<u32>,
    /// Rounds that are counted
    #[arg(long, value_name = "R", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// What may be rounded
    #[arg(long, value_enum, default_value = "fast", value_name = "A")]
    arithmetic: ArithmeticName,
}

impl Bench {
    pub(crate) fn run(&self, session: &Session) -> Result<()> {
        let cases = self.cases(&session.threads)?;
        let begun = Instant::now();
        let mut file = self.adapters.model_file(session, &self.model)?;
        file.reach(self.most_positions());
        let mut runtime = loading::runtime(session, &file, self.arithmetic)?;
        let load_seconds = begun.elapsed().as_secs_f64();
        self.check(session, &runtime)?;
        Sequences::first_token(&runtime)?;
        let first_token_seconds = begun.elapsed().as_secs_f64();

        let teams: Vec<_> = session.threads.iter().map(|n| Arc::new(Team::new(*n))).collect();
        let mut rows: Vec<Row> = cases.iter().map(|case| Row::new(*case)).collect();
        let steps = (self.rounds as usize + 1) * rows.len();
        let progress = Progress::new(&session.output, "measuring", steps as u64);
        progress.set(0, "filling the caches");
        let mut sequences = self.sequences(session, &runtime)?;
        let (mut machine, mut peak_rss_bytes): (Option<Machine>, u64) = (None, 0);
        for round in 0..=self.rounds as usize {
            for (i, row) in rows.iter_mut().enumerate() {
                session.check_stop()?;
                progress.set((round * cases.len() + i) as u64, format!("round {round}: {}", row.case));
                runtime.set_team(teams[row.case.team].clone());
                if let Some(machine) = &mut machine {
                    machine.measure(&runtime, row.case.team);
                }
                let seconds = sequences.run(&runtime, &row.case)?;
                if round > 0 {
                    row.seconds.push(seconds);
                }
            }
            if machine.is_none() {
                // Before the machine's own memory is counted among the model's.
                peak_rss_bytes = memory::peak_rss_bytes();
                progress.set(rows.len() as u64, "the machine's limits");
                machine = Some(Machine::new(&teams, memory::has_huge_pages(runtime.weight_bytes(1)))?);
            }
        }
        drop(progress);
        let machine = machine.ok_or_else(|| Error::internal("no round was run"))?;
        let report = Report {
            runtime: &runtime,
            arithmetic: self.arithmetic,
            machine: &machine,
            rows: &rows,
            load_seconds,
            first_token_seconds,
            peak_rss_bytes,
        };
        session.output.text(&report.text())?;
        session.output.object(&report.object())
    }

    /// Everything that is measured in a round.
    fn cases(&self, threads: &[usize]) -> Result<Vec<Case>> {
        let prompts = || self.prompt.iter().filter(|n| **n > 0).map(|n| Work::Prompt { tokens: *n as usize });
        let generations = self.batch.iter().filter(|_| self.generate > 0);
        let work = prompts().chain(generations.map(|b| self.generation(*b)));
        let work: Vec<Work> = work.collect();
        if work.is_empty() {
            return Err(Error::input("there is nothing to measure").hint("give `--prompt` or `--generate` above 0"));
        }
        let mut cases = Vec::new();
        for (team, threads) in threads.iter().enumerate() {
            for depth in &self.depth {
                let case = |work: &Work| Case { team, threads: *threads, depth: *depth as usize, work: *work };
                cases.extend(work.iter().map(case));
            }
        }
        Ok(cases)
    }

    fn generation(&self, batch: u32) -> Work {
        Work::Generate { tokens: self.generate as usize, batch: batch as usize }
    }

    /// Positions behind the depth that any case comes to.
    fn longest(&self) -> usize {
        self.prompt.iter().chain([&self.generate]).copied().max().unwrap_or(0) as usize
    }

    /// Positions that any case comes to.
    fn most_positions(&self) -> usize {
        self.depth.iter().copied().max().unwrap_or(0) as usize + self.longest()
    }

    fn most_sequences(&self) -> usize {
        let generated = if self.generate > 0 { self.batch.iter().copied().max() } else { None };
        generated.unwrap_or(1) as usize
    }

    /// Refuses caches that do not fit, and says so where the model was not made for that many positions.
    fn check(&self, session: &Session, runtime: &Runtime) -> Result<()> {
        let longest = |depth: &u32| *depth as usize + self.longest();
        let needed: usize =
            self.depth.iter().map(|d| runtime.cache_bytes(longest(d)).saturating_mul(self.most_sequences())).sum();
        if available_memory_bytes().is_some_and(|free| needed > free) {
            let gigabytes = needed as f64 / 1e9;
            return Err(Error::input(format!(
                "the caches would take {gigabytes:.1} GB, more than the machine has free"
            ))
            .hint("give less `--depth` or `--batch`"));
        }
        let (most, context) = (self.most_positions(), runtime.model().context);
        if most > context {
            session.output.note(&format!("note: {most} positions, where the model was made for {context}"));
        }
        Ok(())
    }

    fn sequences(&self, session: &Session, runtime: &Runtime) -> Result<Sequences> {
        let mut sequences = Sequences::new(runtime.model().vocabulary);
        for depth in &self.depth {
            sequences.fill(session, runtime, *depth as usize, self.longest(), self.most_sequences())?;
        }
        Ok(sequences)
    }
}
