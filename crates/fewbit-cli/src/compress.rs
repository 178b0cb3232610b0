//! `fewbit quantize`: from what was typed to the engine's request, and the report.

use std::sync::Arc;
use std::time::Instant;

use fewbit_engine::{Override, Pattern, Plan, Recipe, Report, Request, Settings, plan, quantize};
use fewbit_eval::bits_per_weight;
use fewbit_format::{Error, Result};
use fewbit_kernel::Team;
use fewbit_kernel::product::{Weights, product_nt};
use fewbit_methods::{RECIPES, REGISTRY};
use fewbit_store::ModelFile;
use serde_json::{Value, json};

use crate::bundled::{model_name, resolve_model};
use crate::commands::check;
use crate::commands::quantize::Quantize;
use crate::memory::{PeakMemory, cpu_seconds};
use crate::output::Output;
use crate::progress::Progress;
use crate::session::Session;

/// Does what the options ask for.
pub(crate) fn run(options: &Quantize, session: &Session) -> Result<()> {
    let request = request(options, session)?;
    let team = session.team();
    if options.dry_run {
        return match plan(&request, flops_per_second(&team)) {
            Ok(plan) => say_plan(&plan, &session.output),
            Err(e) => {
                session.output.object(&json!({
                    "sweeps": [], "peak_bytes": null, "out_bytes": null, "seconds_estimate": null, "refused": e.to_string()
                }))?;
                Err(e)
            }
        };
    }
    let (clock, cpu, memory) = (Instant::now(), cpu_seconds(), PeakMemory::start());
    let mut listener = Listener { output: &session.output, bar: None, is_quiet: false };
    let report = quantize(&request, &team, &mut listener, session.stop)?;
    let (peak_rss, peak_anon) = memory.finish();
    drop(listener);
    let measured = Measured { seconds: clock.elapsed().as_secs_f64(), cpu: cpu_seconds() - cpu, peak_rss, peak_anon };
    say_report(options, &report, &measured, session)
}

/// Makes the model, and says nothing of the result.
pub(crate) fn make(
    options: &Quantize,
    team: &Arc<Team>,
    listener: &mut Listener<'_>,
    session: &Session,
) -> Result<Report> {
    quantize(&request(options, session)?, team, listener, session.stop)
}

struct Measured {
    seconds: f64,
    cpu: f64,
    peak_rss: u64,
    peak_anon: u64,
}

/// The engine's request for what was typed.
fn request(options: &Quantize, session: &Session) -> Result<Request<'static>> {
    let mut settings = Settings::default();
    for (key, value) in options.grid.settings()? {
        settings.add(&format!("{key}={value}"))?;
    }
    Ok(Request {
        model: resolve_model(session, &options.model)?,
        model_name: model_name(&options.model),
        recipe: Recipe::find(&options.recipe, RECIPES)?,
        settings,
        registry: &REGISTRY,
        out: options.out.clone(),
        format: options.format.into(),
        keep: options.grid.keep.iter().map(Pattern::new).collect(),
        overrides: options.grid.overrides.iter().map(|o| Override::parse(o)).collect::<Result<_>>()?,
        requantize: options.requantize,
        calibration: options.calibration.text()?,
        importances: options.stats.clone(),
        samples: options.calibration.samples.map(|n| n as usize),
        length: options.calibration.length.map(|n| n as usize),
        seed: options.seed,
        resume: options.resume,
        force: options.force,
    })
}

/// The machine's rate in the products of a forward, for the estimate of a plan.
fn flops_per_second(team: &Team) -> f64 {
    const N: usize = 512;
    let (x, w, mut y) = (vec![1.0f32; N * N], vec![1.0f32; N * N], vec![0.0f32; N * N]);
    let rate = |y: &mut [f32]| {
        let clock = Instant::now();
        product_nt(team, N, N, N, &x, N, Weights::F32(&w), y, N, false);
        2.0 * (N as f64).powi(3) / clock.elapsed().as_secs_f64()
    };
    (0..4).map(|_| rate(&mut y)).fold(0.0, f64::max)
}

