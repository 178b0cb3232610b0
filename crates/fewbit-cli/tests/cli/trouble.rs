//! What really happens to people: cases of the reference material, each made anew.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::{fewbit, shared};

/// Runs a Python program in the folder of the cases; `None` if there is no such folder, no Python or no numpy.
fn python(program: &str, out: &Path) -> Option<()> {
    let folder = shared("trouble")?;
    let run = Command::new("python3").args(["-B", "-c", program]).arg(out).current_dir(folder).output();
    match run {
        Ok(o) if o.status.success() => Some(()),
        Ok(o) => {
            println!("skipped: {}", String::from_utf8_lossy(&o.stderr).lines().last().unwrap_or_default());
            None
        }
        Err(e) => {
            println!("skipped: python3: {e}");
            None
        }
    }
}

/// The files of a case, and what is expected.
pub(crate) fn case(id: &str) -> Option<(TempDir, Value)> {
    let dir = tempfile::tempdir().unwrap();
    python(&format!("import sys, make_case as m; m.CASES['{id}'][1](sys.argv[1])"), dir.path())?;
    let expected = std::fs::read(dir.path().join("expected.json")).unwrap();
    Some((dir, serde_json::from_slice(&expected).unwrap()))
}

pub(crate) fn text(path: impl Into<PathBuf>) -> String {
    path.into().display().to_string()
}

