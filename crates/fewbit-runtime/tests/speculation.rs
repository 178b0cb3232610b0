//! Texts made with drafts are the texts made without, or come as often.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its files has failed")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fewbit_kernel::Team;
use fewbit_runtime::{
    Arithmetic, Batch, Distribution, DraftLength, Drafter, Drafts, Generated, Generation, Limits, Runtime, Sampler,
    Sampling, Seen, language,
};
use fewbit_store::{ModelFile, Safetensors};
use fewbit_text::{Special, Tokenizer};

const CONTEXT: usize = 96;
const PROMPT: &str = "Once upon a time, there was a little";

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo-model")
}

fn load(folder: &Path, arithmetic: Arithmetic) -> Runtime {
    Runtime::load(&ModelFile::open(folder).unwrap(), arithmetic, Arc::new(Team::new(1))).unwrap()
}

fn tokenizer() -> Tokenizer {
    language::tokenizer_of(ModelFile::open(&demo()).unwrap().checkpoint()).unwrap()
}

/// The demo model with two bits of mantissa and a context of 48 positions.
fn coarse() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        std::fs::copy(demo().join(name), folder.path().join(name)).unwrap();
    }
    let config = std::fs::read_to_string(demo().join("config.json")).unwrap();
    let shorter = config.replace("\"max_position_embeddings\": 1024", "\"max_position_embeddings\": 48");
    assert_ne!(config, shorter);
    std::fs::write(folder.path().join("config.json"), shorter).unwrap();
    let mut bytes = std::fs::read(demo().join("model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[header..].iter_mut().step_by(2).for_each(|low| *low &= 0xe0);
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    folder
}

fn limits(max_tokens: usize) -> Limits {
    Limits { max_tokens: Some(max_tokens), end_ids: vec![1], stop: Vec::new() }
}

/// What is made, and the pieces in which it is told; the listener stops after `patience` pieces.
fn told(
    generation: &mut Generation<'_>,
    prompt: &[u32],
    sampling: Sampling,
    limits: &Limits,
    patience: usize,
) -> (Generated, Vec<String>) {
    let mut pieces = Vec::new();
    let listen = &mut |piece: &str| {
        pieces.push(piece.to_owned());
        pieces.len() < patience
    };
    let made = generation.run(prompt, sampling, limits, listen).unwrap();
    (made, pieces)
}

fn generation<'a>(runtime: &'a Runtime, tokenizer: &'a Tokenizer, drafter: Option<Drafter<'a>>) -> Generation<'a> {
    let mut generation = Generation::new(runtime, tokenizer, CONTEXT);
    if let Some(drafter) = drafter {
        generation.speculate(drafter, DraftLength::Fixed(6)).unwrap();
    }
    generation
}

/// Stops, limits, interruptions, penalties, and a second text in the same conversation.
#[test]
fn the_most_probable_text_is_the_same_with_every_draft_and_arithmetic() {
    let (tokenizer, coarse) = (tokenizer(), coarse());
    let prompt = tokenizer.encode(PROMPT, Special::PlainWithBos).unwrap();
    let greedy = Sampling::default();
    let penalised = Sampling { repetition_penalty: 1.3, ..greedy };
    for arithmetic in [Arithmetic::Fast, Arithmetic::Exact, Arithmetic::WeightsOnly] {
        let (target, other) = (load(&demo(), arithmetic), load(coarse.path(), arithmetic));
        let cases = [
            (greedy, limits(40), usize::MAX),
            (greedy, limits(CONTEXT), usize::MAX),
            (greedy, Limits { stop: vec![" was a".to_owned(), "girl n".to_owned()], ..limits(40) }, usize::MAX),
            (greedy, limits(40), 17),
            (penalised, limits(40), usize::MAX),
        ];
        for drafter in [Drafter::Lookup, Drafter::Model(&other), Drafter::Model(&target)] {
            for (sampling, limits, patience) in &cases[..if arithmetic == Arithmetic::Fast { 5 } else { 1 }] {
                let mut plain = generation(&target, &tokenizer, None);
                let mut drafted = generation(&target, &tokenizer, Some(drafter));
                let mut prompt = prompt.clone();
                for turn in 0..2 {
                    let want = told(&mut plain, &prompt, *sampling, limits, *patience);
                    let got = told(&mut drafted, &prompt, *sampling, limits, *patience);
                    assert_eq!(got.0.ids, want.0.ids, "{arithmetic:?} {limits:?} {turn}");
                    assert_eq!((got.0.text, got.1), (want.0.text, want.1));
                    assert_eq!(got.0.finish, want.0.finish);
                    assert_eq!((want.0.drafts, drafted.seen()), (None, plain.seen()));
                    prompt.extend(got.0.ids);
                    prompt.truncate(CONTEXT - 20);
                    prompt.extend(tokenizer.encode(" Then one day", Special::Plain).unwrap());
                }
            }
        }
    }
}

