use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fewbit_format::{Error, Result};
use fewbit_runtime::Runtime;

use crate::bootstrap::{Interval, intervals, quantile};
use crate::row::{self, RowScore};
use crate::windows::Windows;
use crate::{Original, forward};

/// Sums over the scored tokens of one window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WindowSums {
    /// Tokens.
    pub tokens: usize,
    /// UTF-8 bytes that they stand for.
    pub bytes: usize,
    /// Nats of the tokens that came.
    pub nll: f64,
    /// The same by the original; 0 without one.
    pub original_nll: f64,
    /// KL divergence from the original in nats; 0 without one.
    pub kl: f64,
    /// Positions at which the likeliest token is the original's; 0 without one.
    pub agreements: usize,
}

/// How a model did on a text.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Tokens scored.
    pub tokens: usize,
    /// UTF-8 bytes that they stand for.
    pub bytes: usize,
    /// Mean nats of a token.
    pub nll: f64,
    /// `e^nll`.
    pub perplexity: f64,
    /// 95 % interval of it, by bootstrap over windows; `None` for one window.
    pub perplexity_ci95: Option<Interval>,
    /// All nats ÷ ln 2 ÷ bytes; `None` where the tokens stand for no byte.
    pub bits_per_byte: Option<f64>,
    /// Beside the original, if there was one.
    pub divergence: Option<Divergence>,
    /// Window by window.
    pub per_window: Vec<WindowSums>,
    /// Tokens fed to the model per second of its own time.
    pub tokens_per_second: f64,
}

/// How far a model is from its original.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Divergence {
    /// Mean over positions of `KL(original ‖ model)` in nats.
    pub kl_mean: f64,
    /// 95 % interval of it, by bootstrap over windows; `None` for one window.
    pub kl_mean_ci95: Option<Interval>,
    /// 99th percentile over positions.
    pub kl_p99: f64,
    /// Share of positions at which the likeliest token is the original's.
    pub top1_agreement: f64,
    /// The original's mean nats of a token.
    pub original_nll: f64,
    /// The model's mean nats less the original's: the logarithm of the ratio of the perplexities.
    pub nll_increase: f64,
    /// 95 % interval of it: each resample of windows is the same for both models.
    pub nll_increase_ci95: Option<Interval>,
}

/// Runs a model over windows, beside the original if there is one; memory holds one window, and logits in steps of rows.
///
/// `progress` hears how many windows of how many are done. Results do not depend on the number of threads.
///
/// # Errors
/// If `stop` is set, the vocabularies differ, a window exceeds a context, or numbers are not finite.
pub fn evaluate(
    model: &Runtime,
    mut against: Option<&mut Original>,
    windows: &Windows,
    progress: &mut dyn FnMut(usize, usize),
    stop: &AtomicBool,
) -> Result<Measured> {
    let (mut per_window, mut divergences) = (Vec::with_capacity(windows.len()), Vec::new());
    let (mut time, mut fed_tokens) = (Duration::ZERO, 0);
    if let Some(original) = &mut against {
        check_vocabularies(model, original)?;
        original.begin(windows)?;
        divergences.reserve(windows.tokens());
    }
    for i in 0..windows.len() {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::interrupted(format!("stopped after {i} of {} windows", windows.len())));
        }
        let fed = windows.fed(i);
        let clock = Instant::now();
        let residual = forward::residual(model, &fed)?;
        time += clock.elapsed();
        fed_tokens += fed.len();
        if let Some(original) = &mut against {
            original.window(&fed)?;
        }
        let mut sums = WindowSums { bytes: windows.bytes(i), ..WindowSums::default() };
        let last = fed.len() - 1;
        for rows in forward::steps(last - windows.all()[i].scored..last, model.model().vocabulary) {
            let targets = &fed[rows.start + 1..=rows.end];
            let clock = Instant::now();
            let logits = forward::logits(model, &residual, rows.clone())?;
            time += clock.elapsed();
            let mut scores = vec![RowScore::default(); rows.len()];
            if let Some(original) = &mut against {
                let (other, nll) = original.rows(rows, targets)?;
                model.team().for_pieces(&mut scores, 1, &|r, score| {
                    score[0] = row::compare(other.row(r), logits.row(r), targets[r]);
                });
                sums.original_nll += nll.iter().sum::<f64>();
                divergences.extend(scores.iter().map(|s| s.kl));
            } else {
                model.team().for_pieces(&mut scores, 1, &|r, score| {
                    score[0].nll = row::nll(logits.row(r), targets[r]);
                });
            }
            sums.add(&scores);
        }
        per_window.push(sums);
        progress(i + 1, windows.len());
    }
    let is_compared = against.is_some();
    if let Some(original) = against {
        original.end();
    }
    let tokens_per_second = fed_tokens as f64 / time.as_secs_f64().max(1e-9);
    Ok(measured(per_window, is_compared.then_some(divergences), tokens_per_second))
}

impl WindowSums {
    fn add(&mut self, scores: &[RowScore]) {
        self.tokens += scores.len();
        for s in scores {
            self.nll += s.nll;
            self.kl += s.kl;
            self.agreements += usize::from(s.agrees);
        }
    }
}

fn check_vocabularies(model: &Runtime, original: &Original) -> Result<()> {
    let (found, expected) = (model.model().vocabulary, original.vocabulary());
    if found != expected {
        return Err(Error::input(format!("the model has {found} tokens, the original {expected}"))
            .hint("compare a model with the one that it was made from"));
    }
    Ok(())
}

fn measured(per_window: Vec<WindowSums>, divergences: Option<Vec<f64>>, tokens_per_second: f64) -> Measured {
    let sum = |of: fn(&WindowSums) -> f64| per_window.iter().map(of).sum::<f64>();
    let tokens: usize = per_window.iter().map(|w| w.tokens).sum();
    let bytes: usize = per_window.iter().map(|w| w.bytes).sum();
    let (count, total) = (tokens as f64, sum(|w| w.nll));
    let units: Vec<[f64; 4]> = per_window.iter().map(|w| [w.tokens as f64, w.nll, w.original_nll, w.kl]).collect();
    let all = intervals(&units, |[n, nll, original, kl]| [(nll / n).exp(), (nll - original) / n, kl / n]);
    let divergence = divergences.map(|mut kl| {
        kl.sort_unstable_by(f64::total_cmp);
        let original_nll = sum(|w| w.original_nll) / count;
        Divergence {
            kl_mean: sum(|w| w.kl) / count,
            kl_mean_ci95: all.map(|a| a[2]),
            kl_p99: quantile(&kl, 0.99),
            top1_agreement: sum(|w| w.agreements as f64) / count,
            original_nll,
            nll_increase: total / count - original_nll,
            nll_increase_ci95: all.map(|a| a[1]),
        }
    });
    Measured {
        tokens,
        bytes,
        nll: total / count,
        perplexity: (total / count).exp(),
        perplexity_ci95: all.map(|a| a[0]),
        bits_per_byte: (bytes > 0).then(|| total / std::f64::consts::LN_2 / bytes as f64),
        divergence,
        per_window,
        tokens_per_second,
    }
}