fn numbers(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// Logits after each of the ids.
fn logits(model: &str, ids: &[usize], arithmetic: &str) -> Vec<Vec<f64>> {
    let list = ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let object = fewbit(&["logits", model, "--ids", &list, "--arithmetic", arithmetic, "--json"]).good();
    object["logits"].as_array().unwrap().iter().map(numbers).collect()
}

/// Negative log-likelihood, best five logits and the greedy continuation are those of the float64 reference.
#[track_caller]
fn agrees(model: &str, expected: &Value) {
    let ids: Vec<usize> = numbers(&expected["ids"]).into_iter().map(|i| i as usize).collect();
    let rows = logits(model, &ids, "weights-only");
    let nll: f64 = (rows.iter().zip(&ids[1..]))
        .map(|(row, next)| {
            let most = row.iter().copied().fold(f64::MIN, f64::max);
            most + row.iter().map(|l| (l - most).exp()).sum::<f64>().ln() - row[*next]
        })
        .sum::<f64>()
        / (ids.len() - 1) as f64;
    let wanted = expected["nll_nats_per_predicted_token"].as_f64().unwrap();
    assert!((nll - wanted).abs() < 2e-4, "{model}: {nll}, not {wanted}");
    for best in expected["top5_logits_after_last_id"].as_array().unwrap() {
        let (id, logit) = (best[0].as_u64().unwrap() as usize, best[1].as_f64().unwrap());
        let found = rows.last().unwrap()[id];
        assert!((found - logit).abs() < 1e-3, "{model}: logit of {id} is {found}, not {logit}");
    }
    let greedy: Vec<usize> = numbers(&expected["greedy_ids_after_prompt"]).into_iter().map(|i| i as usize).collect();
    let prompt = expected["prompt"].as_str().unwrap();
    let count = greedy.len().to_string();
    let args = ["run", model, "--raw", "--prompt", prompt, "--temperature", "0", "--max-tokens", &count, "--json"];
    let found: Vec<usize> = numbers(&fewbit(&args).good()["ids"]).into_iter().map(|i| i as usize).collect();
    let Some(at) = (0..greedy.len()).find(|i| found.get(*i) != Some(&greedy[*i])) else { return };
    assert!(found.len() > at, "{model}: {found:?}, not {greedy:?}");
    // Where the checkpoint rounds inputs, the rounding decides between tokens that it moves past each other.
    let object = fewbit(&["tokenize", model, prompt, "--json"]).good();
    let mut text: Vec<usize> = numbers(&object["ids"]).into_iter().map(|i| i as usize).collect();
    text.extend(&greedy[..at]);
    let [plain, rounded] = ["weights-only", "exact"].map(|a| logits(model, &text, a).pop().unwrap());
    let moved = plain.iter().zip(&rounded).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
    let gap = plain[greedy[at]] - plain[found[at]];
    assert!(gap < moved, "{model}: {found:?}, not {greedy:?}: {gap} apart, where rounding of inputs moves {moved}");
}

#[test]
fn models_that_load() {
    let ids = [
        "load-01",
        "load-02",
        "load-04",
        "load-07",
        "load-08",
        "load-10",
        "load-14",
        "load-15",
        "load-16",
        "load-22",
        "load-23",
        "load-27",
        "export-03",
        "export-04",
    ];
    for id in ids {
        let Some((dir, expected)) = case(id) else { return };
        agrees(&text(dir.path()), &expected);
    }
}

#[test]
fn what_stands_in_for_the_head_is_said() {
    let Some((dir, _)) = case("load-02") else { return };
    let ran = fewbit(&["logits", &text(dir.path()), "--ids", "1"]);
    assert!(ran.stderr.contains("no `lm_head.weight`"), "{}", ran.stderr);
}

#[test]
fn gguf_files_that_load() {
    for (id, files) in [
        ("gguf-01", &["model.gguf"][..]),
        ("gguf-02", &["stories-00001-of-00003.gguf", "stories-00002-of-00003.gguf", "stories-00003-of-00003.gguf", ""]),
        ("gguf-05", &["align-64.gguf", "align-i32.gguf"]),
        ("gguf-08", &["v2.gguf"]),
    ] {
        let Some((dir, expected)) = case(id) else { return };
        for file in files {
            agrees(&text(dir.path().join(file)), &expected);
        }
    }
}

#[test]
fn damaged_models_are_refused_by_every_command() {
    for (id, file, words) in [
        ("load-05", "", &["model-00002-of-00002.safetensors", "missing"][..]),
        ("load-12", "", &["`helix`", "config.json"]),
        ("load-17", "", &["`model.norm.weight`", "twice"]),
        ("load-19", "", &["700000", "1045408"]),
        ("gguf-05", "align-0.gguf", &["general.alignment", "0"]),
        ("gguf-05", "align-3.gguf", &["general.alignment", "3"]),
        ("gguf-05", "align-1073741824.gguf", &["general.alignment", "1073741824"]),
        ("gguf-06", "model.gguf", &["702954", "1054432"]),
        ("gguf-08", "v1.gguf", &["version 1"]),
        ("gguf-08", "big-endian.gguf", &["big-endian"]),
    ] {
        let Some((dir, _)) = case(id) else { return };
        let model = text(dir.path().join(file));
        for args in [&["inspect", &model][..], &["logits", &model, "--ids", "1"], &["run", &model, "--prompt", "Once"]]
        {
            fewbit(args).refused(words);
        }
    }
}

#[test]
fn hostile_files_are_one_sentence() {
    let Some((dir, expected)) = case("gguf-07") else { return };
    for name in expected["files"].as_array().unwrap() {
        let model = text(dir.path().join(format!("{}.gguf", name.as_str().unwrap())));
        let start = std::time::Instant::now();
        fewbit(&["inspect", &model]).refused(&[&model]);
        fewbit(&["tokenize", &model, "x"]).refused(&[&model]);
        assert!(start.elapsed().as_secs() < 4, "{model}");
    }
}

#[test]
fn a_vocabulary_without_its_pre_tokenizer_is_warned_about() {
    let Some((dir, _)) = case("gguf-11") else { return };
    let ran = fewbit(&["tokenize", &text(dir.path().join("no-pre.gguf")), "Hello, world 123", "--json"]);
    ran.good();
    assert!(ran.stderr.contains("warning") && ran.stderr.contains("gpt-2"), "{}", ran.stderr);
}

#[test]
fn a_token_beyond_the_embedding_is_named() {
    let Some((dir, _)) = case("load-22") else { return };
    fewbit(&["run", &text(dir.path()), "--prompt", "a <pad> b", "--max-tokens", "4"]).refused(&["id 512", "512 rows"]);
}

#[test]
fn a_sentencepiece_model_gives_the_same_ids() {
    let (Some((dir, expected)), Some(data)) = (case("load-23"), shared("trouble/texts.json")) else { return };
    let texts: Value = serde_json::from_slice(&std::fs::read(data).unwrap()).unwrap();
    let story = texts["story"]["text"].as_str().unwrap();
    let ids = fewbit(&["tokenize", &text(dir.path()), story, "--json"]).good()["ids"].clone();
    assert_eq!(ids, expected["story_ids"]);
}

#[test]
fn several_ids_end_a_text() {
    let Some((dir, expected)) = case("load-24") else { return };
    let args = ["run", &text(dir.path()), "--prompt", "Once upon a time", "--temperature", "0", "--json"];
    let object = fewbit(&args).good();
    assert_eq!(object["text"], expected["text_after_prompt"]);
    assert_eq!(object["finish_reason"], "stop");
}

#[test]
fn an_error_of_the_template_is_its_sentence() {
    let Some((dir, _)) = case("load-25") else { return };
    let model = text(dir.path());
    let ran = fewbit(&["run", &model, "--prompt", "Go on", "--max-tokens", "3", "--json"]);
    ran.good();
    let chat = crate::fewbit_reading(&["chat", &model, "--max-tokens", "3"], "Hi\n");
    assert_eq!(chat.code, Some(0), "{}", chat.stderr);
}

#[test]
fn a_weight_that_is_no_number_is_an_error() {
    let Some((dir, _)) = case("quant-02") else { return };
    let model = text(dir.path());
    let ran = fewbit(&["run", &model, "--prompt", "Once"]);
    ran.refused(&["not finite", "layer 1", "position 0"]);
    assert!(ran.stdout.is_empty());
    let seen = fewbit(&["inspect", &model, "--outliers"]).stdout;
    assert!(seen.contains("model.layers.1.mlp.up_proj") && seen.contains("the first at [5, 7]"), "{seen}");
    let converted = fewbit(&["convert", &model, &text(dir.path().join("out")), "--format", "gguf"]);
    converted.refused(&["would be rounded", "2.02e-4 of their size"]);
    assert!(converted.stderr.contains("holds NaN at [5, 7]"), "{}", converted.stderr);
}

#[test]
fn stop_strings_cross_tokens_and_never_leak() {
    let Some(model) = shared("models/stories260K") else { return };
    let run = |stop: &str| {
        let args = ["run", &text(&model), "--prompt", "Once upon a time", "--temperature", "0", "--max-tokens", "40"];
        let object = fewbit(&[&args[..], &["--stop", stop, "--json"]].concat()).good();
        (object["text"].as_str().unwrap().to_owned(), object["finish_reason"].as_str().unwrap().to_owned())
    };
    for (stop, before) in [
        ("girl named Li", ", there was a little "),
        ("e", ", th"),
        ("ved", ", there was a little girl named Lily. She lo"),
    ] {
        assert_eq!(run(stop), (before.to_owned(), "stop".to_owned()), "{stop}");
    }
    let (whole, finish) = run("Lily. She loathed");
    assert!(whole.contains("Lily. She lo") && finish == "length", "{whole}");
}

#[test]
fn a_model_that_says_what_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let program = "import sys, make_case as m; m.save_dir(sys.argv[1], *m.chain_model(), m.S)";
    let Some(()) = python(program, dir.path()) else { return };
    let model = text(dir.path());
    let run = |prompt: &str, more: &[&str]| {
        let args = ["run", &model, "--prompt", prompt, "--temperature", "0", "--json"];
        fewbit(&[&args[..], more].concat()).good()
    };
    // Four bytes make one character, wherever the text is cut.
    assert_eq!(run("Once", &[])["text"], "😀");
    let cut = run("Once", &["--max-tokens", "2"]);
    assert_eq!((cut["text"].as_str(), cut["finish_reason"].as_str()), (Some("\u{fffd}"), Some("length")));
    let streamed = fewbit(&["run", &model, "--prompt", "Once", "--temperature", "0"]).stdout;
    assert_eq!(streamed, "😀\n");
    // Without end: the context of 64 is the end.
    for more in [&[][..], &["--max-tokens", "-1"], &["--max-tokens", "100000"]] {
        let object = run("She", more);
        assert_eq!(object["finish_reason"], "length");
        assert_eq!(object["ids"].as_array().unwrap().len() + 2, 64, "{object}");
    }
    // The end at once.
    let object = run("Lily", &[]);
    assert_eq!((object["text"].as_str(), object["finish_reason"].as_str()), (Some(""), Some("stop")));
    assert_eq!(fewbit(&["run", &model, "--prompt", "Lily"]).stdout, "\n");
}

