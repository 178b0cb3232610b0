//! Medians, and the shares of the machine's limits that they reach.

use std::fmt::Write;

use clap::ValueEnum;
use fewbit_kernel::cpu;
use fewbit_runtime::Runtime;
use serde_json::{Value, json};

use super::machine::{Limits, Machine};
use super::work::{Case, Work};
use crate::arguments::ArithmeticName;

/// One case, and the seconds that it took in each round.
pub(super) struct Row {
    pub(super) case: Case,
    pub(super) seconds: Vec<f64>,
}

impl Row {
    pub(super) fn new(case: Case) -> Self {
        Self { case, seconds: Vec::new() }
    }

    fn tokens_per_second(&self) -> f64 {
        self.case.tokens() as f64 / median(&self.seconds)
    }
}

/// All that was measured.
pub(super) struct Report<'a> {
    pub(super) runtime: &'a Runtime,
    pub(super) arithmetic: ArithmeticName,
    pub(super) machine: &'a Machine,
    pub(super) rows: &'a [Row],
    pub(super) load_seconds: f64,
    pub(super) first_token_seconds: f64,
    pub(super) peak_rss_bytes: u64,
}

impl Report<'_> {
    /// The machine under the team of a row.
    fn limits(&self, row: &Row) -> &Limits {
        &self.machine.limits[row.case.team]
    }

    /// Bytes that a generated token reads: its share of the weights, and its sequence's cache half way through.
    fn bytes_per_token(&self, row: &Row) -> Option<f64> {
        let Work::Generate { tokens, batch } = row.case.work else { return None };
        let weights = self.runtime.weight_bytes(batch) as f64 / batch as f64;
        Some(weights + self.runtime.cache_bytes(row.case.depth + tokens / 2) as f64)
    }

    /// Of the read bandwidth, for generation.
    fn bandwidth_share(&self, row: &Row) -> Option<f64> {
        Some(self.bytes_per_token(row)? * row.tokens_per_second() / median(&self.limits(row).reads))
    }

    /// Operations a second of the linears over the peak of the numbers that they compute in.
    fn peak_share(&self, row: &Row) -> f64 {
        let operations = match row.case.work {
            Work::Prompt { tokens } => 2 * self.runtime.multiply_adds(tokens, 1),
            Work::Generate { tokens, batch } => 2 * self.runtime.multiply_adds(tokens * batch, tokens * batch),
        };
        let limits = self.limits(row);
        let peak = if self.arithmetic == ArithmeticName::Fast { &limits.int8 } else { &limits.f32 };
        operations as f64 / median(&row.seconds) / median(peak)
    }

    fn matvec_bandwidth_share(limits: &Limits) -> f64 {
        median(&limits.linears) / median(&limits.reads)
    }

    /// The one object.
    pub(super) fn object(&self) -> Value {
        let main = |is: fn(&Work) -> bool| self.rows.iter().find(|r| is(&r.case.work));
        let prompt = main(|w| matches!(w, Work::Prompt { .. }));
        let generation = main(|w| matches!(w, Work::Generate { .. }));
        let limits = &self.machine.limits[0];
        json!({
            "prompt_tokens_per_second": prompt.map(Row::tokens_per_second),
            "tokens_per_second": generation.map(Row::tokens_per_second),
            "bytes_per_token": generation.and_then(|r| self.bytes_per_token(r)),
            "read_bandwidth_bytes_per_second": median(&limits.reads),
            "bandwidth_share": generation.and_then(|r| self.bandwidth_share(r)),
            "matvec_bandwidth_share": Self::matvec_bandwidth_share(limits),
            "prompt_peak_share": prompt.map(|r| self.peak_share(r)),
            "cpu": cpu_name(),
            "threads": limits.threads(),
            "level": cpu::detect().name(),
            "arithmetic": self.arithmetic.to_possible_value().map(|v| v.get_name().to_owned()),
            "pages": self.machine.pages.name(),
            "load_seconds": self.load_seconds,
            "first_token_seconds": self.first_token_seconds,
            "peak_rss_bytes": self.peak_rss_bytes,
            "rows": self.rows.iter().map(|r| self.row(r)).collect::<Vec<_>>(),
            "machine": self.machine.limits.iter().map(limits_object).collect::<Vec<_>>(),
        })
    }

    fn row(&self, row: &Row) -> Value {
        let (work, batch, tokens) = match row.case.work {
            Work::Prompt { tokens } => ("prompt", 1, tokens),
            Work::Generate { tokens, batch } => ("generate", batch, tokens),
        };
        json!({
            "work": work,
            "threads": row.case.threads,
            "depth": row.case.depth,
            "batch": batch,
            "tokens": tokens,
            "tokens_per_second": row.tokens_per_second(),
            "bytes_per_token": self.bytes_per_token(row),
            "bandwidth_share": self.bandwidth_share(row),
            "peak_share": self.peak_share(row),
            "seconds": row.seconds,
        })
    }

    /// Two tables for people.
    pub(super) fn text(&self) -> String {
        let mut out = format!("{}, {}\n", cpu_name(), cpu::detect().name());
        let mebibytes = self.peak_rss_bytes as f64 / f64::from(1 << 20);
        let _ = writeln!(
            out,
            "loaded in {:.3} s, first token after {:.3} s; {mebibytes:.0} MiB at most",
            self.load_seconds, self.first_token_seconds
        );
        out += "\nthreads   reads GB/s   linears GB/s    share   int8 Gop/s   f32 GFLOP/s   reads by\n";
        for limits in &self.machine.limits {
            let [reads, linears, int8, f32] =
                [&limits.reads, &limits.linears, &limits.int8, &limits.f32].map(|v| median(v) / 1e9);
            let _ = writeln!(
                out,
                "{:>7} {reads:>12.2} {linears:>14.2} {:>6.1} % {int8:>12.1} {f32:>13.1}   {}, {} pages",
                limits.threads(),
                100.0 * Self::matvec_bandwidth_share(limits),
                limits.scheme,
                self.machine.pages.name()
            );
        }
        let peak = if self.arithmetic == ArithmeticName::Fast { "int8" } else { "f32" };
        let _ = writeln!(out, "\nthreads   depth   work                 tokens/s   MB/token   of reads   of {peak}");
        for row in self.rows {
            let bytes = self.bytes_per_token(row).map(|b| format!("{:.1}", b / 1e6)).unwrap_or_default();
            let share = self.bandwidth_share(row).map(|s| format!("{:.1} %", 100.0 * s)).unwrap_or_default();
            let _ = writeln!(
                out,
                "{:>7} {:>7}   {:<18} {:>10.2} {bytes:>10} {share:>10} {:>7.1} %",
                row.case.threads,
                row.case.depth,
                row.case.to_string(),
                row.tokens_per_second(),
                100.0 * self.peak_share(row)
            );
        }
        out
    }
}

fn limits_object(limits: &Limits) -> Value {
    json!({
        "threads": limits.threads(),
        "read_bandwidth_bytes_per_second": median(&limits.reads),
        "linears_bytes_per_second": median(&limits.linears),
        "matvec_bandwidth_share": Report::matvec_bandwidth_share(limits),
        "int8_peak_operations_per_second": median(&limits.int8),
        "f32_peak_operations_per_second": median(&limits.f32),
        "scheme": limits.scheme.to_string(),
    })
}

/// The processor's name; its architecture where the system does not tell.
fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// Of an even number the mean of the two in the middle.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_lie_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
