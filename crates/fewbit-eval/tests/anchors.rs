//! Perplexities and likelihoods that are known from other programs, on models that lie beside the repository.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "what fails here fails the test, which says what it saw")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use fewbit_eval::{
    Cache, Measured, Original, Protocol, Windows, bits_per_weight, choice_logprobs, documents, evaluate,
    token_logprobs, windows,
};
use fewbit_kernel::Team;
use fewbit_runtime::language::tokenizer_of;
use fewbit_runtime::{Arithmetic, Batch, Runtime};
use fewbit_store::{ModelFile, Safetensors};
use fewbit_text::{Special, Tokenizer};

/// A file of the reference material; says what is missing where it is absent.
fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared")).join(name);
    if !path.exists() {
        eprintln!("skipped: {} is absent", path.display());
        return None;
    }
    Some(path)
}

struct Subject {
    file: ModelFile,
    tokenizer: Tokenizer,
    model: Arc<Runtime>,
}

fn subject(path: &Path, threads: usize) -> Subject {
    let file = ModelFile::open(path).unwrap();
    let tokenizer = tokenizer_of(file.checkpoint()).unwrap();
    let model = Arc::new(Runtime::load(&file, Arithmetic::Exact, Arc::new(Team::new(threads))).unwrap());
    Subject { file, tokenizer, model }
}

fn small(name: &str) -> Option<Subject> {
    shared(&format!("models/{name}")).map(|p| subject(&p, 2))
}

fn measure(model: &Runtime, windows: &Windows) -> Measured {
    evaluate(model, None, windows, &mut |_, _| {}, &AtomicBool::new(false)).unwrap()
}

fn beside(model: &Runtime, original: &mut Original, windows: &Windows) -> Measured {
    evaluate(model, Some(original), windows, &mut |_, _| {}, &AtomicBool::new(false)).unwrap()
}

/// A text as the other quantizers' tokenizers saw it: without the characters that the vocabulary does not have, and
/// without a second space at its start.
fn cleaned(tokenizer: &Tokenizer, text: &str) -> String {
    let text = text.strip_prefix(' ').unwrap_or(text).replace("<|endoftext|>", "");
    let characters: BTreeSet<char> = text.chars().collect();
    let unknown = tokenizer.token_to_id("<unk>").unwrap();
    let is_dropped = |c: &char| tokenizer.encode(&format!("a{c}"), Special::Plain).unwrap().contains(&unknown);
    let dropped: Vec<char> = characters.into_iter().filter(is_dropped).collect();
    text.replace(&dropped[..], "")
}

fn close(found: f64, expected: f64, relative: f64) {
    assert!((found / expected - 1.0).abs() < relative, "{found}, where {expected} is expected");
}

#[test]
fn perplexities_of_protocol_p1() {
    let texts = ["data/tinystories/valid.txt", "data/wikitext-2/wiki.test.raw"].map(shared);
    // The beginning holds the 64 blocks of each.
    let read = |p: PathBuf| std::fs::read_to_string(p).unwrap().chars().take(250_000).collect::<String>();
    let [Some(stories), Some(wiki)] = texts.map(|t| t.map(read)) else { return };
    let cases = [
        ("TinyStories-656K", &stories, 64, 3.55538),
        ("TinyStories-656K", &stories, 32, 37.236f64.ln()),
        ("TinyStories-656K", &wiki, 64, 6.19130),
        ("stories260K", &stories, 64, 1.67721),
        ("stories260K", &wiki, 64, 5.00605),
    ];
    for (name, text, blocks, nll) in cases {
        let Some(s) = small(name) else { return };
        let w = windows(&s.tokenizer, &cleaned(&s.tokenizer, text), Protocol::Blocks, 512, Some(blocks)).unwrap();
        assert_eq!(w.tokens(), blocks * 511);
        let m = measure(&s.model, &w);
        eprintln!("{name} {blocks}: nll {:.6} ppl {:.4} {:?}", m.nll, m.perplexity, m.perplexity_ci95);
        assert!((m.nll - nll).abs() < 1.5e-5, "{name}: {} {nll}", m.nll);
        let ci = m.perplexity_ci95.unwrap();
        assert!(ci[0] < m.perplexity && m.perplexity < ci[1]);
    }
}

