//! Calibration text that the model writes itself.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use fewbit_format::{Error, Result};
use fewbit_kernel::Team;
use fewbit_runtime::{Arithmetic, Batch, ModelCache, Runtime, Sampler, Sampling, Seen};
use fewbit_store::ModelFile;
use fewbit_text::Tokenizer;
use rand::{RngExt, SeedableRng};

use crate::stop::check_stop;
use crate::{Calibration, Progress};

/// Ids of a sequence that are chosen greedily before sampling begins (LLM-QAT's rule).
const GREEDY: usize = 4;

impl Calibration {
    /// Sequences that the model samples from itself: BOS and a random first token, a few greedy ids, then temperature 1.
    ///
    /// # Errors
    /// If the model cannot run.
    pub(crate) fn of_model(
        file: &ModelFile,
        tokenizer: &Tokenizer,
        team: &Arc<Team>,
        samples: usize,
        length: usize,
        seed: u64,
        progress: &mut dyn Progress,
        stop: &AtomicBool,
    ) -> Result<Self> {
        let runtime = Runtime::load(file, Arithmetic::Exact, team.clone())?;
        let vocabulary = file.model().vocabulary.min(tokenizer.vocab_size());
        progress.begin("sampling calibration text", samples as u64);
        let mut ids = Vec::with_capacity(samples * length);
        for s in 0..samples {
            let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed ^ (s as u64) << 32);
            let mut sequence: Vec<u32> = tokenizer.bos().filter(|_| tokenizer.adds_bos()).into_iter().collect();
            sequence.push(random.random_range(0..vocabulary as u32));
            let sampling = Sampling { temperature: 1.0, seed: seed.wrapping_add(s as u64), ..Sampling::default() };
            let (mut greedy, mut sampler) = (Sampler::new(Sampling::default())?, Sampler::new(sampling)?);
            let mut cache = ModelCache::new(&runtime, length);
            let mut fed = 0;
            while sequence.len() < length {
                check_stop(stop)?;
                let batch = Batch::one(fed, sequence.len() - fed);
                let logits =
                    runtime.logits(&batch, &sequence[fed..], Some(&mut [&mut cache]), &[batch.tokens() - 1])?;
                fed = sequence.len();
                let mut logits = logits.into_vec();
                let chooser = if fed < 2 + GREEDY { &mut greedy } else { &mut sampler };
                sequence.push(chooser.choose(&mut logits, &Seen::default()));
            }
            ids.extend(sequence);
            progress.at(s as u64 + 1);
        }
        if ids.is_empty() {
            return Err(Error::internal("no calibration sequence"));
        }
        Ok(Self::new(ids, length))
    }
}