/// Windows of attention, experts, biases.
#[test]
fn every_family_makes_the_same_text() {
    let tokenizer = tokenizer();
    for folder in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/families")).unwrap() {
        let folder = folder.unwrap().path();
        if !folder.is_dir() {
            continue;
        }
        let golden = Safetensors::open(&folder.join("golden.safetensors")).unwrap();
        let ids = golden.tensor("input_ids_1").unwrap().to_i32().unwrap();
        let prompt: Vec<u32> = ids.into_iter().map(|i| i as u32).take(24).collect();
        let target = load(&folder, Arithmetic::Fast);
        let text = |drafter| {
            let mut generation = Generation::new(&target, &tokenizer, 64);
            if let Some(drafter) = drafter {
                generation.speculate(drafter, DraftLength::Fixed(4)).unwrap();
            }
            let made = generation.run(&prompt, Sampling::default(), &Limits::default(), &mut |_| true).unwrap();
            (made.ids, made.drafts)
        };
        let (want, _) = text(None);
        assert_eq!(want.len(), 64 - prompt.len());
        assert_eq!(text(Some(Drafter::Lookup)).0, want, "{}", folder.display());
        let (ids, drafts) = text(Some(Drafter::Model(&target)));
        assert_eq!(ids, want, "{}", folder.display());
        assert!(drafts.is_some_and(|d| d.accepted == d.drafted), "{}: {drafts:?}", folder.display());
    }
}

#[test]
fn a_model_agrees_with_itself_and_lookup_with_what_repeats() {
    let (tokenizer, target) = (tokenizer(), load(&demo(), Arithmetic::Fast));
    let drafts = |drafter, prompt: &[u32], repetition_penalty, max_tokens| {
        let mut generation = generation(&target, &tokenizer, Some(drafter));
        let greedy = Sampling { repetition_penalty, ..Sampling::default() };
        told(&mut generation, prompt, greedy, &limits(max_tokens), usize::MAX).0.drafts.unwrap()
    };
    let prompt = tokenizer.encode(PROMPT, Special::PlainWithBos).unwrap();
    let Drafts { drafted, accepted } = drafts(Drafter::Model(&target), &prompt, 1.0, 60);
    assert!(accepted == drafted && drafted > 45, "{accepted} of {drafted}");
    // A penalty below 1 makes a text repeat.
    let Drafts { drafted, accepted } = drafts(Drafter::Lookup, &prompt, 0.7, 80);
    assert!(drafted >= 20 && 10 * accepted >= 7 * drafted, "{accepted} of {drafted}");
}