fn six_stories() -> Option<String> {
    let texts = std::fs::read(shared("trouble/texts.json")?).unwrap();
    let texts: serde_json::Value = serde_json::from_slice(&texts).unwrap();
    Some(texts["six_stories"]["text"].as_str().unwrap().to_owned())
}

/// One text and model, five honest perplexities (ggml-org/llama.cpp#2714), and bits per byte (#7111).
#[test]
fn the_protocols_on_one_text() {
    let Some(text) = six_stories() else { return };
    let cases = [
        ("stories260K", [4.37744, 4.29353, 5.52597, 3.96810, 4.02732], [2032, 1008, 2032, 2063, 511], 0.94065),
        ("TinyStories-656K", [35.88192, 20.06791, 32.28754, 25.50668, 30.35725], [889, 441, 889, 951, 511], 1.01899),
    ];
    for (name, perplexities, tokens, bits_per_byte) in cases {
        let Some(s) = small(name) else { return };
        let (ids, ends) = s.tokenizer.encode_with_ends(&text).unwrap();
        let by = |bos, protocol, length, count: usize| {
            Windows::new(ids[..count].to_vec(), ends[..count].to_vec(), bos, protocol, length, None).unwrap()
        };
        let bos = s.tokenizer.bos();
        let all = [
            by(None, Protocol::Blocks, 128, ids.len()),
            windows(&s.tokenizer, &text, Protocol::LlamaCpp, 128, None).unwrap(),
            windows(&s.tokenizer, &text, Protocol::Blocks, 128, None).unwrap(),
            windows(&s.tokenizer, &text, Protocol::Strided { stride: None }, 128, None).unwrap(),
            by(bos, Protocol::Blocks, 512, 511),
        ];
        for ((w, perplexity), tokens) in all.iter().zip(perplexities).zip(tokens) {
            let m = measure(&s.model, w);
            eprintln!("{name}: {}: {:.5} {:?}", w.rule(), m.perplexity, m.bits_per_byte);
            assert_eq!(m.tokens, tokens, "{}", w.rule());
            close(m.perplexity, perplexity, 1e-5);
        }
        let m = measure(&s.model, &all[3]);
        assert_eq!(m.bytes, 4361);
        close(m.bits_per_byte.unwrap(), bits_per_byte, 1e-5);
    }
}

/// Documents alone, with and without BOS (EleutherAI/lm-evaluation-harness#1465).
#[test]
fn each_story_alone() {
    let Some(valid) = shared("data/tinystories/valid.txt") else { return };
    let valid = std::fs::read_to_string(valid).unwrap();
    let stories: Vec<&str> = valid.split("<|endoftext|>").map(|s| s.trim_matches('\n')).take(16).collect();
    let cases = [
        ("stories260K", true, 4.99908, 5982),
        ("stories260K", false, 5.01087, 5968),
        ("TinyStories-656K", true, 41.97938, 3025),
        ("TinyStories-656K", false, 46.75070, 3009),
    ];
    for (name, has_bos, perplexity, tokens) in cases {
        let Some(s) = small(name) else { return };
        assert!(s.tokenizer.adds_bos());
        let bos = s.tokenizer.bos().filter(|_| has_bos);
        let w = documents(&s.tokenizer, &stories, bos, 512).unwrap();
        let m = measure(&s.model, &w);
        assert_eq!(m.tokens, tokens, "{name}");
        close(m.perplexity, perplexity, 1e-5);
        assert!(w.rule().contains(if has_bos { "behind BOS (id 1)" } else { "without BOS" }));
    }
}

