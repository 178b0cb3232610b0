//! Help, exit codes, global options, the one object.

use std::io::Read;
use std::process::Stdio;

use serde_json::json;

use crate::{command, fewbit, fewbit_reading};

const COMMANDS: [&str; 15] = [
    "demo",
    "quantize",
    "convert",
    "check",
    "eval",
    "run",
    "chat",
    "inspect",
    "logits",
    "bench",
    "tokenize",
    "recipes",
    "list",
    "rm",
    "completions",
];

#[test]
fn every_help_ends_with_an_example() {
    for flag in ["--help", "-h"] {
        let all = std::iter::once(vec![flag]).chain(COMMANDS.iter().map(|c| vec![*c, flag]));
        for args in all {
            let ran = fewbit(&args);
            assert_eq!(ran.code, Some(0), "{args:?}");
            assert!(ran.stderr.is_empty(), "{args:?}: {}", ran.stderr);
            let (_, example) = ran.stdout.rsplit_once("Example:\n").unwrap_or_else(|| panic!("{args:?}"));
            assert!(example.starts_with("  fewbit ") && example.trim_end().lines().count() == 1, "{args:?}: {example}");
        }
    }
    assert!(fewbit(&["--version"]).stdout.starts_with("fewbit "));
}

#[test]
fn the_examples_name_commands_and_options_that_exist() {
    for c in COMMANDS {
        let help = fewbit(&[c, "--help"]).stdout;
        let example = help.trim_end().lines().last().unwrap();
        let words: Vec<&str> = example.split_whitespace().collect();
        assert_eq!(words[1], c);
        for option in words.iter().filter(|w| w.starts_with("--")) {
            assert!(help.contains(&format!("{option} ")) || help.contains(&format!("{option}\n")), "{c}: {option}");
        }
    }
}

#[test]
fn wrong_use_exits_with_2_and_one_object() {
    let wrong: &[&[&str]] = &[
        &[],
        &["nonsense"],
        &["run", "demo"],
        &["run", "demo", "--prompt", "x", "--max-tokens", "many"],
        &["logits", "demo", "--ids", "1", "--prompt", "x"],
        &["tokenize", "demo", "x", "--threads", "0"],
        &["tokenize", "demo", "x", "--threads", "1,2"],
        &["bench", "demo", "--threads", "1,"],
        &["bench", "demo", "--rounds", "0"],
        &["bench", "demo", "--batch", "0"],
        &["bench", "demo", "--prompt", "0", "--generate", "0"],
        &["tokenize", "demo", "x", "--cpu", "sse2"],
        &["quantize", "demo", "--recipe", "rtn", "--out", "x", "--symmetric", "--asymmetric"],
        &["quantize", "demo", "--recipe", "rtn", "--out", "x", "--bits", "9"],
        &["quantize", "demo", "--recipe", "rtn", "--out", "x", "--group", "0"],
        &["eval", "demo"],
        &["eval", "demo", "--text", "x", "--card"],
        &["completions", "cmd"],
    ];
    for args in wrong {
        let ran = fewbit(args);
        assert_eq!(ran.code, Some(2), "{args:?}: {}", ran.stderr);
        assert!(ran.stdout.is_empty(), "{args:?}");
        assert!(!ran.stderr.is_empty(), "{args:?}");
        let with_json = fewbit(&[args, &["--json"][..]].concat());
        assert_eq!(with_json.code, Some(2), "{args:?}");
        assert!(with_json.json()["error"].as_str().is_some_and(|e| !e.is_empty() && !e.contains('\n')), "{args:?}");
    }
}

#[test]
fn contradictions_between_options_are_one_sentence() {
    let ran = fewbit(&["quantize", "demo", "--recipe", "rtn", "--out", "x", "--bits", "4", "--set", "grid.bits=3"]);
    ran.refused(&["`--bits 4` contradicts `--set grid.bits=3`"]);
}

#[test]
fn failures_are_one_object_too() {
    let ran = fewbit(&["inspect", "/nowhere/at/all", "--json"]);
    ran.refused(&["`/nowhere/at/all`", "check the path"]);
    assert_eq!(ran.json().as_object().unwrap().keys().collect::<Vec<_>>(), ["error"]);
    assert!(fewbit(&["inspect", "/nowhere/at/all"]).stdout.is_empty());
}

