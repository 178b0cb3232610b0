//! Real models on real text.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fewbit_format::Mat;
use fewbit_grad::Parameters;
use fewbit_grad::loss::{cross_entropy, divergence};
use fewbit_grad::model::ModelFunction;
use fewbit_grad::optim::{AdamW, Decay, Optimizer, Schedule};
use fewbit_graph::Part;
use fewbit_kernel::{Team, elementwise};
use fewbit_runtime::{Arithmetic, Batch, Runtime, language};
use fewbit_store::ModelFile;
use fewbit_text::Special;

use crate::check::Noise;
use crate::models::Memory;

const SEQUENCES: usize = 4;
const LENGTH: usize = 128;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

struct Subject {
    file: ModelFile,
    ids: Vec<u32>,
    batch: Batch,
    team: Arc<Team>,
}

impl Subject {
    fn new(folder: &Path, text: &Path) -> Self {
        let file = ModelFile::open(folder).unwrap();
        let text = std::fs::read_to_string(text).unwrap();
        let start: String = text.chars().take(8000).collect();
        let tokenizer = language::tokenizer_of(file.checkpoint()).unwrap();
        let mut ids = tokenizer.encode(&start, Special::Plain).unwrap();
        ids.truncate(SEQUENCES * LENGTH);
        assert_eq!(ids.len(), SEQUENCES * LENGTH, "a text of enough tokens");
        Self { file, ids, batch: Batch::sequences(SEQUENCES, LENGTH), team: Arc::new(Team::new(2)) }
    }

    fn parameters(&self) -> Memory {
        let read = |part, graph| Arc::new(Parameters::of(graph, &self.file.part(part).unwrap()).unwrap());
        Memory::new(self.file.model().parts().map(|(part, graph)| (part, read(part, graph))).collect())
    }

    fn logits(&self) -> Mat {
        let runtime = Runtime::load(&self.file, Arithmetic::Exact, self.team.clone()).unwrap();
        let rows: Vec<usize> = (0..self.ids.len()).collect();
        runtime.logits(&self.batch, &self.ids, None, &rows).unwrap()
    }

    /// Weights of a mean over the tokens that have a successor.
    fn weights(&self) -> Vec<f32> {
        let each = 1.0 / (SEQUENCES * (LENGTH - 1)) as f32;
        (0..self.ids.len()).map(|i| if (i + 1) % LENGTH == 0 { 0.0 } else { each }).collect()
    }
}

fn subjects() -> Vec<Subject> {
    let mut all = vec![Subject::new(&root().join("assets/demo-model"), &root().join("assets/calibration.txt"))];
    let shared = root().join("../shared");
    let (model, text) = (shared.join("models/TinyStories-656K"), shared.join("data/tinystories/valid.txt"));
    if model.exists() && text.exists() {
        all.push(Subject::new(&model, &text));
    } else {
        eprintln!("skipped: {} or {} is absent", model.display(), text.display());
    }
    all
}

#[test]
fn the_loss_is_that_of_the_runtimes_logits() {
    for subject in subjects() {
        let model = subject.file.model();
        let logits = subject.logits();
        let weights = subject.weights();
        let expected: f64 = (0..subject.ids.len())
            .filter(|i| (i + 1) % LENGTH != 0)
            .map(|i| {
                let (_, log_sum) = elementwise::log_softmax_stats(logits.row(i));
                f64::from(weights[i]) * (log_sum - f64::from(logits[(i, subject.ids[i + 1] as usize)]))
            })
            .sum();
        let function = ModelFunction::new(model.clone()).unwrap();
        let mut loss = |team: &Team, rows: std::ops::Range<usize>, logits: &mut [f32]| {
            let targets: Vec<u32> = rows.clone().map(|i| subject.ids.get(i + 1).copied().unwrap_or_default()).collect();
            cross_entropy(team, logits, model.vocabulary, &targets, &weights[rows])
        };
        let mut memory = subject.parameters();
        let got = function.loss(&subject.team, &subject.batch, &subject.ids, &mut memory, &mut loss).unwrap();
        assert!((got - expected).abs() < 1e-6, "{got} {expected}");
    }
}

/// Noise on the second block's matrices is taken back by AdamW on the divergence from the model as it was.
#[test]
fn adamw_repairs_a_damaged_block() {
    const STEPS: u64 = 12;
    for subject in subjects() {
        let model = subject.file.model();
        let mut logits = subject.logits();
        for i in 0..logits.rows() {
            let (_, log_sum) = elementwise::log_softmax_stats(logits.row(i));
            logits.row_mut(i).iter_mut().for_each(|v| *v = (f64::from(*v) - log_sum) as f32);
        }
        let (width, weights) = (model.vocabulary, subject.weights());
        let mut loss = |team: &Team, rows: std::ops::Range<usize>, d: &mut [f32]| {
            divergence(team, d, width, &logits.data()[rows.start * width..rows.end * width], &weights[rows])
        };
        let function = ModelFunction::new(model.clone()).unwrap();
        let mut memory = subject.parameters();
        memory.first = Part::Block(1);
        let mut boundaries = vec![0.0; function.boundaries(subject.ids.len())];
        let mut step = |memory: &mut Memory| {
            memory.found.clear();
            let (team, batch) = (&subject.team, &subject.batch);
            function.gradients(team, batch, &subject.ids, memory, &mut loss, &mut boundaries).unwrap()
        };
        let whole = step(&mut memory);
        assert!(whole.abs() < 1e-6, "the model does not diverge from itself: {whole}");

        let mut damaged = (*memory.parameters[&Part::Block(1)]).clone();
        let mut noise = Noise::new(1);
        let mut sizes = Vec::new();
        for w in &mut damaged.weights {
            let size = (w.data().iter().map(|v| v * v).sum::<f32>() / w.data().len() as f32).sqrt();
            w.data_mut().iter_mut().for_each(|v| *v += 0.3 * size * noise.next());
            sizes.push(size);
        }
        let mut optimizers: Vec<AdamW> = damaged.weights.iter().map(|w| AdamW::new(w.data().len())).collect();
        let schedule = Schedule { peak: 0.006, steps: STEPS, warmup: 0, decay: Decay::Linear { least: 0.0 } };
        let mut losses = Vec::new();
        for number in 1..=STEPS {
            memory.parameters.insert(Part::Block(1), Arc::new(damaged.clone()));
            losses.push(step(&mut memory));
            let (_, gradients) = memory.found.iter().find(|(part, _)| *part == Part::Block(1)).unwrap();
            for (i, (w, g)) in damaged.weights.iter_mut().zip(&gradients.weights).enumerate() {
                // Adam's steps are of one size; the matrices are not.
                let rate = sizes[i] * schedule.rate(number);
                optimizers[i].step(&subject.team, number, rate, w.data_mut(), g.as_ref().unwrap().data());
            }
        }
        eprintln!("{losses:.4?}");
        assert!(losses[0] > 0.01, "the damage is seen: {}", losses[0]);
        assert!(losses[STEPS as usize - 1] < 0.6 * losses[0], "{losses:?}");
    }
}