/// Texts of three tokens, counted, against their probabilities.
#[test]
fn sampled_texts_come_as_often_as_the_model_says() {
    const TEXTS: u64 = 1000;
    let (tokenizer, coarse) = (tokenizer(), coarse());
    let (target, other) = (load(&demo(), Arithmetic::Fast), load(coarse.path(), Arithmetic::Fast));
    // The end was there before: lookup has something to say.
    let verse = "The dog was happy. The cat was sad. The dog was";
    let prompt = tokenizer.encode(verse, Special::PlainWithBos).unwrap();
    let sampling = Sampling { temperature: 1.3, top_k: 3, repetition_penalty: 1.1, ..Sampling::default() };
    let mut texts = Vec::new();
    follow(&target, sampling, &prompt, 3, 1.0, &mut texts);
    assert!(texts.iter().map(|t| t.1).sum::<f64>() > 0.9999);
    for drafter in [Drafter::Lookup, Drafter::Model(&other)] {
        let mut generation = generation(&target, &tokenizer, Some(drafter));
        let mut counts = vec![0; texts.len()];
        let mut all = Drafts::default();
        for seed in 0..TEXTS {
            let limits = Limits { max_tokens: Some(3), ..Limits::default() };
            let made = generation.run(&prompt, Sampling { seed, ..sampling }, &limits, &mut |_| true).unwrap();
            let of_text = made.drafts.unwrap_or_default();
            all = Drafts { drafted: all.drafted + of_text.drafted, accepted: all.accepted + of_text.accepted };
            let text = texts.iter().position(|t| t.0 == made.ids);
            counts[text.expect("a text of tokens that are kept")] += 1;
        }
        // Neither all nor nothing: both branches are in the counts.
        let is_mixed = 20 * all.accepted > all.drafted && 20 * all.accepted < 19 * all.drafted;
        assert!(is_mixed && all.drafted > 150, "{all:?}");
        let (mut statistic, mut freedom, mut rest) = (0.0, -1.0, (0.0, 0.0));
        for ((_, p), count) in texts.iter().zip(&counts) {
            let (expected, count) = (p * TEXTS as f64, f64::from(*count));
            if expected < 5.0 {
                rest = (rest.0 + expected, rest.1 + count);
            } else {
                freedom += 1.0;
                statistic += (count - expected).powi(2) / expected;
            }
        }
        statistic += (rest.1 - rest.0).powi(2) / rest.0.max(1.0);
        assert!(statistic < freedom + 4.0 * (2.0_f64 * freedom).sqrt(), "{statistic} with {freedom}: {counts:?}");
    }
}

/// Each text of `more` tokens that may follow, with its probability.
fn follow(target: &Runtime, s: Sampling, text: &[u32], more: usize, p: f64, out: &mut Vec<(Vec<u32>, f64)>) {
    fn walk(
        target: &Runtime,
        s: Sampling,
        text: &mut Vec<u32>,
        from: usize,
        to: usize,
        p: f64,
        out: &mut Vec<(Vec<u32>, f64)>,
    ) {
        if text.len() == to {
            out.push((text[from..].to_vec(), p));
            return;
        }
        let batch = Batch::one(0, text.len());
        let mut logits = target.logits(&batch, text, None, &[text.len() - 1]).unwrap();
        let (mut seen, mut kept) = (Seen::default(), Distribution::default());
        seen.become_text(text);
        Sampler::new(s).unwrap().choose_from(logits.row_mut(0), &seen, &mut kept);
        for id in 0..target.model().vocabulary as u32 {
            let of_id = kept.probability(id);
            if of_id > 0.0 {
                text.push(id);
                walk(target, s, text, from, to, p * of_id, out);
                text.pop();
            }
        }
    }
    walk(target, s, &mut text.to_vec(), text.len(), text.len() + more, p, out);
}

#[test]
fn the_same_seed_gives_the_same_text_with_drafts() {
    let (tokenizer, coarse) = (tokenizer(), coarse());
    let (target, other) = (load(&demo(), Arithmetic::Fast), load(coarse.path(), Arithmetic::Fast));
    let prompt = tokenizer.encode(PROMPT, Special::PlainWithBos).unwrap();
    let sampling = Sampling { temperature: 1.0, top_p: 0.95, seed: 11, ..Sampling::default() };
    for drafter in [Drafter::Lookup, Drafter::Model(&other)] {
        let text = || {
            let mut generation = generation(&target, &tokenizer, Some(drafter));
            told(&mut generation, &prompt, sampling, &limits(40), usize::MAX).0
        };
        let (a, b) = (text(), text());
        assert_eq!((a.ids, a.drafts), (b.ids, b.drafts));
    }
}

#[test]
fn another_vocabulary_is_refused() {
    let (tokenizer, target) = (tokenizer(), load(&demo(), Arithmetic::Fast));
    let other = load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/families/llama"), Arithmetic::Fast);
    let refusal = Generation::new(&target, &tokenizer, 64)
        .speculate(Drafter::Model(&other), DraftLength::Adaptive(4))
        .unwrap_err();
    assert!(refusal.to_string().contains("the model one of 4096"), "{refusal}");
}