#[test]
fn success_is_one_object_on_stdout_and_nothing_else() {
    for (args, keys) in [
        (&["tokenize", "demo", "Once"][..], &["ids", "pieces"][..]),
        (&["logits", "demo", "--ids", "0,5"], &["ids", "positions", "logits"]),
        (&["inspect", "demo", "--outliers"], &["architecture", "parameters", "tensors", "bits_per_weight", "outliers"]),
        (
            &["run", "demo", "--prompt", "Hi", "--max-tokens", "3"],
            &["text", "ids", "finish_reason", "prompt_tokens_per_second", "tokens_per_second", "load_seconds"],
        ),
        (&["chat", "demo"], &["text", "ids", "finish_reason", "prompt_tokens_per_second", "tokens_per_second"]),
        (&["recipes"], &["recipes"]),
        (&["recipes", "gptq"], &["recipes"]),
        (&["completions", "bash"], &["shell", "script"]),
    ] {
        // Before the command and after it.
        for args in [[&["--json"], args].concat(), [args, &["--json"]].concat()] {
            let object = fewbit(&args).good();
            for key in keys {
                assert!(object.get(key).is_some(), "{args:?}: {key}");
            }
        }
    }
}

#[test]
fn quiet_is_quiet_and_threads_change_nothing() {
    let args = ["run", "demo", "--prompt", "Tell a story", "--max-tokens", "20", "--quiet", "--threads"];
    let one = fewbit(&[&args[..], &["1"]].concat());
    let three = fewbit(&[&args[..], &["3"]].concat());
    assert_eq!((one.code, one.stderr.as_str()), (Some(0), ""));
    assert_eq!(one.stdout, three.stdout);
}

#[test]
fn every_instruction_set_agrees() {
    let logits = |level: &str| {
        let ran = fewbit(&[
            "logits",
            "demo",
            "--ids",
            "0,100,200",
            "--last",
            "1",
            "--arithmetic",
            "exact",
            "--cpu",
            level,
            "--json",
        ]);
        let object = ran.good();
        object["logits"][0].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect::<Vec<f64>>()
    };
    let scalar = logits("scalar");
    for level in ["avx2", "avx512"] {
        let worst = logits(level).iter().zip(&scalar).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-3, "{level}: {worst}");
    }
}

#[test]
fn recipes_are_listed_and_shown() {
    let all = fewbit(&["recipes", "--json"]).good();
    let names: Vec<&str> = all["recipes"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    for name in ["rtn", "gptq", "awq"] {
        assert!(names.contains(&name), "{names:?}");
    }
    for recipe in all["recipes"].as_array().unwrap() {
        for key in ["cite", "summary", "cost"] {
            assert!(recipe[key].as_str().is_some_and(|t| !t.is_empty()), "{recipe}");
        }
    }
    let shown = fewbit(&["recipes", "gptq"]).stdout;
    assert!(shown.contains("solve.gptq") && shown.contains("damping"), "{shown}");
    fewbit(&["recipes", "gtpq"]).refused(&["`gtpq`", "did you mean `gptq`"]);
}

#[test]
fn ids_are_checked() {
    fewbit(&["logits", "demo", "--ids", "4096"]).refused(&["id 4096", "4096 rows"]);
    fewbit(&["logits", "demo", "--ids", ""]).refused(&["no token"]);
    fewbit(&["logits", "demo", "--ids", "-1"]).refused(&["`-1` is no token id"]);
    let last = fewbit(&["logits", "demo", "--ids", "0,1,2", "--last", "2", "--json"]).good();
    assert_eq!(last["positions"], json!([1, 2]));
    let text = fewbit(&["logits", "demo", "--prompt", "Once upon a time"]).stdout;
    assert!(text.lines().count() > 3 && text.contains("after position 0: "), "{text}");
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = fewbit(&["completions", shell]).stdout;
        assert!(script.contains("quantize") && script.contains("arithmetic"), "{shell}");
    }
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let mut child = command(&["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(0), ""));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_stdout_is_told() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let out = command(&["tokenize", "demo", "x"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("writing to stdout failed"));
}

#[cfg(unix)]
#[test]
fn an_interrupted_text_is_kept() {
    // The demo model's context ends long after the signal.
    let mut child =
        command(&["run", "demo", "--raw", "--prompt", "Once", "--cpu", "scalar", "--json", "--threads", "1"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(700));
    std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let code = child.wait().unwrap().code();
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    let object: serde_json::Value = serde_json::from_str(&said).unwrap();
    // A fast machine is done before the signal comes.
    match object["finish_reason"].as_str() {
        Some("interrupted") | None => assert_eq!(code, Some(130), "{object}"),
        Some(_) => assert_eq!(code, Some(0), "{object}"),
    }
}

#[test]
fn a_prompt_comes_from_stdin() {
    let prompt = "Once upon a time";
    let args = ["run", "demo", "--raw", "--max-tokens", "5", "--prompt"];
    let given = fewbit(&[&args[..], &[prompt]].concat()).stdout;
    let read = fewbit_reading(&[&args[..], &["-"]].concat(), &format!("{prompt}\n")).stdout;
    assert_eq!(given, read);
}