/// The space on either side of the seam (EleutherAI/lm-evaluation-harness#4012).
#[test]
fn choices_are_encoded_with_their_context() {
    let Some(s) = small("stories260K") else { return };
    let context = "Tom had a red ball. He wanted to";
    let left = [" play", " sleep in the park", " eat the cake"];
    let right = left.map(str::trim_start);
    let of = |context: &str, choices: &[&str]| choice_logprobs(&s.model, &s.tokenizer, context, choices).unwrap();
    let (a, b) = (of(context, &left), of(&format!("{context} "), &right));
    assert_eq!(a, b);
    assert_eq!(a[0].ids, [337]);
    assert!(a[0].is_greedy && !a[2].is_greedy);
    for (score, expected) in a.iter().zip([-1.59127, -10.02957, -14.84284]) {
        assert!((score.logprob - expected).abs() < 2e-5, "{} {expected}", score.logprob);
    }
    // Without context the first token follows BOS.
    assert!(of("", &["Once"])[0].logprob < 0.0);
    assert!(choice_logprobs(&s.model, &s.tokenizer, context, &[""]).is_err());
}

/// Every token of a prompt but the first has its log-probability (ggml-org/llama.cpp#27174).
#[test]
fn a_prompt_position_by_position() {
    let Some(s) = small("stories260K") else { return };
    let ids = [1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426];
    let expected = [
        -0.24374, -0.01751, -0.01211, -0.00072, -0.0317, -0.06842, -0.01595, -0.00078, -0.49398, -0.44587, -0.00489,
        -0.00066, -0.01879, -0.0766, -0.07032,
    ];
    let found = token_logprobs(&s.model, &ids).unwrap();
    assert_eq!((found.len(), found[0]), (16, None));
    for (f, e) in found[1..].iter().zip(expected) {
        assert!((f.unwrap() - e).abs() < 1e-5, "{f:?} {e}");
    }
    assert_eq!(token_logprobs(&s.model, &ids[..1]).unwrap(), [None]);
    assert!(token_logprobs(&s.model, &[]).unwrap().is_empty());
    assert!(token_logprobs(&s.model, &[1, 512]).is_err());
}

#[test]
fn a_model_does_not_differ_from_itself_for_any_number_of_threads() {
    let (Some(text), Some(path)) = (six_stories(), shared("models/TinyStories-656K")) else { return };
    let measured = [1, 2, 3].map(|threads| {
        let s = subject(&path, threads);
        let w = windows(&s.tokenizer, &text, Protocol::Blocks, 64, None).unwrap();
        beside(&s.model, &mut Original::beside(s.model.clone()), &w)
    });
    let d = measured[0].divergence.unwrap();
    assert_eq!((d.kl_mean, d.kl_p99, d.top1_agreement, d.nll_increase), (0.0, 0.0, 1.0, 0.0));
    assert_eq!((d.kl_mean_ci95, d.nll_increase_ci95), (Some([0.0, 0.0]), Some([0.0, 0.0])));
    assert_eq!(d.original_nll, measured[0].nll);
    for other in &measured[1..] {
        assert_eq!(other.per_window, measured[0].per_window);
        assert_eq!(other.perplexity_ci95, measured[0].perplexity_ci95);
    }
}