#[test]
fn the_edges_of_sampling_are_what_people_expect() {
    let Some(model) = shared("models/stories260K") else { return };
    let model = text(&model);
    let run = |more: &[&str]| {
        fewbit(&[&["run", &model, "--raw", "--prompt", "Once upon a time", "--max-tokens", "16"], more].concat())
    };
    let greedy = run(&["--temperature", "0"]);
    assert_eq!(greedy.code, Some(0), "{}", greedy.stderr);
    for same in [
        &["--temperature", "1e-9"][..],
        &["--temperature", "1", "--top-k", "1"],
        &["--temperature", "1", "--top-p", "0"],
    ] {
        assert_eq!(run(same).stdout, greedy.stdout, "{same:?}");
    }
    let free = run(&["--temperature", "1", "--seed", "42"]);
    for off in [&["--top-k", "0"][..], &["--top-k=-1"], &["--top-p", "1"], &[]] {
        let again = run(&[&["--temperature", "1", "--seed", "42"], off].concat());
        assert_eq!(again.stdout, free.stdout, "{off:?}");
    }
    for (option, name) in [
        ("--temperature=-1", "`temperature` is -1"),
        ("--top-p=-0.1", "`top_p` is -0.1"),
        ("--top-p=1.5", "`top_p` is 1.5"),
        ("--top-k=-2", "`top_k` is -2"),
    ] {
        let ran = run(&[option]);
        ran.refused(&[name, "possible"]);
        assert!(ran.stdout.is_empty());
    }
}

#[test]
fn a_continuation_keeps_its_leading_space() {
    let Some(model) = shared("models/stories260K") else { return };
    for (prompt, text_after) in [("Once upon a time", ", there was a"), ("Once upon a", " time, there was")] {
        let args = ["run", &text(&model), "--raw", "--prompt", prompt, "--temperature", "0", "--max-tokens", "4"];
        let whole = fewbit(&[&args[..], &["--json"]].concat()).good();
        assert!(whole["text"].as_str().unwrap().starts_with(text_after), "{whole}");
        assert_eq!(fewbit(&args).stdout.trim_end_matches('\n'), whole["text"].as_str().unwrap());
    }
}