fn say_plan(plan: &Plan, output: &Output) -> Result<()> {
    for sweep in &plan.sweeps {
        output.line(&format!("{} {} blocks: {}", sweep.kind, sweep.blocks, sweep.work))?;
    }
    plan.notes.iter().for_each(|n| output.note(n));
    output.line(&format!(
        "memory at most {}, result {}, working files {}, {:.3} bits per weight, about {:.0} s",
        mib(plan.peak_bytes),
        mib(plan.out_bytes),
        mib(plan.work_bytes),
        plan.bits_per_weight,
        plan.seconds_estimate
    ))?;
    let mut object = serde_json::to_value(plan).map_err(|e| Error::internal(e.to_string()))?;
    object["refused"] = Value::Null;
    output.object(&object)
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn say_report(options: &Quantize, report: &Report, measured: &Measured, session: &Session) -> Result<()> {
    let output = &session.output;
    let written = ModelFile::open(&options.out)?;
    let bits = bits_per_weight(&written)?;
    output.line(&format!(
        "{}: {:.3} bits per weight in the quantized linears, {:.3} in the model ({}); {:.1} s, {:.1} CPU-s, {} at most",
        options.out.display(),
        bits.linears,
        bits.model,
        report.format.name(),
        measured.seconds,
        measured.cpu,
        mib(measured.peak_rss)
    ))?;
    let counts = || report.blocks.iter().flat_map(|b| b.tokens_per_expert.iter().copied());
    if let (Some(least), Some(most)) = (counts().min(), counts().max()) {
        let mean = counts().sum::<usize>() as f64 / counts().count() as f64;
        let without = counts().filter(|n| *n == 0).count();
        output.line(&format!(
            "experts: from {least} to {most} calibration tokens, {mean:.0} on average; {without} of {} got none",
            counts().count()
        ))?;
    }
    let loads = check::summary(&written, output)?;
    let sum = |f: fn(&fewbit_engine::BlockReport) -> f64| report.blocks.iter().map(f).sum::<f64>();
    let seconds = json!({
        "forward": sum(|b| b.forward_seconds), "gram": sum(|b| b.gram_seconds), "transform": sum(|b| b.transform_seconds),
        "solve": sum(|b| b.solve_seconds), "learn": sum(|b| b.learn_seconds), "write": sum(|b| b.write_seconds),
    });
    output.object(&json!({
        "out": options.out,
        "format": report.format.name(),
        "loads": loads,
        "seconds": measured.seconds,
        "cpu_seconds": measured.cpu,
        "seconds_by_work": seconds,
        "peak_rss_bytes": measured.peak_rss,
        "peak_anon_bytes": measured.peak_anon,
        "bits_per_weight": bits.linears,
        "bits_per_weight_model": bits.model,
        "blocks": serde_json::to_value(&report.blocks).map_err(|e| Error::internal(e.to_string()))?,
        "allocation": serde_json::to_value(&report.allocation).map_err(|e| Error::internal(e.to_string()))?,
    }))
}

/// The engine's progress on this program's stderr.
pub(crate) struct Listener<'a> {
    pub(crate) output: &'a Output,
    pub(crate) bar: Option<Progress<'a>>,
    /// Whether stages and notes are kept silent.
    pub(crate) is_quiet: bool,
}

impl fewbit_engine::Progress for Listener<'_> {
    fn begin(&mut self, stage: &'static str, total: u64) {
        self.bar = (!self.is_quiet).then(|| Progress::new(self.output, stage, total));
    }

    fn at(&mut self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set(done, "");
        }
    }

    fn note(&mut self, text: &str) {
        if !self.is_quiet {
            self.output.note(&format!("note: {text}"));
        }
    }
}