/// The recorded log-probabilities give the divergence that both models side by side give.
#[test]
fn the_recording_agrees_with_lockstep() {
    let (Some(text), Some(s)) = (six_stories(), small("stories260K")) else { return };
    let Some(path) = shared("conformance/gguf/tiny/stories260k-q4_k_m.gguf") else { return };
    let rounded = subject(&path, 2).model;
    let w = windows(&s.tokenizer, &text, Protocol::Blocks, 64, None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(dir.path());
    let open = || Original::open(&s.file, &w, Some(&cache), s.model.team().clone()).unwrap();
    let lockstep = beside(&rounded, &mut Original::beside(s.model.clone()), &w).divergence.unwrap();
    assert!(lockstep.kl_mean > 1e-3, "{lockstep:?}");
    let mut first = open();
    assert!(!first.is_recorded());
    assert_eq!(beside(&rounded, &mut first, &w).divergence, Some(lockstep));
    let mut second = open();
    assert!(second.is_recorded());
    for _ in 0..2 {
        let recorded = beside(&rounded, &mut second, &w).divergence.unwrap();
        eprintln!("{lockstep:?}\n{recorded:?}");
        let off = (recorded.kl_mean - lockstep.kl_mean).abs();
        assert!(off <= 1e-4 * lockstep.kl_mean || off <= 2e-6);
        assert_eq!(recorded.top1_agreement, lockstep.top1_agreement);
        assert_eq!(recorded.original_nll, lockstep.original_nll);
    }
    // Other windows have an entry of their own.
    let other = windows(&s.tokenizer, &text, Protocol::Blocks, 32, None).unwrap();
    assert!(!Original::open(&s.file, &other, Some(&cache), s.model.team().clone()).unwrap().is_recorded());
    let error = evaluate(&rounded, Some(&mut second), &other, &mut |_, _| {}, &AtomicBool::new(false));
    assert!(error.is_err());
}

/// Window by window what f64 arithmetic on the logits of both models gives.
#[test]
fn divergence_of_a_quantized_checkpoint() {
    let (Some(text), Some(s)) = (six_stories(), small("TinyStories-656K")) else { return };
    let Some(path) = shared("conformance/quantized/ct-w4a16-g32-asym-rtn") else { return };
    let file = ModelFile::open(&path).unwrap();
    let model = Runtime::load(&file, Arithmetic::Exact, s.model.team().clone()).unwrap();
    let w = windows(&s.tokenizer, &text, Protocol::LlamaCpp, 128, None).unwrap();
    let m = beside(&model, &mut Original::beside(s.model.clone()), &w);
    let mut divergences = Vec::new();
    for (i, sums) in m.per_window.iter().enumerate() {
        let fed = w.fed(i);
        let rows: Vec<usize> = (64..127).collect();
        let logits = |model: &Runtime| model.logits(&Batch::one(0, fed.len()), &fed, None, &rows).unwrap();
        let (p, q) = (logits(&s.model), logits(&model));
        let of_row = |r: usize| {
            let log = |x: &[f32]| {
                let sum = x.iter().map(|v| f64::from(*v).exp()).sum::<f64>().ln();
                x.iter().map(|v| f64::from(*v) - sum).collect::<Vec<f64>>()
            };
            let (p, q) = (log(p.row(r)), log(q.row(r)));
            let kl: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
            let best = |x: &[f64]| (0..x.len()).max_by(|a, b| x[*a].total_cmp(&x[*b])).unwrap();
            (kl, -q[fed[r + 65] as usize], usize::from(best(&p) == best(&q)))
        };
        let all: Vec<_> = (0..rows.len()).map(of_row).collect();
        let (kl, nll): (f64, f64) = (all.iter().map(|a| a.0).sum(), all.iter().map(|a| a.1).sum());
        assert!((sums.kl - kl).abs() < 1e-5 && (sums.nll - nll).abs() < 1e-4, "{sums:?} {kl} {nll}");
        assert_eq!(sums.agreements, all.iter().map(|a| a.2).sum::<usize>());
        divergences.extend(all.iter().map(|a| a.0));
    }
    let d = m.divergence.unwrap();
    divergences.sort_by(f64::total_cmp);
    let at = 0.99 * (divergences.len() - 1) as f64;
    let p99 = divergences[at as usize] + at.fract() * (divergences[at as usize + 1] - divergences[at as usize]);
    assert!((d.kl_p99 - p99).abs() < 1e-6, "{} {p99}", d.kl_p99);
    let ci = d.kl_mean_ci95.unwrap();
    assert!(0.03 < ci[0] && ci[0] < d.kl_mean && d.kl_mean < ci[1] && ci[1] < 0.08, "{d:?}");
}

#[test]
fn it_stops_and_refuses() {
    let (Some(text), Some(s), Some(t)) = (six_stories(), small("stories260K"), small("TinyStories-656K")) else {
        return;
    };
    let w = windows(&s.tokenizer, &text, Protocol::Blocks, 64, None).unwrap();
    let stop = AtomicBool::new(false);
    let mut heard = Vec::new();
    let mut progress = |done, all| {
        heard.push((done, all));
        stop.store(done == 2, std::sync::atomic::Ordering::Relaxed);
    };
    let e = evaluate(&s.model, None, &w, &mut progress, &stop).unwrap_err();
    assert_eq!(e.kind(), fewbit_format::Kind::Interrupted);
    assert_eq!(heard, [(1, w.len()), (2, w.len())]);
    let refused = |original: Option<&mut Original>, w: &Windows| {
        evaluate(&s.model, original, w, &mut |_, _| {}, &AtomicBool::new(false)).unwrap_err().to_string()
    };
    let e = refused(Some(&mut Original::beside(t.model)), &w);
    assert!(e.contains("the model has 512 tokens, the original 2048"), "{e}");
    let long = windows(&s.tokenizer, &text, Protocol::Blocks, 1024, None).unwrap();
    let e = refused(None, &long);
    assert!(e.contains("windows of 1024 tokens exceed the model's context of 512; give `--length 512`"), "{e}");
    let blank = windows(&s.tokenizer, "\n\n  \n", Protocol::Blocks, 64, None).unwrap_err().to_string();
    assert!(blank.contains("0 tokens"), "{blank}");
}

#[test]
fn bits_of_models() {
    for (name, linears, model, parameters) in
        [("TinyStories-656K", 32.0, 32.0, 656_000.0), ("fewbit-demo-4m", 16.0, 16.0, 4_196_608.0)]
    {
        let Some(path) = shared(&format!("models/{name}")) else { return };
        let bits = bits_per_weight(&ModelFile::open(&path).unwrap()).unwrap();
        assert_eq!((bits.linears, bits.model), (linears, model), "{name}");
        assert_eq!(bits.size_bytes as f64, model / 8.0 * parameters, "{name}");
    }
    // Codes, scales of 16 bits, zero points as wide as the codes; GPTQ's layout adds the group of each column.
    for (name, linears) in [
        ("ct-w4a16-g32-asym-rtn", 4.625),
        ("ct-w4a16-g128-asym-awq", 4.15625),
        ("ct-w4a16-g128-sym-gptq-actstatic", 4.125),
        ("ct-w3a16-g128-sym-rtn", 3.125),
        ("gptq-w4-g128-sym", 4.15625 + 0.1875),
    ] {
        let Some(path) = shared(&format!("conformance/quantized/{name}")) else { return };
        let bits = bits_per_weight(&ModelFile::open(&path).unwrap()).unwrap();
        assert_eq!(bits.linears, linears, "{name}");
    }
    let Some(path) = shared("conformance/gguf/tiny/tiny-q4_0.gguf") else { return };
    let bits = bits_per_weight(&ModelFile::open(&path).unwrap()).unwrap();
    assert!((4.5..5.5).contains(&bits.linears) && bits.model > bits.linears);
}

/// A file of `tools/fetch-models.sh`: its folder is named by `FEWBIT_MODELS`, or is the user's cache.
fn fetched(name: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache/fewbit/models"));
    let path = std::env::var_os("FEWBIT_MODELS").map(PathBuf::from).or(cache)?.join(name);
    if !path.exists() {
        eprintln!("skipped: {} is absent (tools/fetch-models.sh gets it)", path.display());
        return None;
    }
    Some(path)
}

/// Window by window what float64 arithmetic on the dequantized weights gives in llama.cpp's protocol; all eight windows
/// have a perplexity of 24.49736.
#[test]
fn smollm2_in_llama_cpps_protocol() {
    let golden = shared("conformance/gguf/models/smollm2-135m-instruct-q4_1.golden.safetensors");
    let (Some(golden), Some(wiki)) = (golden, shared("data/wikitext-2/wiki.test.raw")) else { return };
    let Some(path) = fetched("SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let golden = Safetensors::open(&golden).unwrap().tensor("perplexity.exact.nll").unwrap().to_f32().unwrap();
    let s = subject(&path, 2);
    let text = std::fs::read_to_string(wiki).unwrap();
    let w = windows(&s.tokenizer, &text, Protocol::LlamaCpp, 512, Some(2)).unwrap();
    let m = measure(&s.model, &w);
    eprintln!("{}: {:.6}, {:.1} tokens/s", w.rule(), m.perplexity, m.tokens_per_second);
    for (sums, golden) in m.per_window.iter().zip(golden.chunks(255)) {
        assert_eq!(sums.tokens, 255);
        close(sums.nll, golden.iter().map(|v| f64::from(*v)).sum(), 1e-5);
    }
}
