//! Time to choose a token of a vocabulary of 128k: `cargo bench -p fewbit-runtime --bench sampling`.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::time::Instant;

use fewbit_format::Result;
use fewbit_runtime::{Sampler, Sampling, Seen};

const VOCABULARY: usize = 128_256;

fn main() -> Result<()> {
    let base = Sampling { temperature: 0.8, ..Sampling::default() };
    let settings = [
        ("greedy", Sampling::default()),
        ("greedy, penalty", Sampling { repetition_penalty: 1.1, ..Sampling::default() }),
        ("temperature", base),
        ("top-k 40", Sampling { top_k: 40, ..base }),
        ("top-p 0.95", Sampling { top_p: 0.95, ..base }),
        ("min-p 0.05", Sampling { min_p: 0.05, ..base }),
        (
            "top-k 40, top-p 0.95, min-p 0.05, penalty",
            Sampling { top_k: 40, top_p: 0.95, min_p: 0.05, repetition_penalty: 1.1, ..base },
        ),
    ];
    // As a model's, most far below a few that are probable; and almost flat.
    for (name, spread, few) in [("peaked", 2.0_f32, 10.0), ("flat", 0.5, 0.0)] {
        let bonus = |i: usize| if i.is_multiple_of(1283) { few } else { 0.0 };
        let logits: Vec<f32> = (0..VOCABULARY).map(|i| spread * gaussian(i) + bonus(i)).collect();
        let mut seen = Seen::default();
        (0..4000_u32).for_each(|i| seen.push(i * 2_654_435 % VOCABULARY as u32));
        println!("{name} logits, 4000 tokens seen: microseconds");
        for (setting, s) in settings {
            let mut sampler = Sampler::new(s)?;
            let mut row = logits.clone();
            let mut times: Vec<f64> = (0..60)
                .map(|_| {
                    row.copy_from_slice(&logits);
                    let clock = Instant::now();
                    std::hint::black_box(sampler.choose(&mut row, &seen));
                    clock.elapsed().as_secs_f64() * 1e6
                })
                .collect();
            times.sort_by(f64::total_cmp);
            println!("{:8.1}  {setting}", times[times.len() / 2]);
        }
    }
    Ok(())
}

/// A sum of uniform numbers, made of the index alone.
fn gaussian(i: usize) -> f32 {
    let mut state = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut sum = 0.0;
    for _ in 0..12 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        sum += (state >> 40) as f32 / (1 << 24) as f32;
    }
    sum - 6.0
}
