//! Speed of attention behind many positions: one query per sequence, from f16 caches in memory.
//!
//! `cargo bench -p fewbit-kernel --bench attention [-- [LEVEL] [POSITIONS]]`. As many caches as fill 400 MB, in turn.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::hint::black_box;
use std::time::Instant;

use fewbit_kernel::attention::{AttentionShape, CacheType, Pages, Sequence, attention_cached};
use fewbit_kernel::{Level, Team, cpu};

/// Heads, heads of keys and values, and their size: TinyLlama-1.1B, Llama-3-8B, SmolLM2-135M, and one head for all.
const SHAPES: [[usize; 3]; 4] = [[32, 4, 64], [32, 8, 128], [9, 3, 64], [8, 1, 256]];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(level) = arguments.iter().find_map(|a| Level::named(a)) {
        cpu::limit(level);
    }
    let positions = arguments.iter().find_map(|a| a.parse().ok()).unwrap_or(8192);
    println!("level {}, {positions} positions", cpu::detect().name());
    let teams = [Team::new(1), Team::new(2)];
    for [heads, kv_heads, head_dim] in SHAPES {
        let width = kv_heads * head_dim;
        let noise = |n: usize| -> Vec<f32> { (0..n).map(|i| (i * 37 % 101) as f32 / 64.0 - 0.75).collect() };
        let mut keys = Pages::keys(CacheType::F16, kv_heads, head_dim, positions);
        let mut values = Pages::values(CacheType::F16, kv_heads, head_dim, positions);
        keys.write(&teams[1], 0, &noise(positions * width));
        values.write(&teams[1], 0, &noise(positions * width));
        let bytes = 2 * positions * width * CacheType::F16.bytes();
        let caches = vec![(keys, values); (400 << 20) / bytes + 1];
        let (q, mut out) = (noise(heads * head_dim), vec![0.0; heads * head_dim]);
        let scale = 0.1;
        let shape = AttentionShape { heads, kv_heads, head_dim, scale, softcap: None, window: None, sinks: None };
        print!("{heads} heads on {kv_heads} of {head_dim}:");
        for team in &teams {
            let mut best = f64::INFINITY;
            for _ in 0..7 {
                let begun = Instant::now();
                for (keys, values) in &caches {
                    let sequence = Sequence { start: positions - 1, len: 1, keys, values };
                    attention_cached(team, &shape, &[sequence], &q, &mut out);
                    black_box(&out);
                }
                best = best.min(begun.elapsed().as_secs_f64());
            }
            print!(" {:6.2} GB/s by {}", (bytes * caches.len()) as f64 / best / 1e9, team.threads());
        }
        println!();
    }
}
